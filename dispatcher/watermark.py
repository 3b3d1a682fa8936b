"""The unfinished watermark: from where Kafka must be read again if the cell is lost for good.

Per partition, an offset that no unfinished task is below, stored in a consumer group of its own. It is measured so:

1. read `applied` of every partition, then `unfinished`, whose first bucket begins at `since_ms`;
2. ask Kafka for the first offset of each partition that has a record of since_ms or later;
3. the watermark is the smaller one of that and of `applied`.

Why no unfinished task is below it: a task at `applied` or above is not, by 3. One below had taken effect before
`unfinished` was read; if it had not ended by then it was counted, so its record is of since_ms or later, and 2 gave an
offset no higher than its own. That holds for timestamps in any order: Kafka tells the *first* such offset.

A task that has ended is no more read again, so its outcome must be safe. Therefore a measured watermark is stored only
after all that was in the outbox when it was measured has been published. And all of it must be of one history: if the
generation has changed meanwhile, it is thrown away. A watermark that is too low only means that more is read again: so
of two that measure at once the one that stores last does no harm.
"""

import time
from collections.abc import Mapping
from typing import NamedTuple

import structlog

from taskyard.dispatcher.cell.contract import Batch, DispatcherCell, FleetView, Incarnation, Opening, Range
from taskyard.dispatcher.clients import History
from taskyard.dispatcher.kafka.history import Mark
from taskyard.dispatcher.lease import Lease
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.settings import Settings

log = structlog.get_logger()

_LEASE_MS = 10_000


class Measured(NamedTuple):
    """A watermark that waits for the outbox. behind: records from the marks to what is applied.

    newest: of the outbox when it was measured; empty: there was none. By ids, for a server's clock may go back.
    """

    opening: Opening
    marks: dict[Incarnation, Mark]
    age_ms: int
    behind: int
    newest: str


class Watermark:
    """Run by one asyncio task. owner: this dispatcher's random name, for the lease."""

    def __init__(
        self, cell: DispatcherCell, view: FleetView, history: History, settings: Settings, metrics: Metrics, owner: str
    ) -> None:
        self._cell = cell
        self._view = view
        self._history = history
        self._config = settings.cell_config()
        self._every_s = settings.recovery.watermark_ms / 1000
        self._metrics = metrics
        self._lease = Lease(cell, "watermark", owner, _LEASE_MS)
        self._pending: Measured | None = None
        # Monotonic.
        self._measured_s = -self._every_s

    async def step(self) -> None:
        """Measure and store it if that is due and the lease is ours. Raises DependencyError."""
        if not await self._lease.held():
            self._pending = None
            self._tell(0, 0)  # another's to tell
            return
        if self._pending is None and time.monotonic() - self._measured_s >= self._every_s:
            self._pending = await self._measure()
            self._measured_s = time.monotonic()
        if self._pending is not None:
            await self._settle(self._pending)

    async def stop(self) -> None:
        """Close the connection and give the lease back."""
        try:
            await self._history.close()
        finally:
            await self._lease.give_back()

    async def _measure(self) -> Measured | None:
        """Measure; None if the cell has not begun, is being read again, or has another history by now."""
        opening = await self._cell.open(self._config)
        if not opening.is_begun:
            return None
        extents = await self._history.extents()
        # Of a replay only the former marks tell from when on outcomes must be read, if the cell is lost once more.
        if opening.replaying:
            await self._end_replay({name: end for name, end in opening.replaying.items() if name not in extents})
            return None
        applied = await self._cell.applied(list(extents))
        buckets = await self._view.unfinished()
        newest = await self._cell.newest_outgoing()
        now_ms = (await self._view.level()).now_ms
        if await self._cell.open(self._config) != opening:
            return None
        stand = {name: applied.get(name, extent.begin) for name, extent in extents.items()}
        since_ms = max(0, min([now_ms, *buckets]))
        first: dict[Incarnation, int] = {}
        if buckets:
            # Records without a timestamp cannot be looked up.
            whole = {name: extent.begin for name, extent in extents.items()}
            first = await self._history.first_since(since_ms) if since_ms else whole
        marks = {name: Mark(min(at, first.get(name, at)), since_ms) for name, at in stand.items()}
        behind = sum(at - marks[name].offset for name, at in stand.items())
        return Measured(opening, marks, now_ms - since_ms, behind, newest)

    async def _end_replay(self, gone: Mapping[Incarnation, int]) -> None:
        """Let the cell note that there is nothing left to read of topics that were deleted while they were replayed."""
        applied = await self._cell.applied(list(gone))
        ranges = [Range(name, applied[name], end) for name, end in gone.items() if applied.get(name, end) < end]
        if ranges:
            await self._cell.apply(Batch(tuple(ranges), (), (), ()))
            log.error("replay_cut_short", partitions=[name for name, *_ in ranges],
                      next="their topic was deleted while it was read again; its open tasks are lost")  # fmt: skip

    async def _settle(self, measured: Measured) -> None:
        """Store it once everything that had ended by then is published; until then it stays pending."""
        oldest = await self._cell.outbox(count=1)
        if await self._cell.open(self._config) != measured.opening:
            self._pending = None  # an outbox that is empty because the cell was lost says nothing
            return
        if oldest and measured.newest and _parts(oldest[0].stream_id) <= _parts(measured.newest):
            return
        self._pending = None
        await self._history.store(measured.marks)
        self._tell(measured.age_ms, measured.behind)
        log.debug("watermark_stored", age_ms=measured.age_ms, behind=measured.behind)

    def _tell(self, age_ms: int, behind: int) -> None:
        self._metrics.watermark_age.set(age_ms / 1000)
        self._metrics.watermark_behind.set(behind)


def _parts(stream_id: str) -> tuple[int, ...]:
    return tuple(map(int, stream_id.split("-")))
