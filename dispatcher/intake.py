"""Intake: reads one priority's topic, from the offsets that the cell has applied.

The cell's offsets decide, never the group's. After each change of the assignment nothing is handed out until the
applied offsets were read and sought: aiokafka returns records from its own idea of the position before that.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import structlog

from taskyard.dispatcher.arrivals import Arrival, Reader
from taskyard.dispatcher.cell.contract import Applied, Batch, DispatcherCell, Incarnation, Range
from taskyard.dispatcher.clients import Consumer
from taskyard.dispatcher.kafka.consumer import Record, Unreadable
from taskyard.dispatcher.kafka.topics import TopicState, incarnation
from taskyard.dispatcher.metrics import Metrics
from taskyard.schemas.codec import JSON
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.outcome import DeadLetter

log = structlog.get_logger()

# How long a log must have been shorter than what was applied, to be taken for cut.
_CUT_FOR_S = 3.0


class Chunk(NamedTuple):
    """What one poll gave. ranges: what of each partition it covers; turn: which positioning it belongs to."""

    ranges: tuple[Range, ...]
    arrivals: Sequence[Arrival]
    refused: Sequence[bytes]
    turn: int


class Intake:
    """Owned by one lane, except for `_assigned`, which the consumer calls on the same loop."""

    def __init__(self, consumer: Consumer, reader: Reader, cell: DispatcherCell, metrics: Metrics) -> None:
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
        # Partition -> since when its log has been shorter than what was applied, monotonic.
        self._cut_s: dict[int, float] = {}
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
                # The log is shorter than what was applied: it was cut, or the topic was made anew. Positioning tells.
                log.warning("partition_went_back", priority=self._priority, partition=partition, applied=start)
                self.rewind()
                return None
            self._read(partition, rows, arrivals, refused)
            end = self._next[partition] = rows[-1].offset + 1
            ranges.append(Range(self._incarnation(partition), start, end))
        return Chunk(tuple(ranges), arrivals, refused, self._turn) if ranges else None

    def _read(self, partition: int, rows: Sequence[Record], arrivals: list[Arrival], refused: list[bytes]) -> None:
        reader = self._reader
        for record in rows:
            is_readable = type(record) is not Unreadable
            read = (reader.read if is_readable else reader.refuse)(record, partition)
            if isinstance(read, Arrival):
                arrivals.append(read)
            else:
                refused.append(self._refused(partition, read))

    def _refused(self, partition: int, letter: DeadLetter) -> bytes:
        log.warning("record_refused", priority=self._priority, partition=partition, offset=letter.offset,
                    reason=letter.reason, detail=letter.detail)  # fmt: skip
        self._metrics.refused.labels(self._priority, letter.reason).inc()
        return JSON.encode_dead_letter(letter)

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

    async def check_topic(self) -> None:
        """Begin anew if the topic is another one by now: its offsets would be taken for those of the former one."""
        found = await self.consumer.describe()
        if self._topic.id and found.id != self._topic.id and self._is_sought:
            self.rewind()

    async def _position(self) -> None:
        """Seek every partition of ours to what the cell has applied, or to its beginning where that is nothing."""
        turn, ours = self._turn, self._ours
        self._describe(await self.consumer.describe())
        beginnings = await self.consumer.beginnings(ours) if ours else {}
        applied = await self._cell.applied([self._incarnation(partition) for partition in ours])
        ends = await self.consumer.ends(ours) if ours else {}  # after `applied`, or it might look cut
        offsets = {p: applied.get(self._incarnation(p), beginnings.get(p, 0)) for p in ours}
        offsets |= await self._follow_logs(offsets, beginnings, ends)
        for partition in ours:
            begins = beginnings.get(partition, 0)
            if begins and self._incarnation(partition) not in applied:
                await self._move(partition, begins, begins)  # only from 0 may it be begun without a word
        if turn != self._turn:
            return
        self.consumer.seek(offsets)
        self._next, self._applied, self._is_sought = offsets, dict(offsets), True
        log.info("partitions_positioned", priority=self._priority, offsets=offsets, topic_id=self._topic.id)

    def _describe(self, found: TopicState) -> None:
        if self._topic.id not in ("", found.id):
            log.error("topic_recreated", priority=self._priority, was=self._topic.id, topic_id=found.id,
                      next="its old records are gone; the new ones are read from their beginning")  # fmt: skip
            self._committed = {}
        self._topic = found

    async def _follow_logs(
        self, offsets: Mapping[int, int], begins: Mapping[int, int], ends: Mapping[int, int]
    ) -> dict[int, int]:
        """Move the applied offsets that lie outside of their logs to where these begin or end; returns the moved ones.

        Below its beginning: the topic's retention has taken what was not read yet. Above its end: Kafka has cut the log
        (unclean election); what is published next has offsets that were applied already, and would never be read. A
        broker that has just ceased to lead may tell an end that is too low, so it must stay so for a while; if it is
        wrong all the same, what is read twice is known by its id. Raises DependencyError: not yet.
        """
        short = {p: begins[p] for p, start in offsets.items() if start < begins.get(p, 0)}
        cut = {p: ends[p] for p, start in offsets.items() if start > ends.get(p, start)}
        now_s = time.monotonic()
        self._cut_s = {partition: self._cut_s.get(partition, now_s) for partition in cut}
        if any(now_s - first_s < _CUT_FOR_S for first_s in self._cut_s.values()):
            raise DependencyError(f"logs end below what was applied; waits whether it stays so: {dict(cut)}")
        for by, moved in (("retention", short), ("truncation", cut)):
            for partition, to in moved.items():
                await self._move(partition, offsets[partition], to)
                self._metrics.lost.labels(self._priority, by).inc(abs(to - offsets[partition]))
                log.error("records_lost", by=by, priority=self._priority, partition=partition,
                          applied=offsets[partition], next=f"reads on from {to}; see the topic's retention.ms, "
                          "min.insync.replicas, unclean.leader.election.enable")  # fmt: skip
        return short | cut

    async def _move(self, partition: int, applied: int, to: int) -> None:
        """Let the cell note another offset, if it still stands at `applied`: a batch without tasks does just that."""
        batch = Batch((Range(self._incarnation(partition), applied, to),), (), (), ())
        if not isinstance(await self._cell.apply(batch), Applied):
            raise DependencyError(f"the cell does not move partition {partition} from {applied} to {to} yet")

    def _incarnation(self, partition: int) -> Incarnation:
        return incarnation(self._topic, partition)
