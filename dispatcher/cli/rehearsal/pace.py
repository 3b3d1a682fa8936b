"""The pace of a replay: how far time is compressed, and the fleet or the copies that give the wanted load."""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from taskyard.dispatcher.cli.rehearsal.figures import Spread, percentile, spread
from taskyard.dispatcher.cli.rehearsal.host import Work
from taskyard.dispatcher.cli.rehearsal.load import Due
from taskyard.dispatcher.cli.rehearsal.trace import Row
from taskyard.dispatcher.core.shapes import class_units
from taskyard.schemas.errors import ConfigError
from taskyard.schemas.task import AgentType, Task, TaskId
from taskyard.workers.instance import InstanceSpec

# A task shorter than this would measure the system's own milliseconds, not its placing.
_SHORTEST_MEAN_S = 0.5
_SLOTS = 6  # of an instance in a fleet that is made to measure
_FEWEST_SLOTS = 2  # of an agent type
_MEMORY_MIB = 16_384
# On a given fleet: services longer than those of this share of the rows are cut, to this share of the replay.
# Both make the load even: without the cut a replay would wait for a handful of tasks that ran for months.
_CUT_ABOVE = 0.8
_LONGEST_SHARE = 1 / 2


class Pace(NamedTuple):
    """How a trace is played. seconds: of arrivals. copies: how often it is laid over itself, each copy shifted.

    arrival_speed, service_speed: by how much gaps and services are shortened. longest_s: services are cut there, in
    recorded seconds (cut: how many rows). offered: load by capacity, per resource, over the whole of `seconds`.
    """

    seconds: float
    copies: int
    arrival_speed: float
    service_speed: float
    longest_s: float
    cut: int
    offered: dict[str, float]


def needs(row: Row) -> dict[str, int]:
    """The vector that the cell reserves for a row: rounded up to classes, as its shape is."""
    return {"slots": 1, **{name: class_units(units) for name, units in row.needs.items()}}


def made_to_measure(
    rows: Sequence[Row], *, utilisation: float, seconds: float, speed: float | None
) -> tuple[Pace, list[InstanceSpec]]:
    """Choose the pace for a trace without a fleet, and a fleet whose slots it fills to `utilisation` on average.

    speed: of the arrivals; else such that they take `seconds`. Services are shortened as much, or less if they would
    take half a second or less on average: then the fleet is larger than the recording's in the same measure.
    """
    span_s = max(rows[-1].at_s - rows[0].at_s, 1e-3)
    arrival_speed = speed or span_s / seconds
    mean_s = math.fsum(row.service_s for row in rows) / len(rows)
    service_speed = max(1e-9, min(arrival_speed, mean_s / _SHORTEST_MEAN_S or 1.0))
    length_s = span_s / arrival_speed
    busy: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        busy[row.type] += row.service_s / service_speed / length_s
    fleet: list[InstanceSpec] = []
    has_memory = any(row.needs for row in rows)
    for agent_type, erlang in sorted(busy.items()):
        slots = max(_FEWEST_SLOTS, math.ceil(erlang / utilisation))
        count = math.ceil(slots / _SLOTS)
        for number in range(count):
            # As even as it goes: 13 slots are 5, 4 and 4.
            capacity = {"slots": slots // count + (number < slots % count)}
            if has_memory:
                capacity["memory_mib"] = _MEMORY_MIB
            fleet.append(InstanceSpec(id=f"{agent_type}-{number + 1}", types=(agent_type,), capacity=capacity))
    made = Pace(length_s, 1, arrival_speed, service_speed, math.inf, 0, {})
    return made._replace(offered=_offered(rows, made, fleet)), fleet


def on_fleet(rows: Sequence[Row], fleet: Sequence[InstanceSpec], *, utilisation: float, seconds: float) -> Pace:
    """Choose the pace for a trace on a given fleet, so that its fullest resource is offered `utilisation`.

    The trace is laid over itself as often as that takes, each copy shifted by an equal part of `seconds`, so that the
    load is the same at all times. The longest services are cut: a replay would have to wait for them.
    """
    longest_s = max(percentile(sorted(row.service_s for row in rows), _CUT_ABOVE), 1e-3)
    span_s = max(rows[-1].at_s - rows[0].at_s, 1e-3)
    cut = sum(row.service_s > longest_s for row in rows)
    once = Pace(seconds, 1, span_s / seconds, longest_s / (seconds * _LONGEST_SHARE), longest_s, cut, {})
    fullest = max(_offered(rows, once, fleet).values())
    if not fullest:
        raise ConfigError("the trace offers this fleet no load at all: its services take no time")
    # A whole number of copies at least; what is over or under is made up by the services' speed.
    copies = max(1, round(utilisation / fullest))
    made = once._replace(copies=copies, service_speed=once.service_speed * fullest * copies / utilisation)
    return made._replace(offered=_offered(rows, made, fleet))


def runnable(rows: Sequence[Row], fleet: Sequence[InstanceSpec]) -> list[Row]:
    """The rows that some instance could run when it is empty; the others would wait for ever."""
    known: dict[tuple[str, tuple[tuple[str, int], ...]], bool] = {}
    kept: list[Row] = []
    for row in rows:
        wanted = needs(row)
        key = (row.type, tuple(sorted(wanted.items())))
        if key not in known:
            known[key] = any(
                row.type in spec.types and all(spec.capacity.get(name, 0) >= units for name, units in wanted.items())
                for spec in fleet
            )
        if known[key]:
            kept.append(row)
    return kept


def plan(rows: Sequence[Row], pace: Pace, *, run: str) -> Iterator[Due]:
    """Yield the trace's tasks at its pace, in order of time. run: put in front of the ids."""
    times = [
        (_shifted(arrival_s(row, rows[0], pace), copy, pace), index, copy)
        for copy in range(pace.copies)
        for index, row in enumerate(rows)
    ]
    times.sort()
    for at_s, index, copy in times:
        row = rows[index]
        yield Due(at_s, _task(row, pace, f"{run}-{index}" + (f"-{copy}" if pace.copies > 1 else "")))


def arrival_s(row: Row, first: Row, pace: Pace) -> float:
    """When a row arrives in the replay's first copy, seconds after the first row."""
    return (row.at_s - first.at_s) / pace.arrival_speed


def _shifted(at_s: float, copy: int, pace: Pace) -> float:
    if pace.copies == 1:
        return at_s
    return (at_s + copy * pace.seconds / pace.copies) % pace.seconds


def played_s(row: Row, pace: Pace) -> float:
    """How long a row's service takes in the replay, seconds."""
    return min(row.service_s, pace.longest_s) / pace.service_speed


def ideal(rows: Sequence[Row], pace: Pace, fleet: Sequence[InstanceSpec]) -> Spread | None:
    """The waits, ms, if each agent type had its slots in one pool, first come first served, and nothing took any time.

    What is above this is the system's own. None where instances share types or tasks need more than slots: there no
    such simple answer exists.
    """
    if any(len(spec.types) != 1 for spec in fleet) or pace.copies > 1:
        return None
    free: defaultdict[str, list[float]] = defaultdict(list)
    for spec in fleet:
        free[spec.types[0]] += [0.0] * spec.capacity["slots"]
    waits_ms: list[float] = []
    for row in rows:
        at_s = arrival_s(row, rows[0], pace)
        slots = free[row.type]
        start_s = max(at_s, slots[0])
        waits_ms.append((start_s - at_s) * 1000)
        heapq.heapreplace(slots, start_s + played_s(row, pace))
    return spread(waits_ms)


def _offered(rows: Sequence[Row], pace: Pace, fleet: Sequence[InstanceSpec]) -> dict[str, float]:
    """Work by capacity, per resource that tasks need and the fleet has."""
    work: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        length_s = played_s(row, pace)
        for name, units in needs(row).items():
            work[name] += units * length_s
    capacity: Counter[str] = Counter()
    for spec in fleet:
        capacity.update(spec.capacity)
    return {name: total * pace.copies / capacity[name] / pace.seconds for name, total in work.items() if capacity[name]}


def _task(row: Row, pace: Pace, task_id: str) -> Task:
    work = Work(round(played_s(row, pace), 4), fails=row.is_failed)
    return Task(
        id=TaskId(task_id),
        type=AgentType(row.type),
        priority=row.priority,
        tenant=row.tenant,
        payload=msgspec.Raw(msgspec.json.encode(work)),
        requirements=dict(row.needs),
    )
