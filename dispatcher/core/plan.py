"""The plan: which instance each task of a batch should run on.

State in, plan out: the cell checks every choice again and may place a task elsewhere or park it. The plan looks at its
view of the fleet and charges its own choices to it at once.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

from taskyard.dispatcher.core.fleet import Fleet, Instance, Pool
from taskyard.dispatcher.core.shapes import why_none

# What rebuilding costs for each member, measured, and the share of the time that it may take.
_REBUILD_MS = 0.001
_REBUILD_SHARE = 0.2


class Decision(NamedTuple):
    """Where one task should go. candidates: at most three, the best first; none: it will be parked, for `reason`."""

    candidates: tuple[Instance, ...]
    load: float
    runner_up_load: float
    pool_size: int
    reason: str


def plan(shapes: Sequence[str], fleet: Fleet, *, now_ms: float, tie: Callable[[], float]) -> list[Decision]:
    """Choose the least-loaded instance that can run each task, or say why none can.

    shapes: one per task, in order of their keys. fleet: the view; the choices are reserved in it.
    tie: decides between equal loads, `random.Random(seed).random`. Same shapes, view, time and seed, same plan.
    Cost: O(log n) per task for n instances. A heap costs O(n) and is rebuilt after a refresh, but all of them together
    take about a fifth of the time at most: with many shapes on a large fleet some are a little older than the view.
    """
    fleet.policy.bind(fleet.resources)
    decisions: list[Decision] = []
    for text in shapes:
        pool = fleet.pool(text)
        if pool.is_stale and (pool.is_new or now_ms >= fleet.rebuild_at_ms):
            _rebuild(pool, fleet, now_ms, tie)
        decision = _least_loaded(pool, fleet, now_ms, tie)
        decisions.append(decision or Decision((), 0.0, 0.0, 0, _why(pool, fleet)))
    return decisions


def _rebuild(pool: Pool, fleet: Fleet, now_ms: float, tie: Callable[[], float]) -> None:
    """Make the heap anew from the members that fit."""
    policy, need, is_critical, agent_type = fleet.policy, pool.need, pool.shape.is_critical, pool.shape.type
    pool.heap = [
        (policy(instance, agent_type, now_ms), tie(), instance.charge, instance)
        for instance in pool.members.values()
        if instance.fits(need, is_critical=is_critical)
    ]
    heapq.heapify(pool.heap)
    pool.is_new = pool.is_stale = False
    fleet.rebuild_at_ms = now_ms + _REBUILD_MS * len(pool.members) / _REBUILD_SHARE


def _least_loaded(pool: Pool, fleet: Fleet, now_ms: float, tie: Callable[[], float]) -> Decision | None:
    """Take the top of the heap; one that was filled through another pool sinks to where it belongs, or leaves."""
    heap = pool.heap
    while heap:
        load, _, charge, instance = heap[0]
        if instance.charge != charge:
            _sink(pool, instance, fleet, now_ms, tie)
            continue
        others = heap[1:3]
        candidates = (instance, *[other[3] for other in others])
        runner_up_load = min([other[0] for other in others], default=0.0)
        decision = Decision(candidates, load, runner_up_load, len(heap), "")
        instance.take(pool.need)
        _sink(pool, instance, fleet, now_ms, tie)
        return decision
    return None


def _sink(pool: Pool, instance: Instance, fleet: Fleet, now_ms: float, tie: Callable[[], float]) -> None:
    """Put the top, this instance, where its load is now; out of the heap if nothing fits it any more."""
    shape = pool.shape
    if instance.fits(pool.need, is_critical=shape.is_critical):
        entry = (fleet.policy(instance, shape.type, now_ms), tie(), instance.charge, instance)
        heapq.heapreplace(pool.heap, entry)
    else:
        heapq.heappop(pool.heap)


def _why(pool: Pool, fleet: Fleet) -> str:
    if not pool.reason:
        serving = fleet.serving(pool.shape.type)
        offers = ((i.types, dict(zip(fleet.resources, i.capacity, strict=False)), i.labels) for i in serving)
        pool.reason = why_none(pool.shape, list(offers))
    return pool.reason
