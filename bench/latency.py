"""Figures 4 and 5: from the time a task is due to be published until its handler starts, and what floods do to that.

Ours: a sender, `taskyard dispatcher` and one `taskyard worker`, each a process as a user runs it, with a ticker on its
loop (stalls.py). The baseline of figure 4: a sender and `raw_echo`. Kafka and the senders have one half of the
processors, what is measured the other (processors.py), on both sides. Times are read on one clock and reach the bench
in memory (latency_stamps.py). Details hold what a plot needs: quantiles, histogram, the longest stop of each loop, and
how late the sender was, which counts on both sides.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Generator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from bench import latency_stamps as stamps
from bench import processors, stalls
from bench.backlog import PARTITIONS
from bench.latency_figures import count_of, middle_rate, spread
from bench.latency_send import RAW
from bench.pairs import Row, Sample
from bench.rig import Child, Rig, taskyard, wait_for
from taskyard.dispatcher.clients import RealClients
from taskyard.dispatcher.kafka.topics import create_topics
from taskyard.dispatcher.service import watermark_group
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.priority import PRIORITIES
from taskyard.schemas.topics import topics

NAMES = ("latency", "latency-flood", "latency-load")
_PREFIX = "latency."
_RAW_TOPIC = "latency.raw"
_PRIORITY = "normal"
# More than 2,000 tasks a second can fill while each takes its few milliseconds.
_ROOMY = 1_000
# The limited worker: 20 slots of 10 ms, so some 1,700 tasks a second. Its headroom (5 %) is one whole slot, whatever
# its name. Shorter handlers would need a rate at which two processors, not the slots, are what is full.
_SLOTS = 20
_HOLD_MS = 10
_NOMINAL_PER_S = _SLOTS * 1000 / _HOLD_MS
_FLOOD = 2.0
_CALIBRATED_S = 3.0
"""How long twice the nominal capacity is offered to find out the real one."""
# The flood goes on for so many times what it is to cover, and ten seconds: the other sender has to start meanwhile.
_FLOOD_LASTS = 2
# One by one its sender took most of a processor, which then was what stood in the way, not the low tasks.
_FLOOD_EVERY_MS = 10
_REHEARSALS = 2
_SHARES = (0.2, 0.5, 0.8)
_IDLE_SHARE = 0.05
# A smoke has few samples on a machine that others use: what it shows is that the row works.
_SMOKE_LIMIT = 50.0


class Load(NamedTuple):
    """What is offered to whom. rates: stream -> tasks a second, for `seconds` after `warm_s` that do not count.

    hold_ms, slots: of each task, in all. flood: low tasks a second beside it, from before its first until its last,
    sent by a process of its own: it is to stand in the way of nobody at the producer. every_ms: see `schedule`.
    """

    rates: Mapping[str, float]
    seconds: float
    warm_s: float
    hold_ms: int = 0
    slots: int = _ROOMY
    flood: float = 0
    every_ms: int = 0


class Run(NamedTuple):
    """What a run has shown. latencies_ns: by stream, of the tasks that count. parked: at its end."""

    latencies_ns: Mapping[str, list[int]]
    started_ns: list[int]
    cpu_us: Mapping[str, float]
    details: dict[str, object]
    parked: int = 0


def rows(rig: Rig, *, seconds: float, warm_s: float, per_s: float, critical_per_s: float, tasks: int,
         is_rehearsed: bool) -> list[Row]:  # fmt: skip
    """Figures 4 and 5, and latency by load.

    seconds, warm_s: of each run. per_s: offered in figure 4; critical_per_s: of critical tasks in figure 5. tasks: of
    each priority at each load. is_rehearsed: runs of ours that do not count come before the first: for half a minute a
    Kafka that has just started compiles itself with half a processor, and whoever is first would pay for that.
    """
    usual = Load({_PRIORITY: per_s}, seconds, warm_s)
    found = [_row_of_one(rig, usual), *_rows_by_load(rig, seconds, warm_s, critical_per_s, tasks)]
    if not is_rehearsed:
        return found
    rehearse = cache(lambda: [_ours(rig, usual) for _ in range(_REHEARSALS)])
    return [
        row._replace(ours=partial(_after, rehearse, row.ours), baseline=partial(_after, rehearse, row.baseline))
        for row in found
    ]


def _row_of_one(rig: Rig, load: Load) -> Row:
    what = f"publish to handler start, p99 at {load.rates[_PRIORITY]:,.0f}/s"
    ours, baseline = partial(_of_one, rig, load), partial(_raw, rig, load)
    return Row(
        "latency", what, "aiokafka, produce to consume", ours, baseline, 3, 2, _SMOKE_LIMIT, unit="ms", is_cost=True
    )


def _rows_by_load(rig: Rig, seconds: float, warm_s: float, critical_per_s: float, tasks: int) -> list[Row]:
    capacity = cache(partial(_capacity, rig, min(seconds, _CALIBRATED_S)))
    alone = Load({"critical": critical_per_s}, seconds, warm_s, _HOLD_MS, _SLOTS)
    at_once = f"{_SLOTS} slots of {_HOLD_MS} ms"
    flood = f"critical p99 at {critical_per_s:,.0f}/s while low is offered {_FLOOD:g} x capacity, {at_once}"
    return [
        Row(
            "latency-flood", flood, "ours without low", partial(_flooded, rig, alone, capacity),
            partial(_of_one, rig, alone), 3, 1.5, _SMOKE_LIMIT, "ms", is_cost=True,
        ),
        Row(
            "latency-load", f"critical p99 at {_SHARES[-1]:.0%} of capacity, four priorities alike, {at_once}",
            f"ours at {_IDLE_SHARE:.0%}", partial(_loaded, rig, tasks, warm_s, capacity, _SHARES),
            partial(_loaded, rig, tasks, warm_s, capacity, (_IDLE_SHARE,)), limit=_SMOKE_LIMIT, unit="ms", is_cost=True,
        ),
    ]  # fmt: skip


def _after(rehearse: Callable[[], object], side: Callable[[], Sample]) -> Sample:
    rehearse()
    return side()


def _of_one(rig: Rig, load: Load) -> Sample:
    return _sample(_ours(rig, load), next(iter(load.rates)))


def _raw(rig: Rig, load: Load) -> Sample:
    raw = load._replace(rates={RAW: sum(load.rates.values())})
    rig.reset()
    asyncio.run(create_topics(rig.kafka, {_RAW_TOPIC: PARTITIONS}, replication=1))
    with stamps.new_directory() as name, _halved(rig):
        reading = (sys.executable, "-m", "bench.raw_echo", rig.kafka, _RAW_TOPIC, str(PARTITIONS), name)
        with _inside(rig, *reading) as reader:
            return _sample(_measured(rig, raw, Path(name), _RAW_TOPIC, {"reader": reader}), RAW)


def _flooded(rig: Rig, alone: Load, capacity: Callable[[], float]) -> Sample:
    run = _ours(rig, alone._replace(flood=_FLOOD * capacity()))
    if not run.parked:
        raise RuntimeError("nothing was parked in the flood; the figure would be of something else")
    run.details.update(capacity_per_s=capacity(), parked=run.parked)
    return _sample(run, "critical")


def _loaded(rig: Rig, tasks: int, warm_s: float, capacity: Callable[[], float], shares: tuple[float, ...]) -> Sample:
    """Run at each share of the capacity in turn; the sample is of the last one, its details of all."""
    sample, loads = Sample(0), dict[str, object]()
    for share in shares:
        per_s = share * capacity() / len(PRIORITIES)
        load = Load(dict.fromkeys(PRIORITIES, per_s), tasks / per_s, warm_s, _HOLD_MS, _SLOTS)
        run = _ours(rig, load)
        table = {stream: spread(latencies_ns)._asdict() for stream, latencies_ns in run.latencies_ns.items()}
        loads[f"{share:.0%}"] = {**table, **run.details}
        sample = _sample(run, "critical")
    return sample._replace(details={"capacity_per_s": capacity(), "loads": loads})


def _capacity(rig: Rig, seconds: float) -> float:
    """Measure how many tasks a second the limited worker starts at most, with more than that offered."""
    offered = {"low": _FLOOD * _NOMINAL_PER_S}
    return middle_rate(_ours(rig, Load(offered, seconds, 0, _HOLD_MS, _SLOTS)).started_ns)


def _sample(run: Run, stream: str) -> Sample:
    found = spread(run.latencies_ns[stream])
    return Sample(found.p99_ms, run.cpu_us, {**found._asdict(), **run.details})


def _ours(rig: Rig, load: Load) -> Run:
    rig.reset()
    cell = rig.new_name()
    asyncio.run(_begin(rig, cell))
    with (
        stamps.new_directory() as name,
        _halved(rig),
        _placed_and_run(rig, cell, Path(name), load.slots) as children,
    ):
        run = _measured(rig, load, Path(name), _PREFIX, children)
        return run._replace(parked=int(rig.redis.hget(f"ty:{{{cell}}}:stats", "parked") or 0))


async def _begin(rig: Rig, cell: str) -> None:
    """Let a new cell begin where the topics end now: what earlier runs have published is not its business."""
    settings = Settings(kafka=rig.kafka, redis=rig.redis_url, cell=cell, prefix=_PREFIX)
    clients, names = RealClients(settings), topics(_PREFIX)
    history = clients.history(names, watermark_group(cell))
    try:
        await clients.check_topics(names)
        extents = await history.extents()
        await clients.cell.open(settings.cell_config())
        await clients.cell.begin({name: extent.end for name, extent in extents.items()})
    finally:
        await history.close()
        await clients.close()


@contextlib.contextmanager
def _placed_and_run(rig: Rig, cell: str, directory: Path, slots: int) -> Generator[dict[str, Child]]:
    placing = taskyard(rig, cell, "dispatcher", "--prefix", _PREFIX, "--http-port", "0")
    running = taskyard(rig, cell, "worker", "bench.latency_handlers:handlers", "--slots", str(slots))
    with (
        _inside(rig, *stalls.command(directory, placing)) as dispatcher,
        _inside(rig, *stalls.command(directory, running)) as worker,
    ):
        yield {"dispatcher": dispatcher, "worker": worker}


def _measured(rig: Rig, load: Load, directory: Path, prefix: str, children: dict[str, Child]) -> Run:
    """Send what is offered and wait until all of it has started, but for the flood.

    Raises RuntimeError if a task started twice, or if the flood ended too soon.
    """
    expected = {stream: count_of(per_s, load.warm_s + load.seconds) for stream, per_s in load.rates.items()}
    told, flooded = directory / "sent", directory / "flooded"
    with contextlib.ExitStack() as stack:
        if load.flood:
            seconds = _FLOOD_LASTS * (load.warm_s + load.seconds) + 10
            flood = load._replace(rates={"low": load.flood}, seconds=seconds, every_ms=_FLOOD_EVERY_MS)
            children["flood"] = stack.enter_context(_sender(rig, flood, flooded, prefix))
            wait_for(lambda: _are_well(children) and stamps.count(directory, "low"), "the flood to begin")
        children["sender"] = stack.enter_context(_sender(rig, load, told, prefix))
        timed = rig.timed(
            lambda: sum(stamps.count(directory, stream) for stream in expected), sum(expected.values()), children
        )
        wait_for(lambda: _are_well(children) and told.exists(), "the sender to end")
        if flooded.exists():
            raise RuntimeError("the flood ended before the tasks beside it; the machine is too slow for this run")
    sent = json.loads(told.read_text())
    latencies_ns: dict[str, list[int]] = {}
    started_ns: list[int] = []
    for stream, wanted in expected.items():
        found = stamps.read(directory, stream)
        if len({stamp.due_ns for stamp in found}) != wanted or len(found) != wanted:
            raise RuntimeError(f"{len(found)} starts of {wanted} {stream} tasks; each must start once")
        latencies_ns[stream] = [stamp.started_ns - stamp.due_ns for stamp in found if stamp.due_ns >= sent["began_ns"]]
        started_ns += [stamp.started_ns for stamp in found]
    # Processor time is counted over the tasks that were waited for; beside a flood it would say nothing.
    cpu_us: Mapping[str, float] = {} if load.flood else timed.cpu_us
    return Run(latencies_ns, started_ns, cpu_us, {**_details(directory, sent), "server": timed.details["server"]})


@contextlib.contextmanager
def _sender(rig: Rig, load: Load, told: Path, prefix: str) -> Generator[Child]:
    numbers = [str(number) for number in (load.hold_ms, load.warm_s, load.seconds, load.every_ms)]
    offered = [f"{stream}={per_s}" for stream, per_s in load.rates.items()]
    sending = (sys.executable, "-m", "bench.latency_send", rig.kafka, prefix, str(told), *numbers, *offered)
    with rig.child(*sending) as sender:
        processors.keep(sender.pid, processors.halves().outside)
        yield sender


def _halved(rig: Rig) -> contextlib.AbstractContextManager[None]:
    """Keep the servers to the half of the processors where they belong."""
    halves = processors.halves()
    return processors.kept({rig.server_pids["kafka"]: halves.outside, rig.server_pids["valkey"]: halves.inside})


@contextlib.contextmanager
def _inside(rig: Rig, *command: str) -> Generator[Child]:
    with rig.child(*command) as child:
        processors.keep(child.pid, processors.halves().inside)
        yield child


def _are_well(children: Mapping[str, Child]) -> bool:
    """Raise RuntimeError if one has failed."""
    for name, child in children.items():
        child.check(name)
    return True


def _details(directory: Path, sent: Mapping[str, Any]) -> dict[str, object]:
    """Tell the longest stop of each loop while tasks counted, and how late they were sent."""
    found: dict[str, dict[str, float]] = {}
    for name in stalls.names(directory):
        stretches = wait_for(lambda name=name: _whole(directory, name, sent["ended_ns"]), f"the ticker of the {name}")
        found[name] = stalls.longest(stretches, sent["began_ns"], sent["ended_ns"])
    by_kind = {kind: {name: stall[kind] for name, stall in found.items()} for kind in ("stall_ms", "stall_cpu_ms")}
    late = {f"sent_late_{name}": sent["late"][name] for name in ("p50_ms", "p99_ms", "max_ms")}
    return {**by_kind, **late}


def _whole(directory: Path, name: str, until_ns: int) -> list[stalls.Stretch]:
    """What a ticker wrote, once it has written all up to then: a stretch is written when it is over. Empty before."""
    stretches = stalls.read(directory, name)
    return stretches if stretches and stretches[-1].ended_ns >= until_ns else []
