"""The ideal that figure 6 is measured against: one queue for each agent type, all its slots behind it, no time lost.

It knows at every moment what is free, and hands the task with the earliest key to it at once. No placement can wait
less on average without looking into the future, or leaving the order of keys.
"""

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taskyard.schemas.task import Task


class Job(NamedTuple):
    """A task with what only a simulation knows of it: when it arrives, how long it takes. key_ms: its order key."""

    at_ms: int
    service_ms: float
    key_ms: float
    task: Task
    is_failed: bool


class _Pool:
    """The slots of one agent type, and what waits for them."""

    def __init__(self, slots: int) -> None:
        self.free = slots
        self.busy_until: list[float] = []
        self.waiting: list[tuple[float, int]] = []


def waits_ms(jobs: Sequence[Job], slots: Mapping[str, int]) -> list[float]:
    """Return how long each task waits. jobs: in order of arrival. slots: of each agent type.

    What ends at the moment of an arrival has ended before it. Raises KeyError for a type without slots.
    Cost: O(log n) a task.
    """
    pools = {name: _Pool(count) for name, count in slots.items()}
    waits = [0.0] * len(jobs)
    by_type: defaultdict[str, list[int]] = defaultdict(list)
    for index, job in enumerate(jobs):
        by_type[job.task.type].append(index)
    for agent_type, indices in by_type.items():
        pool, place = pools[agent_type], 0
        while place < len(indices):
            at_ms = jobs[indices[place]].at_ms
            _end_until(pool, at_ms, jobs, waits)
            # Those of one moment are looked at together: the most urgent of them goes first.
            while place < len(indices) and jobs[indices[place]].at_ms == at_ms:
                heapq.heappush(pool.waiting, (jobs[indices[place]].key_ms, indices[place]))
                place += 1
            _start(pool, at_ms, jobs, waits)
        _end_until(pool, float("inf"), jobs, waits)
    return waits


def _end_until(pool: _Pool, at_ms: float, jobs: Sequence[Job], waits: list[float]) -> None:
    while pool.busy_until and pool.busy_until[0] <= at_ms:
        ended_ms = heapq.heappop(pool.busy_until)
        pool.free += 1
        _start(pool, ended_ms, jobs, waits)


def _start(pool: _Pool, now_ms: float, jobs: Sequence[Job], waits: list[float]) -> None:
    while pool.free and pool.waiting:
        _, index = heapq.heappop(pool.waiting)
        waits[index] = now_ms - jobs[index].at_ms
        heapq.heappush(pool.busy_until, now_ms + jobs[index].service_ms)
        pool.free -= 1
