"""The demo's fleet, and its load: steady under capacity, with bursts over it on each priority in turn."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from taskyard.dispatcher.cli.rehearsal.host import Work
from taskyard.dispatcher.cli.rehearsal.load import Due
from taskyard.schemas.priority import PRIORITIES
from taskyard.schemas.task import AgentType, Task, TaskId
from taskyard.workers.instance import InstanceSpec

# Mean length of a task per agent type, seconds.
_MEANS_S = {"coder": 0.9, "researcher": 0.6, "writer": 0.3}
# Of each worker process: agent types of an instance, and its slots.
_OFFERS = ((("coder",), 8), (("researcher",), 12), (("writer",), 6), (("coder", "writer"), 4))
_SLOTS_FACTOR = (1.0, 0.5, 1.5)  # workers differ in size

# Offered load by capacity: 0.66 for most of the time, 1.6 for a fifth of it; 0.85 on average, of which the ends of a
# run take their share: about 80 % are used.
_CALM, _BURST = 0.66, 1.6
_PERIOD_S, _BURST_S = 6.0, 1.2
_SHARES = {"critical": 0.06, "high": 0.2, "normal": 0.44, "low": 0.3}
_BURST_SHARE = 0.8  # of a burst's tasks that are of its priority


class Moment(NamedTuple):
    """What the load is at a time. burst: the priority that bursts now; empty between two bursts."""

    load: float
    burst: str


def fleet(workers: int) -> list[list[InstanceSpec]]:
    """The instances of each worker process."""
    return [
        [
            InstanceSpec(
                id=f"{'-'.join(types)}-{worker + 1}",
                types=types,
                capacity={"slots": max(1, round(slots * _SLOTS_FACTOR[worker % len(_SLOTS_FACTOR)]))},
            )
            for types, slots in _OFFERS
        ]
        for worker in range(workers)
    ]


def moment(at_s: float) -> Moment:
    """The load at a time; a burst ends each period, so that a run begins calmly."""
    period, within_s = divmod(at_s, _PERIOD_S)
    if within_s < _PERIOD_S - _BURST_S:
        return Moment(_CALM, "")
    # The least urgent first: what follows must pass what is parked.
    return Moment(_BURST, PRIORITIES[::-1][int(period) % len(PRIORITIES)])


def full_rates(instances: Sequence[InstanceSpec]) -> dict[str, float]:
    """Tasks a second per agent type that keep every slot busy; an instance of several types is shared evenly."""
    rates = dict.fromkeys(_MEANS_S, 0.0)
    for spec in instances:
        for agent_type in spec.types:
            rates[agent_type] += spec.capacity["slots"] / len(spec.types) / _MEANS_S[agent_type]
    return rates


def average_rate(instances: Sequence[InstanceSpec]) -> float:
    """Tasks a second over a whole period."""
    share = _BURST_S / _PERIOD_S
    return sum(full_rates(instances).values()) * (_CALM * (1 - share) + _BURST * share)


def bursts(instances: Sequence[InstanceSpec], *, seconds: float, rate: float, seed: int, run: str) -> Iterator[Due]:
    """Yield tasks with random gaps, for so many seconds (0: for ever). Same arguments, same tasks.

    rate: tasks a second on average; 0: what the fleet can just take. run: put in front of the ids.
    """
    chance = random.Random(seed)
    rates = full_rates(instances)
    factor = rate / average_rate(instances) if rate else 1.0
    types, weights, total = list(rates), list(rates.values()), sum(rates.values()) * factor
    at_s, number = 0.0, 0
    while True:
        now = moment(at_s)
        at_s += chance.expovariate(total * now.load)
        if seconds and at_s >= seconds:
            return
        number += 1
        agent_type = chance.choices(types, weights)[0]
        yield Due(at_s, _task(chance, f"{run}-{number}", agent_type, now.burst))


def _task(chance: random.Random, task_id: str, agent_type: str, burst: str) -> Task:
    if burst and chance.random() < _BURST_SHARE:
        priority = burst
    else:
        priority = chance.choices(list(_SHARES), list(_SHARES.values()))[0]
    # Uneven, as agents are: a quarter of the mean at least, seldom more than three times it.
    length_s = _MEANS_S[agent_type] * (0.25 + chance.gammavariate(1.0, 0.75))
    return Task(
        id=TaskId(task_id),
        type=AgentType(agent_type),
        priority=priority,
        payload=msgspec.Raw(msgspec.json.encode(Work(round(length_s, 3)))),
    )
