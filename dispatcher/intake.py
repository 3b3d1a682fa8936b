"""Intake: reads one priority's topic, from the offsets that the cell has applied.

The cell's offsets decide, never the group's. After each change of the assignment nothing is handed out until the
applied offsets were read and sought: aiokafka returns records from its own idea of the position before that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import structlog

from taskyard.dispatcher.arrivals import Arrival, Reader
from taskyard.dispatcher.cell.contract import DispatcherCell, Incarnation, Range
from taskyard.dispatcher.kafka.consumer import Record, TopicConsumer, Unreadable
from taskyard.dispatcher.kafka.topics import TopicState, incarnation
from taskyard.dispatcher.metrics import Metrics
from taskyard.schemas.codec import JSON
from taskyard.schemas.outcome import DeadLetter

log = structlog.get_logger()


class Chunk(NamedTuple):
    """What one poll gave. ranges: what of each partition it covers; turn: which positioning it belongs to."""

    ranges: tuple[Range, ...]
    arrivals: Sequence[Arrival]
    refused: Sequence[bytes]
    turn: int


class Intake:
    """Owned by one lane, except for `_assigned`, which the consumer calls on the same loop."""

    def __init__(self, consumer: TopicConsumer, reader: Reader, cell: DispatcherCell, metrics: Metrics) -> None:
        consumer.on_change = self._assigned
        self.consumer = consumer
        self._reader = reader
        self._priority = reader.priority
        self._cell = cell
        self._metrics = metrics
        self._topic = TopicState("", 0)
        # Written by _assigned and rewind; a chunk of an earlier turn is worth nothing.
        self._turn = 0
        self._ours: frozenset[int] = frozenset()
        # Partition -> next offset to hand out. Absent: its records are dropped until it was sought.
        self._next: dict[int, int] = {}
        # Partition -> offset up to which the cell has said yes; what is committed.
        self._applied: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._is_sought = True
        self._measured: frozenset[int] = frozenset()

    @property
    def is_positioned(self) -> bool:
        """Whether it reads, or has nothing to read."""
        return self._is_sought

    def _assigned(self, partitions: frozenset[int]) -> None:
        self._ours = partitions
        log.info("partitions_assigned", priority=self._priority, partitions=sorted(partitions))
        self.rewind()

    def rewind(self) -> None:
        """Forget all positions: the next poll reads from what the cell has applied."""
        self._turn += 1
        self._next = {}
        self._is_sought = False

    def is_current(self, chunk: Chunk) -> bool:
        """Whether the chunk follows what was applied, as far as is known here."""
        return chunk.turn == self._turn

    async def poll(self, *, records: int, timeout_ms: int) -> Chunk | None:
        """Return the next records, decoded; None if there are none yet. Raises DependencyError."""
        if not self._is_sought:
            await self._position()
        found = await self.consumer.poll(records=records, timeout_ms=timeout_ms)
        ranges: list[Range] = []
        arrivals: list[Arrival] = []
        refused: list[bytes] = []
        for partition, rows in found.items():
            start = self._next.get(partition)
            if start is None:
                continue
            if rows[0].offset < start:
                # The log is shorter than what was applied: the topic was made anew.
                log.warning("partition_went_back", priority=self._priority, partition=partition, applied=start)
                self.rewind()
                return None
            self._read(partition, rows, arrivals, refused)
            end = self._next[partition] = rows[-1].offset + 1
            ranges.append(Range(self._incarnation(partition), start, end))
        return Chunk(tuple(ranges), arrivals, refused, self._turn) if ranges else None

    def _read(self, partition: int, rows: Sequence[Record], arrivals: list[Arrival], refused: list[bytes]) -> None:
        for record in rows:
            is_readable = type(record) is not Unreadable
            read = (self._reader.read if is_readable else self._reader.refuse)(record, partition)
            if isinstance(read, DeadLetter):
                log.warning("record_refused", priority=self._priority, partition=partition, offset=read.offset,
                            reason=read.reason, detail=read.detail)  # fmt: skip
                self._metrics.refused.labels(self._priority, read.reason).inc()
                refused.append(JSON.encode_dead_letter(read))
            else:
                arrivals.append(read)

    def applied(self, chunk: Chunk) -> None:
        """Note that the cell has applied the chunk."""
        for partition, _, end in chunk.ranges:
            self._applied[int(partition.rpartition(":")[2])] = end

    async def commit(self) -> None:
        """Store what was applied in the consumer group, where ordinary tools look for lag."""
        due = {p: end for p, end in self._applied.items() if p in self._ours and self._committed.get(p) != end}
        await self.consumer.commit(due)
        self._committed.update(due)

    async def measure_lag(self) -> None:
        """Set the lag of our partitions."""
        ends = await self.consumer.ends(self._ours)
        for partition in self._measured - self._ours:  # another's now, which tells its lag itself
            self._metrics.lag.remove(self._priority, str(partition))
        self._measured = self._ours
        for partition in self._ours & ends.keys():
            behind = max(0, ends[partition] - self._applied.get(partition, 0))
            self._metrics.lag.labels(self._priority, str(partition)).set(behind)

    async def _position(self) -> None:
        """Seek every partition of ours to what the cell has applied, or to its beginning where that is nothing."""
        turn, ours = self._turn, self._ours
        self._topic = await self.consumer.describe()
        beginnings = await self.consumer.beginnings(ours) if ours else {}
        applied = await self._cell.applied([self._incarnation(partition) for partition in ours])
        if turn != self._turn:
            return
        offsets: dict[int, int] = {}
        for partition in ours:
            begins = beginnings.get(partition, 0)
            start = applied.get(self._incarnation(partition), begins)
            if start < begins:
                # Kept short by the topic's retention. Nothing can be read any more; saying so is all that is left.
                log.error("records_lost_to_retention", priority=self._priority, partition=partition,
                          applied=start, begins=begins)  # fmt: skip
            offsets[partition] = start
        self.consumer.seek(offsets)
        self._next, self._applied, self._is_sought = offsets, dict(offsets), True
        log.info("partitions_positioned", priority=self._priority, offsets=offsets, topic_id=self._topic.id)

    def _incarnation(self, partition: int) -> Incarnation:
        return incarnation(self._topic, partition)
