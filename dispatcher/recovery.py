"""Recovery: what happens when the cell has no history, because it is new or because Redis has lost everything.

A cell that has not begun takes no batch; workers, relay and tick go on. One dispatcher at a time, in this order:

1. no watermark was ever stored: the cell is new. Store one, then begin at the beginning of each partition;
2. else wait, so that the workers tell what they run, and their finishes count;
3. read what was published since the watermark, and let the cell remember the tasks that have ended;
4. place or park the carried tasks again, which are older than the watermark (carry.py);
5. begin: Kafka is read again from the watermark, and what is known already is skipped.

A dispatcher that dies before 5 leaves the cell as not begun, and another one starts again: every part may be repeated.
The cell begins with an offset for *every* partition: a lane that still stands where the lost history was is fenced.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import structlog

from taskyard.dispatcher.cell.contract import DispatcherCell, Incarnation
from taskyard.dispatcher.clients import History, Producer
from taskyard.dispatcher.kafka.history import Extent, Mark
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.settings import Settings
from taskyard.dispatcher.told import Told
from taskyard.schemas.entry import decode_entry
from taskyard.schemas.errors import SchemaError
from taskyard.schemas.topics import topics

log = structlog.get_logger()

# Longer than a page takes, or a pause between two steps. Two at it at once do no harm.
_LEASE_MS = 5_000
_REMEMBERED_AT_ONCE = 1_000
_RESTORED_AT_ONCE = 100
# Outcomes are read from so much before the watermark: clocks of brokers, dispatchers and Redis differ.
_MARGIN_MS = 60_000


class Replay(NamedTuple):
    """What of a lost cell is read again. records: how many those are; since_ms: from when on outcomes are read."""

    starts: dict[Incarnation, int]
    ends: dict[Incarnation, int]
    since_ms: int
    records: int


def replay_of(extents: Mapping[Incarnation, Extent], marks: Mapping[Incarnation, Mark]) -> Replay:
    """Begin each partition at its mark, or at its beginning if it has none: it was added, or made anew, since."""
    starts = {name: marks[name].offset if name in marks else extent.begin for name, extent in extents.items()}
    since_ms = min((mark.since_ms for mark in marks.values()), default=0)
    records = sum(max(0, extent.end - max(starts[name], extent.begin)) for name, extent in extents.items())
    ends = {name: extent.end for name, extent in extents.items()}
    return Replay(starts, ends, max(0, since_ms - _MARGIN_MS), records)


class Recovery:
    """Run by one asyncio task. owner: this dispatcher's random name, for the lease."""

    def __init__(
        self, cell: DispatcherCell, history: History, producer: Producer, settings: Settings, metrics: Metrics,
        owner: str, stopping: asyncio.Event,
    ) -> None:  # fmt: skip
        self._cell = cell
        self._history = history
        self._producer = producer
        self._results = topics(settings.prefix).results
        self._config = settings.cell_config()
        self._settings = settings.recovery
        self._metrics = metrics
        self._owner = owner
        self._stopping = stopping
        # Called when the history of the cell is another one by now. Set by the owner before the first step.
        self.on_other_history: Callable[[], None] = lambda: None
        self._generation = ""
        # Whether the cell takes batches, as the last step has seen it.
        self.is_begun = False
        # The generation that was found lost, and when that was (monotonic).
        self._lost = ""
        self._lost_s = 0.0

    async def step(self) -> None:
        """Look whether the cell has begun, and do what comes next if not. Raises DependencyError."""
        opening = await self._cell.open(self._config)
        self._note(is_begun=opening.is_begun)
        if self._generation not in ("", opening.generation):
            # The lanes may stand ahead of it, and where no new record comes nothing else would tell them.
            self.on_other_history()
        self._generation = opening.generation
        is_known = self._lost == opening.generation
        if opening.is_begun or (is_known and not self._settings.automatic) or not await self._keep():
            return
        if is_known and not self._is_due():
            return
        extents = await self._history.extents()
        marks = await self._history.marks()
        if not marks:
            await self._begin_new(opening.generation, extents)
        elif is_known:
            await self._recover(opening.generation, replay_of(extents, marks))
        else:
            self._lost, self._lost_s = opening.generation, time.monotonic()
            self._say_lost(extents, marks)
            if not self._settings.automatic:  # `taskyard recover` needs it
                await self._cell.lease("recovery", self._owner, ttl_ms=0)

    async def stop(self) -> None:
        """Close the connections and give the lease back."""
        try:
            await self._history.close()
            await self._producer.stop()
        finally:
            await self._cell.lease("recovery", self._owner, ttl_ms=0)

    async def _keep(self) -> bool:
        return await self._cell.lease("recovery", self._owner, ttl_ms=_LEASE_MS)

    def _note(self, *, is_begun: bool) -> None:
        self.is_begun = is_begun
        self._metrics.begun.set(is_begun)

    async def _begin_new(self, generation: str, extents: Mapping[Incarnation, Extent]) -> None:
        # The mark first: if the cell is lost a moment later, it must not look new again.
        await self._history.store({name: Mark(extent.begin, 0) for name, extent in extents.items()})
        await self._begin(generation, {name: extent.begin for name, extent in extents.items()}, {})

    def _is_due(self) -> bool:
        """Whether the workers have had their time."""
        return (time.monotonic() - self._lost_s) * 1000 >= self._settings.grace_ms

    def _say_lost(self, extents: Mapping[Incarnation, Extent], marks: Mapping[Incarnation, Mark]) -> None:
        wait = f"waits {self._settings.grace_ms} ms for the workers, then reads Kafka again"
        then = wait if self._settings.automatic else "nothing is placed until you run `taskyard recover --start`"
        log.error("cell_lost", generation=self._lost, records=replay_of(extents, marks).records, next=then)
        for name in sorted(marks.keys() - extents.keys()):
            log.error("topic_recreated", was=name, next="its old records are gone; the new ones are read")

    async def _recover(self, generation: str, replay: Replay) -> None:
        began_s = time.monotonic()
        ended = await self._remember_since(replay.since_ms)
        restored = None if ended is None else await self._restore()
        if restored is None or not await self._begin(generation, replay.starts, replay.ends):
            return
        self._metrics.recoveries.inc()
        log.warning("cell_recovered", records=replay.records, ended=ended, restored=restored,
                    took_s=time.monotonic() - began_s,
                    next="Kafka is read again from the watermark; what has ended or runs is skipped")  # fmt: skip

    async def _remember_since(self, since_ms: int) -> int | None:
        """Let the cell remember what has ended. None: interrupted."""
        log.info("outcomes_read_again", since_ms=since_ms)
        told, count = Told(), 0
        async with contextlib.aclosing(self._history.outcomes(since_ms)) as pages:
            async for page in pages:
                count += await self._remember(told.read(page))
                if self._stopping.is_set() or not await self._keep():
                    return None
        untold = told.left_untold()
        if untold:
            await self._producer.publish(
                [(self._results, name.encode(), body, headers) for name, body, headers in untold]
            )
        return count + await self._remember([name for name, *_ in untold])

    async def _remember(self, task_ids: Sequence[str]) -> int:
        count = 0
        for first in range(0, len(task_ids), _REMEMBERED_AT_ONCE):
            count += await self._cell.remember(task_ids[first : first + _REMEMBERED_AT_ONCE])
        return count

    async def _restore(self) -> int | None:
        """Place or park the carried tasks again. None: interrupted."""
        entries, count = [entry for entry in await self._history.carried() if _is_entry(entry)], 0
        for first in range(0, len(entries), _RESTORED_AT_ONCE):
            count += await self._cell.restore(entries[first : first + _RESTORED_AT_ONCE])
            if self._stopping.is_set() or not await self._keep():
                return None
        return count

    async def _begin(self, generation: str, starts: Mapping[Incarnation, int], ends: Mapping[Incarnation, int]) -> bool:
        # Lost once more meanwhile: what was remembered is gone, and all must be done again.
        begun = await self._cell.begin(starts, until=ends, generation=generation)
        if begun:
            self._note(is_begun=True)
            await self._history.close()
        return begun


def _is_entry(value: bytes) -> bool:
    try:
        decode_entry(value)
    except SchemaError as error:
        log.error("carried_task_unreadable", error=str(error), next="it is left in its topic")  # noqa: TRY400 - it says all
        return False
    return True
