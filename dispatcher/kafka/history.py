"""The topics as the history of a cell: how far they reach, from where they would be read again, and what has ended."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from taskyard.dispatcher.cell.contract import Incarnation
from taskyard.dispatcher.kafka.marks import Stored, read_offsets, store_offsets
from taskyard.dispatcher.kafka.published import last_of_each_key, published_since
from taskyard.dispatcher.kafka.topics import describe_topics, incarnation
from taskyard.dispatcher.kafka.waits import stopped, timed
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.topics import Topics


class Extent(NamedTuple):
    """A partition of a task topic: its records are [begin, end)."""

    topic: str
    partition: int
    begin: int
    end: int


class Mark(NamedTuple):
    """The unfinished watermark of a partition: no unfinished task is below it.

    since_ms: no unfinished task, of whatever partition, had arrived before; no outcome of a task from the mark on was
    published before.
    """

    offset: int
    since_ms: int


class TopicHistory:
    """The history on Kafka. group: under which the marks are stored. One call at a time."""

    def __init__(self, bootstrap: str, topics: Topics, *, group: str) -> None:
        self._bootstrap = bootstrap
        self._topics = topics
        self._group = group
        # Made by the first call that needs it, and anew after a failure.
        self._consumer: Any = None
        # As the last `extents` has found them.
        self._extents: dict[Incarnation, Extent] = {}

    async def extents(self) -> dict[Incarnation, Extent]:
        """Ask for all partitions of the task topics. Raises DependencyError, also if a topic is missing."""
        names = list(self._topics.tasks.values())
        states = await describe_topics(self._bootstrap, names)
        if len(states) < len(names):
            missing = ", ".join(name for name in names if name not in states)
            raise DependencyError(f"topics are missing: {missing}; `taskyard doctor` says more")
        found = {incarnation(s, p): TopicPartition(n, p) for n, s in states.items() for p in range(s.partitions)}
        begins = await self._ask(lambda consumer: consumer.beginning_offsets(found.values()))
        ends = await self._ask(lambda consumer: consumer.end_offsets(found.values()))
        self._extents = {name: Extent(*place, begins[place], ends[place]) for name, place in found.items()}
        return self._extents

    async def first_since(self, since_ms: int) -> dict[Incarnation, int]:
        """Return, for each partition that `extents` has found, an offset that no record of since_ms or later is below.

        Absent: it has no such record. Raises DependencyError.
        """
        # A millisecond earlier: of a batch stamped with just that time Kafka's time index may point at the last record.
        wanted = {TopicPartition(e.topic, e.partition): max(0, since_ms - 1) for e in self._extents.values()}
        found = await self._ask(lambda consumer: consumer.offsets_for_times(wanted))
        offsets = {name: found[TopicPartition(e.topic, e.partition)] for name, e in self._extents.items()}
        return {name: offset.offset for name, offset in offsets.items() if offset is not None}

    async def marks(self) -> dict[Incarnation, Mark]:
        """Read the stored marks, also those of former lives of a topic. Raises DependencyError.

        An offset that another tool has set counts as of the topic's present life, if `extents` has found that, and all
        outcomes are then of interest.
        """
        stored = await read_offsets(self._bootstrap, self._group)
        names = {(extent.topic, extent.partition): name for name, extent in self._extents.items()}
        found: dict[Incarnation, Mark] = {}
        for (topic, partition), (offset, note) in stored.items():
            topic_id, _, since_ms = note.partition(" ")
            if since_ms.isdecimal():
                found[f"{topic_id}:{partition}"] = Mark(offset, int(since_ms))
            elif (topic, partition) in names:
                found[names[topic, partition]] = Mark(offset, 0)
        return found

    async def store(self, marks: Mapping[Incarnation, Mark]) -> None:
        """Store the marks of partitions that `extents` has found. Raises DependencyError."""
        places = {name: self._extents[name] for name in marks}
        notes = {name: f"{name.rpartition(':')[0]} {mark.since_ms}" for name, mark in marks.items()}
        await store_offsets(
            self._bootstrap,
            self._group,
            {(e.topic, e.partition): Stored(marks[name].offset, notes[name]) for name, e in places.items()},
        )

    def outcomes(self, since_ms: int) -> AsyncGenerator[list[bytes]]:
        """Yield pages of what was published since then, `dead-letter` first, then `results`. Raises DependencyError."""
        return published_since(self._bootstrap, [self._topics.dead_letter, self._topics.results], since_ms)

    async def carried(self) -> list[bytes]:
        """Read the entries of the carried tasks. Raises DependencyError."""
        return list((await last_of_each_key(self._bootstrap, self._topics.carried)).values())

    async def close(self) -> None:
        """Close the connection; the next call opens it again."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stopped(consumer.stop())

    async def _ask(self, question: Callable[[Any], Awaitable[Any]]) -> Any:
        try:
            if self._consumer is None:
                self._consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, enable_auto_commit=False)
                await timed(self._consumer.start(), f"reach Kafka at {self._bootstrap}")
            return await timed(question(self._consumer), "look up offsets")
        except DependencyError:
            await self.close()
            raise
