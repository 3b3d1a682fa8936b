"""The plan: which instance each task of a batch should run on.

State in, plan out: the cell checks every choice again and may place a task elsewhere or park it. The plan looks at its
view of the fleet and charges its own choices to it at once.
"""

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heapreplace
from itertools import groupby

import msgspec

from taskyard.dispatcher.core.fleet import Fleet, Heap, Instance, Pool
from taskyard.dispatcher.core.load import LoadPolicy
from taskyard.dispatcher.core.shapes import why_none

# What rebuilding costs for each member, measured, and the share of the time that it may take.
_REBUILD_MS = 0.001
_REBUILD_SHARE = 0.2


class Decision(msgspec.Struct, frozen=True, gc=False):
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
    for text, run in groupby(shapes):
        pool = fleet.pool(text)
        if pool.is_stale and (pool.is_new or _may_rebuild(fleet, now_ms)):
            _rebuild(pool, fleet, now_ms, tie)
        count = len(list(run))
        placed = _least_loaded(pool, count, fleet.policy, now_ms, tie)
        decisions += placed
        if len(placed) < count:
            decisions += [Decision((), 0.0, 0.0, 0, _why(pool, fleet))] * (count - len(placed))
    return decisions


def _may_rebuild(fleet: Fleet, now_ms: float) -> bool:
    # A clock may be set back by minutes, through which no heap would be rebuilt.
    return now_ms >= fleet.rebuild_at_ms or now_ms < fleet.rebuilt_ms


def _rebuild(pool: Pool, fleet: Fleet, now_ms: float, tie: Callable[[], float]) -> None:
    """Make the heap anew from the members that fit."""
    load_of, need, is_critical, agent_type = fleet.policy.__call__, pool.need, pool.shape.is_critical, pool.shape.type
    pool.heap = [
        (load_of(instance, agent_type, now_ms), tie(), instance.charge, instance)
        for instance in pool.members.values()
        if instance.fits(need, is_critical=is_critical)
    ]
    heapify(pool.heap)
    pool.is_new = pool.is_stale = False
    fleet.rebuilt_ms = now_ms
    fleet.rebuild_at_ms = now_ms + _REBUILD_MS * len(pool.members) / _REBUILD_SHARE


def _least_loaded(
    pool: Pool, count: int, policy: LoadPolicy, now_ms: float, tie: Callable[[], float]
) -> list[Decision]:
    """Place so many tasks, or as many as there is room for, each on the top of the heap.

    The top then sinks to where its load is now, or leaves the heap if nothing fits it any more; so does one that was
    filled through another pool, unused.
    """
    heap, need, agent_type, is_critical = pool.heap, pool.need, pool.shape.type, pool.shape.is_critical
    load_of = policy.__call__  # a method is called faster than an object
    decisions: list[Decision] = []
    while heap and len(decisions) < count:
        _, _, charge, instance = heap[0]
        if instance.charge == charge:
            decisions.append(_top(heap))
            instance.take(need)
        if instance.fits(need, is_critical=is_critical):
            heapreplace(heap, (load_of(instance, agent_type, now_ms), tie(), instance.charge, instance))
        else:
            heappop(heap)
    return decisions


def _top(heap: Heap) -> Decision:
    """Choose the top, and the two behind it in case that the cell finds it full."""
    load, _, _, first = heap[0]
    if len(heap) == 1:
        return Decision((first,), load, 0.0, 1, "")
    second_load, _, _, second = heap[1]
    if len(heap) == 2:
        return Decision((first, second), load, second_load, 2, "")
    third_load, _, _, third = heap[2]
    runner_up_load = second_load if second_load < third_load else third_load  # noqa: FURB136 - a call takes longer
    return Decision((first, second, third), load, runner_up_load, len(heap), "")


def _why(pool: Pool, fleet: Fleet) -> str:
    if not pool.reason:
        serving = fleet.serving(pool.shape.type)
        offers = ((i.types, dict(zip(fleet.resources, i.capacity, strict=False)), i.labels) for i in serving)
        pool.reason = why_none(pool.shape, list(offers))
    return pool.reason
