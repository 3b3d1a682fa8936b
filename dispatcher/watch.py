"""Watching the fleet: keeps the plan's view fresh and the gauges true."""

import time

from taskyard.dispatcher.cell.contract import FleetView, Level
from taskyard.dispatcher.core.fleet import Fleet
from taskyard.dispatcher.metrics import Metrics

# Reports change with each beat, a third of a lease; the vectors are read far more often.
_WHOLE_EVERY_S = 1.0
# Reading takes at most this share of the loop's time, whatever the size of the fleet.
_SHARE = 0.1
# But it pauses no longer than this, well below the age at which a view is no ground to place on: what took long may
# have been a slow link, where the loop only waited, and the tick settles by this view.
_LONGEST_PAUSE_S = 2.0


class Watch:
    """Run by one asyncio task, which alone writes the fleet, apart from the lanes' own placements."""

    def __init__(self, view: FleetView, fleet: Fleet, metrics: Metrics) -> None:
        self._view = view
        self._fleet = fleet
        self._metrics = metrics
        self._whole_s = -_WHOLE_EVERY_S
        self._not_before_s = 0.0

    async def step(self) -> None:
        """Read the vectors, or the whole fleet if it is time or has changed. Raises DependencyError."""
        began_s = time.monotonic()
        if began_s < self._not_before_s:
            return
        if began_s - self._whole_s >= _WHOLE_EVERY_S or not await self._refreshed():
            level = await self._view.level()
            level_s = time.monotonic()
            resources = await self._view.resources()
            views = await self._view.instances()
            self._fleet.tell_time(level.now_ms, mono_s=level_s)
            self._fleet.replace(views, resources, now_ms=self._fleet.time_ms(time.monotonic()))
            self._whole_s = time.monotonic()
            self._measure(level)
        took_s = time.monotonic() - began_s
        self._not_before_s = began_s + min(took_s / _SHARE, took_s + _LONGEST_PAUSE_S)

    async def _refreshed(self) -> bool:
        vectors = await self._view.vectors()
        return self._fleet.refresh(vectors, now_ms=self._fleet.time_ms(time.monotonic()))

    def _measure(self, level: Level) -> None:
        self._metrics.parked.set(level.parked)
        self._metrics.parked_bytes.set(level.parked_bytes)
        self._metrics.later.set(level.later)
        self._metrics.outbox.set(level.outbox)
        instances = self._fleet.instances.values()
        slots = sum(instance.capacity[0] for instance in instances)
        free = sum(instance.free[0] for instance in instances)
        self._metrics.utilisation.set(1 - free / slots if slots else 0)
        open_count = sum(instance.is_open for instance in instances)
        self._metrics.instances.labels("open").set(open_count)
        self._metrics.instances.labels("closed").set(len(instances) - open_count)
