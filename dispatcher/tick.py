"""The tick: what must happen from time to time, done by one dispatcher of the cell at a time.

Two at once do no harm: each call takes effect whole, and the cell decides by its own state and clock what is due.
"""

import structlog

from taskyard.dispatcher.cell.contract import DispatcherCell, FleetView
from taskyard.dispatcher.core.fleet import Fleet
from taskyard.dispatcher.core.matching import to_hold, to_settle
from taskyard.dispatcher.lease import Lease
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.settings import Settings

log = structlog.get_logger()

_LEASE_MS = 2_000
# Tasks moved in one call: the server answers nobody else meanwhile.
_AT_ONCE = 200
# Calls of one kind in one tick, so that a large eviction does not keep the settling waiting.
_CALLS = 10
# Recalls: once in so many ticks.
_SELDOM = 10


class Tick:
    """Run by one asyncio task. owner: this dispatcher's random name, for the lease."""

    def __init__(
        self, cell: DispatcherCell, view: FleetView, fleet: Fleet, settings: Settings, metrics: Metrics, owner: str
    ) -> None:
        self._cell = cell
        self._view = view
        self._fleet = fleet
        self._settings = settings
        self._metrics = metrics
        self._lease = Lease(cell, "tick", owner, _LEASE_MS)
        self._count = 0

    async def step(self) -> None:
        """Do all that is due, if the lease is ours. Raises DependencyError."""
        if not await self._lease.held():
            return
        self._count += 1
        if self._count % _SELDOM == 1:
            await self._recall()
        await self._evict()
        self._moved("due", await self._cell.due(limit=_AT_ONCE))
        self._moved("expired", await self._cell.expire(limit=_AT_ONCE))
        await self._settle()

    async def stop(self) -> None:
        """Give the lease back, so that another takes over at once."""
        await self._lease.give_back()

    async def _evict(self) -> None:
        for _ in range(_CALLS):
            evicted = await self._cell.evict(limit=_AT_ONCE)
            if evicted is None:
                return
            instance, left = evicted
            self._moved("evicted", 1)
            if not left:
                log.warning("instance_evicted", instance=instance, reason="its lease ran out",
                            next="its tasks are placed or parked again")  # fmt: skip

    async def _recall(self) -> None:
        """Take back what instances that beat have not read."""
        names = list(self._fleet.instances)
        for first in range(0, len(names), _AT_ONCE):
            count = await self._cell.recall(
                names[first : first + _AT_ONCE], min_age_ms=self._settings.tick.recall_after_ms, limit=_AT_ONCE
            )
            if count:
                log.warning("tasks_recalled", count=count, next="their instances are cordoned until they read again")
            self._moved("recalled", count)

    async def _settle(self) -> None:
        parked = await self._view.shapes()
        if not parked:
            return
        # The cell's clock, by which tasks are old: this machine's may be wrong by minutes.
        now_ms = (await self._view.level()).now_ms
        for shape, instance in to_hold(
            parked, self._fleet, now_ms=now_ms, hold_after_ms=self._settings.order.hold_after_ms
        ):
            if await self._cell.hold(shape, instance):
                log.info("instance_held", instance=instance, shape=shape)
        self._moved("settled", await self._cell.settle(to_settle(parked, self._fleet), limit=_AT_ONCE))

    def _moved(self, by: str, count: int) -> None:
        if count:
            self._metrics.moved.labels(by).inc(count)
