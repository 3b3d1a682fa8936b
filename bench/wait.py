"""Figure 6: how long tasks wait at 85 % load, in virtual time, against an ideal central queue.

Both sides have the same tasks, the same slots and the same order of keys. The workload is a recorded one (`--trace`,
read and paced as `taskyard replay` does: on a fleet made to measure), or a made-up one with a heavy tail, another for
each run. Nothing here depends on the machine. On a fleet whose instances serve one agent type each, as this one, ours
without headroom waits exactly as the ideal does: it keeps no slot idle, and the order is the same. What `wait` shows
is then the price of the headroom, which is kept for critical tasks whether there are any or not.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import msgspec

from bench import heavy_tail
from bench.central_queue import Job, waits_ms
from bench.pairs import Row, Sample
from bench.virtual_yard import VirtualYard
from taskyard.dispatcher.cli.rehearsal.figures import percentile
from taskyard.dispatcher.cli.rehearsal.host import Work
from taskyard.dispatcher.cli.rehearsal.pace import made_to_measure, plan, runnable
from taskyard.dispatcher.cli.rehearsal.trace import Row as Recorded
from taskyard.dispatcher.cli.rehearsal.trace import read_trace
from taskyard.dispatcher.core.order import order_key_ms
from taskyard.dispatcher.settings import OrderSettings, Settings
from taskyard.schemas.errors import ConfigError
from taskyard.schemas.priority import PRIORITIES
from taskyard.workers.instance import InstanceSpec

_UTILISATION = 0.85
# As `taskyard replay` takes by default. Services are then half a second on average, ten readings of the fleet.
_SECONDS = 60.0
_DISPATCHERS = 2
_SHARES = (50, 75, 90, 95, 98, 99, 99.5, 99.9, 100)
# A smoke's tasks are few, and so are their waits: the headroom's price varies. Without it nothing varies.
_LIMIT, _EXACT_LIMIT = 3.0, 1.05


class Workload(NamedTuple):
    """What both sides get. jobs: in order of arrival. fleet: each instance of one agent type."""

    jobs: Sequence[Job]
    fleet: Sequence[InstanceSpec]
    offered: float


def rows(*, tasks: int, trace: Path | None = None) -> list[Row]:
    """Figure 6, and the same without headroom.

    tasks: of the made-up workload. Raises ConfigError if the trace cannot be read, or needs more than slots.
    """
    settings = Settings()
    no_headroom = msgspec.structs.replace(settings, order=OrderSettings(headroom_permille=0))
    recorded = read_trace(trace).rows if trace else None
    source = f"{trace.stem}, {len(recorded):,} tasks" if trace and recorded else f"heavy tail, {tasks:,} tasks"
    what = f"mean wait, {source} at {_UTILISATION:.0%} load, virtual time"

    def row(name: str, what: str, settings: Settings, must: float, aim: float, limit: float) -> Row:
        # Each side counts its runs: both sides of a pair get the same workload.
        drawn, ideal = _runs(recorded, tasks, settings), _runs(recorded, tasks, settings)
        return Row(
            name, what, "ideal central queue", partial(_ours, drawn, settings), partial(_ideal, ideal), must, aim,
            limit, "ms", is_cost=True,
        )  # fmt: skip

    return [
        row("wait", what, settings, 1.2, 1.02, _LIMIT),
        row("wait-no-headroom", f"{what}, no headroom", no_headroom, 0, 0, _EXACT_LIMIT),
    ]


def _runs(recorded: Sequence[Recorded] | None, tasks: int, settings: Settings) -> Callable[[], tuple[int, Workload]]:
    """Make a function that returns the seed and the workload of the next run."""
    numbers = count()

    def following() -> tuple[int, Workload]:
        seed = next(numbers)
        return seed, workload(recorded or list(heavy_tail.rows(tasks, seed)), settings)

    return following


def workload(recorded: Sequence[Recorded], settings: Settings) -> Workload:
    """Bring recorded tasks onto a fleet that they load to 85 %. Raises ConfigError if they need more than slots."""
    pace, fleet = made_to_measure(recorded, utilisation=_UTILISATION, seconds=_SECONDS, speed=None)
    if len(runnable(recorded, fleet)) < len(recorded):
        raise ConfigError("the trace has tasks that need more than slots: no ideal queue is known for those")
    slack_ms = settings.slack_ms()
    jobs: list[Job] = []
    for due in plan(recorded, pace, run="wait"):
        at_ms, work = round(1000 * due.at_s), msgspec.json.decode(due.task.payload, type=Work)
        key_ms = order_key_ms(due.task, arrived_ms=at_ms, slack_ms=slack_ms)
        jobs.append(Job(at_ms, 1000 * work.seconds, key_ms, due.task, work.fails))
    return Workload(jobs, fleet, pace.offered["slots"])


def _ours(following: Callable[[], tuple[int, Workload]], settings: Settings) -> Sample:
    seed, given = following()
    yard = VirtualYard(given.jobs, given.fleet, settings, dispatchers=_DISPATCHERS, seed=seed)
    seen = asyncio.run(yard.run())
    return _sample(given, seen.waits_ms, parked=seen.parked, placed_elsewhere=seen.elsewhere)


def _ideal(following: Callable[[], tuple[int, Workload]]) -> Sample:
    _, given = following()
    waits = ideal_waits_ms(given)
    return _sample(given, waits, parked=sum(wait > 0 for wait in waits))


def ideal_waits_ms(given: Workload) -> list[float]:
    """How long each job waits in the ideal queue."""
    slots: Counter[str] = Counter()
    for spec in given.fleet:
        slots[spec.types[0]] += spec.capacity["slots"]
    return waits_ms(given.jobs, slots)


def slots_of(given: Workload) -> int:
    """All slots of the fleet."""
    return sum(spec.capacity["slots"] for spec in given.fleet)


def _sample(given: Workload, waits: Sequence[float], **counted: int) -> Sample:
    ordered = sorted(waits)
    by_priority = {
        name: [wait for wait, job in zip(waits, given.jobs, strict=True) if job.task.priority == name]
        for name in PRIORITIES
    }
    details = {
        "wait_ms_by_percentile": {share: percentile(ordered, share / 100) for share in _SHARES},
        "mean_wait_ms_by_priority": {name: fmean(found) for name, found in by_priority.items() if found},
        **counted,
        "offered_load": given.offered,
        "slots": slots_of(given),
        "instances": len(given.fleet),
    }
    return Sample(fmean(waits), details=details)
