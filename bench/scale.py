"""How the cost of dispatching grows: with instances, dispatchers, resources, parked tasks and payloads.

Each row is a curve, measured from its first point, the baseline, to its last, which is what the ratio is of. Cost is
processor time of all dispatchers and of Valkey for each task, as `taskyard dispatcher` drains a full topic
(dispatch.py).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from bench import backlog
from bench.dispatch import Load, dispatched
from bench.pairs import Row, Sample
from bench.rig import Rig

COUNTED = ("dispatcher", "valkey")
"""Whose processor time is the cost; Kafka's is the same whoever reads."""

COST_UNIT = "us/task"

RESOURCES: backlog.Needs = (("cpu_milli", 100), ("memory_mib", 64), ("gpu_milli", 10), ("disk_mib", 32))
"""Beside the slot."""

_DISPATCHERS = (1, 2, 4)
_PAYLOADS_BYTES = (200, 2_000, 20_000, 200_000)
# A topic has at most so many bytes for each task of a usual one, but tasks enough for a run that can be timed.
_MEAN_BYTES = 2_000
_FEWEST_TASKS = 200
# Far above what was seen: a smoke has too few tasks for its ratios to mean anything.
_LIMIT = 20.0
_LIMITS = {"scale-payload": 1_000.0, "scale-dispatchers": 0.05}


class Curve(NamedTuple):
    """One figure over one quantity. loads: x -> what is dispatched there, in order; the first is the baseline."""

    name: str
    x: str
    loads: Mapping[int, Load]


def rows(
    rig: Rig, *, tasks: int, instances: int, fleets: tuple[int, ...], parks: tuple[int, ...], is_whole: bool = True
) -> list[Row]:
    """One row for each curve. instances: of all but the first. is_whole: else ours is the last point only."""
    usual = Load(tasks, instances)
    costs = [
        Curve("scale-instances", "instances", {count: Load(tasks, count) for count in fleets}),
        Curve(
            "scale-resources", "resources",
            {1 + count: usual._replace(needs=RESOURCES[:count]) for count in range(len(RESOURCES) + 1)},
        ),
        Curve("scale-parked", "parked tasks", {count: usual._replace(parked=count) for count in parks}),
        Curve("scale-payload", "bytes of payload", {size: _with_payload(usual, size) for size in _PAYLOADS_BYTES}),
    ]  # fmt: skip
    shared = Curve("scale-dispatchers", "dispatchers", {n: usual._replace(dispatchers=n) for n in _DISPATCHERS})
    found = [_row(rig, curve, cost_us, is_whole=is_whole) for curve in costs]
    return [*found, _row(rig, shared, throughput, is_whole=is_whole)]


def tasks_of(payload_bytes: int, tasks: int) -> int:
    """How many tasks with such payloads are dispatched where `tasks` small ones are."""
    return max(_FEWEST_TASKS, min(tasks, tasks * _MEAN_BYTES // payload_bytes))


def point_of(curve: Curve, at: int) -> Curve:
    """One point of the curve, by its place."""
    return curve._replace(loads=dict([list(curve.loads.items())[at]]))


def cost_us(sample: Sample) -> float:
    """Microseconds of processor time a task."""
    return sum(sample.cpu_us[name] for name in COUNTED)


def throughput(sample: Sample) -> float:
    """Tasks a second."""
    return sample.value


def traced(curve: Curve, run: Callable[[Load], Sample], value_of: Callable[[Sample], float], unit: str) -> Sample:
    """Measure every point. The sample is the last one's; details: under the name of x, each x -> what was seen."""
    samples = {x: run(load) for x, load in curve.loads.items()}
    last = list(samples.values())[-1]
    seen = {
        str(x): {unit: value_of(sample), **{who: {COST_UNIT: spent_us} for who, spent_us in sample.cpu_us.items()}}
        for x, sample in samples.items()
    }
    return Sample(value_of(last), last.cpu_us, {**last.details, curve.x: seen})


def _with_payload(usual: Load, size_bytes: int) -> Load:
    return usual._replace(payload_bytes=size_bytes, tasks=tasks_of(size_bytes, usual.tasks))


def _row(rig: Rig, curve: Curve, value_of: Callable[[Sample], float], *, is_whole: bool) -> Row:
    run, is_cost = partial(dispatched, rig), value_of is cost_us
    unit = COST_UNIT if is_cost else "tasks/s"
    first, *_, last = curve.loads
    what = f"{'cost of dispatching' if is_cost else 'dispatching'} at {last:,} {curve.x}"
    return Row(
        curve.name, what, f"at {first:,}",
        partial(traced, curve if is_whole else point_of(curve, -1), run, value_of, unit),
        partial(traced, point_of(curve, 0), run, value_of, unit),
        limit=_LIMITS.get(curve.name, _LIMIT), unit=unit, is_cost=is_cost,
    )  # fmt: skip
