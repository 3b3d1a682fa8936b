"""A made-up workload, from a seed: bursts, several agent types, and services of which few take most of the time."""

import random
from collections.abc import Iterator

from taskyard.dispatcher.cli.rehearsal.trace import Row

_TYPES = {"coder": 0.6, "researcher": 0.3, "writer": 0.1}
_PRIORITIES = {"critical": 0.05, "high": 0.2, "normal": 0.45, "low": 0.3}
# Log-normal: median 6 s, mean 17 s, one in a hundred above 164 s.
_MEDIAN_S, _SIGMA = 6.0, 1.42
_LONGEST_S = 600.0
# Arrivals a second: quiet and busy stretches in turn, of as many tasks.
_QUIET, _BUSY, _STRETCH = 2.0, 4.0, 250


def rows(tasks: int, seed: int) -> Iterator[Row]:
    """Yield so many tasks in order of their arrival. Same arguments, same tasks."""
    chance, at_s = random.Random(seed), 0.0
    types, priorities = list(_TYPES), list(_PRIORITIES)
    for number in range(tasks):
        at_s += chance.expovariate(_BUSY if number // _STRETCH % 2 else _QUIET)
        service_s = min(_MEDIAN_S * chance.lognormvariate(0, _SIGMA), _LONGEST_S)
        agent_type = chance.choices(types, list(_TYPES.values()))[0]
        priority = chance.choices(priorities, list(_PRIORITIES.values()))[0]
        yield Row(at_s, service_s, agent_type, priority, "", {}, is_failed=False)
