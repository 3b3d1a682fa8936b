"""Kafka, as the dispatcher uses it: the one place of this layer that imports aiokafka.

Its errors become DependencyError; every wait has an end.
"""

import asyncio
import contextlib
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any, ClassVar, NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, TopicAlreadyExistsError
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from taskyard.dispatcher.cell.contract import Incarnation
from taskyard.dispatcher.settings import TopicSettings
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.topics import Topics

Record = Any
"""aiokafka's ConsumerRecord: offset, timestamp (ms), key, value, headers."""

T = TypeVar("T")

_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0
# Intake does not poll while the park is full. Heartbeats go on; what stands still is seen in the lag, not here.
_POLL_INTERVAL_MS = 24 * 3_600_000
_FETCH_WAIT_MS = 50
# More than any entry weighs; what the topic takes is the broker's to say.
_MAX_REQUEST_BYTES = 64 << 20
_CREATED_WITHIN_S = 5.0
_POLL_S = 0.05
_MAX_REFUSALS = 5
_BATCH_BYTES = 512 << 10


class _Uuid(AbstractType[bytes]):
    """A topic id: 16 raw bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _MetadataResponse(Response):
    # aiokafka's own responses do the same.
    API_KEY = 3  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    API_VERSION = 12  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32), ("host", CompactString()), ("port", Int32), ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16), ("name", CompactString()), ("topic_id", _Uuid), ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)), ("isr", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)), ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32), ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )  # fmt: skip


class _MetadataRequestV12(RequestStruct):
    FLEXIBLE_VERSION: ClassVar[bool] = True
    API_KEY: ClassVar[int] = 3
    API_VERSION: ClassVar[int] = 12
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _DescribeTopics(Request[_MetadataRequestV12]):
    """Metadata version 12, the first to show topic ids; aiokafka itself stops at 5 (KIP-516)."""

    API_KEY: ClassVar[int] = 3

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[_MetadataRequestV12]) -> _MetadataRequestV12:
        return request_struct_class([(bytes(16), name, {}) for name in self._names], False, False, {})


class TopicState(NamedTuple):
    """A topic as the broker has it. id: 32 hexadecimal characters, another for each life of the topic."""

    id: str
    partitions: int


def incarnation(topic: TopicState, partition: int) -> Incarnation:
    """Name a partition of this life of the topic."""
    return f"{topic.id}:{partition}"


async def describe_topics(bootstrap: str, names: Sequence[str]) -> dict[str, TopicState]:
    """Ask for the topics' ids and partition counts; a missing topic is absent. Raises DependencyError."""
    async with _client(bootstrap) as client:
        reply = await _timed(client.send(client.get_random_node(), _DescribeTopics(names)), "describe topics")
    return {
        name: TopicState(topic_id.hex(), len(partitions))
        for error, name, topic_id, _, partitions, _, _ in reply.topics
        if error == 0
    }


async def create_topics(bootstrap: str, partitions: Mapping[str, int], *, replication: int) -> None:
    """Create topics that are missing. The broker's clock stamps their records: order keys are made from it."""
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=int(_TIMEOUT_S * 1000))
    settings = {"message.timestamp.type": "LogAppendTime"}
    async with _running(admin, admin.close, f"Kafka at {bootstrap}"):
        for name, count in partitions.items():
            topic = NewTopic(name, num_partitions=count, replication_factor=replication, topic_configs=settings)
            with contextlib.suppress(TopicAlreadyExistsError):
                await _timed(admin.create_topics([topic]), f"create topic {name}")


class TopicFault(NamedTuple):
    """What is wrong with a topic. is_fatal: the cell cannot work with it."""

    topic: str
    what: str
    is_fatal: bool


async def check_topics(bootstrap: str, topics: Topics, settings: TopicSettings) -> list[TopicFault]:
    """Create missing topics if the settings say so; return what differs from them afterwards."""
    states = await describe_topics(bootstrap, topics.names)
    missing = {name: settings.partitions for name in topics.names if name not in states}
    if missing and settings.create:
        await create_topics(bootstrap, missing, replication=settings.replication)
        states = await _described_in_time(bootstrap, topics.names)
    faults = [TopicFault(name, "is missing", is_fatal=True) for name in topics.names if name not in states]
    return faults + [
        TopicFault(name, f"has {state.partitions} partitions, the settings say {settings.partitions}", is_fatal=False)
        for name, state in states.items()
        if state.partitions != settings.partitions
    ]


async def _described_in_time(bootstrap: str, names: Sequence[str]) -> dict[str, TopicState]:
    """Describe topics that were just created; a broker may learn of them a moment later."""
    states: dict[str, TopicState] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CREATED_WITHIN_S):
            while len(states) < len(names):
                states = await describe_topics(bootstrap, names)
                await asyncio.sleep(_POLL_S)
    return states


async def lag(
    bootstrap: str,
    names: Sequence[str],
    applied: Callable[[Sequence[Incarnation]], Awaitable[Mapping[Incarnation, int]]],
) -> dict[str, int]:
    """Records that are not applied yet, per topic. applied: `DispatcherCell.applied`, whose offsets decide."""
    states = await describe_topics(bootstrap, names)
    consumer: Any = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    async with _running(consumer, consumer.stop, f"Kafka at {bootstrap}"):
        partitions = [TopicPartition(name, p) for name, state in states.items() for p in range(state.partitions)]
        ends: dict[Any, int] = await _timed(consumer.end_offsets(partitions), "read end offsets")
        starts: dict[Any, int] = await _timed(consumer.beginning_offsets(partitions), "read beginning offsets")
    incarnations = {p: incarnation(states[p.topic], p.partition) for p in partitions}
    stand = await applied(list(incarnations.values()))
    behind = dict.fromkeys(names, 0)
    for partition, name in incarnations.items():
        behind[partition.topic] += max(0, ends[partition] - stand.get(name, starts[partition]))
    return behind


class Unreadable(NamedTuple):
    """Stands for a record that the client cannot decode. timestamp: when that was seen, Unix ms."""

    offset: int
    timestamp: int
    fault: str
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


class TopicConsumer(ConsumerRebalanceListener):
    """A member of the consumer group of one topic. Offsets are the caller's: nothing is committed by itself."""

    def __init__(self, bootstrap: str, topic: str, *, group: str, session_timeout_ms: int) -> None:
        self.topic = topic
        # Called, on the loop, whenever partitions come or go; must not wait. Set by the owner before start.
        self.on_change: Callable[[frozenset[int]], None] = lambda _: None
        self._bootstrap = bootstrap
        self._settings: dict[str, Any] = {
            "group_id": group,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "session_timeout_ms": session_timeout_ms,
            "heartbeat_interval_ms": max(session_timeout_ms // 4, 250),
            "max_poll_interval_ms": _POLL_INTERVAL_MS,
            "fetch_max_wait_ms": _FETCH_WAIT_MS,
            "retry_backoff_ms": 100,
        }
        # Written by start only.
        self._consumer: Any = None
        # Whether a record that cannot be decoded is being looked for.
        self._is_careful = False
        # Reads in a row that raised: a consumer whose coordination has died raises for ever (aiokafka).
        self._refusals = 0

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:  # noqa: ARG002 - all of them
        """Tell the owner that nothing is assigned now: every rebalance is an eager one."""
        self.on_change(frozenset())

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Tell the owner which partitions are ours."""
        self.on_change(frozenset(partition.partition for partition in assigned))

    async def start(self) -> None:
        """Join the group, with a new client each time: one that failed to start is of no more use."""
        await self.stop()
        self._is_careful = False
        self.on_change(frozenset())
        self._consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, **self._settings)
        self._consumer.subscribe([self.topic], listener=self)
        await _timed(self._consumer.start(), f"join a group on Kafka at {self._bootstrap}", timeout_s=3 * _TIMEOUT_S)
        self._refusals = 0

    async def describe(self) -> TopicState:
        """Ask for the topic's id. Raises DependencyError if it is missing."""
        states = await describe_topics(self._bootstrap, [self.topic])
        if self.topic not in states:
            raise DependencyError(f"topic {self.topic} is missing; `taskyard doctor` says more")
        return states[self.topic]

    async def poll(self, *, records: int, timeout_ms: int) -> dict[int, list[Record]]:
        """Return records by partition, at most so many. Waits for timeout_ms, or longer during a rebalance.

        After one that the client cannot decode it raises DependencyError; once its partition was sought anew the record
        comes as Unreadable, and so does each behind it in its batch.
        """
        if self._refusals >= _MAX_REFUSALS:
            await self.start()
        if self._is_careful:
            return await self._poll_singly(records, timeout_ms)
        try:
            found = await self._getmany(records, timeout_ms)
        except ValueError as error:  # such as the name of a header that is not UTF-8
            self._is_careful = True
            raise DependencyError(f"a record of {self.topic} cannot be decoded: {error}") from error
        return {partition.partition: rows for partition, rows in found.items()}

    async def _poll_singly(self, records: int, timeout_ms: int) -> dict[int, list[Record]]:
        """Read one record at a time, so that the one that cannot be decoded is known by its offset."""
        found: dict[int, list[Record]] = {}
        left, is_clean = records, True
        for place in self._consumer.assignment():
            offset = await _timed(self._consumer.position(place), "read a position")
            while left > 0:
                try:
                    rows = (await self._getmany(1, timeout_ms, place)).get(place, [])
                except ValueError as error:
                    is_clean, self._refusals = False, 0
                    rows = [Unreadable(offset, int(time.time() * 1000), str(error))]
                    self._consumer.seek(place, offset + 1)
                if not rows:
                    break
                found.setdefault(place.partition, []).extend(rows)
                left, offset = left - 1, rows[-1].offset + 1
        self._is_careful = not (is_clean and left > 0)
        return found

    async def _getmany(self, records: int, timeout_ms: int, *places: Any) -> dict[Any, list[Record]]:
        self._refusals += 1
        found = await _timed(
            self._consumer.getmany(*places, timeout_ms=timeout_ms, max_records=records),
            "read records",
            timeout_s=timeout_ms / 1000 + 3 * _TIMEOUT_S,
        )
        self._refusals = 0
        return found

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Read each of these partitions from its offset on. Raises DependencyError if one is not ours any more."""
        try:
            for partition, offset in offsets.items():
                self._consumer.seek(TopicPartition(self.topic, partition), offset)
        except (KafkaError, ValueError) as error:
            raise DependencyError(f"cannot seek in {self.topic}: {error}") from error

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the first offset that each partition still has."""
        wanted = [TopicPartition(self.topic, partition) for partition in partitions]
        found = await _timed(self._consumer.beginning_offsets(wanted), "read beginning offsets")
        return {partition.partition: offset for partition, offset in found.items()}

    def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the end of each partition as last seen; absent where it was not read yet."""
        ends = {p: self._consumer.highwater(TopicPartition(self.topic, p)) for p in partitions}
        return {partition: end for partition, end in ends.items() if end is not None}

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Store offsets in the group, for the lag that ordinary tools show; they decide nothing."""
        wanted = {TopicPartition(self.topic, partition): offset for partition, offset in offsets.items()}
        if wanted:
            await _timed(self._consumer.commit(wanted), "commit offsets")

    async def stop(self) -> None:
        """Leave the group. Never raises, never waits for long: the session would run out anyway."""
        if self._consumer is not None:
            await _stopped(self._consumer.stop())


OutgoingRecord = tuple[str, bytes, bytes, list[tuple[str, bytes]]]
"""Topic, key (empty: none), value, headers."""


class _Page(NamedTuple):
    """A batch of one partition. indices: which of the records are in it."""

    topic: str
    partition: int
    batch: Any
    indices: list[int]


class TopicProducer:
    """Publishes outcomes; one call at a time. A producer that failed is replaced before the next call (#1017)."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._producer: Any = None

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[int]:
        """Publish the records and return when all are acknowledged by all in-sync replicas.

        Returns the indices of those whose batch was refused for its size. Raises DependencyError if another was not
        acknowledged; any of them may then have been published: consumers tell by id.
        Cost: 2 us a record in batches made here; a `send` of each costs ten times that.
        """
        try:
            await self._start()
            pages = await self._pages(records)
            sent = [
                await _timed(
                    self._producer.send_batch(page.batch, page.topic, partition=page.partition),
                    f"publish to {page.topic}",
                )
                for page in pages
            ]
            refused = await _timed(_too_large(sent), "publish outcomes", timeout_s=3 * _TIMEOUT_S)
            return [index for page in refused for index in pages[page].indices]
        except DependencyError:
            await self.stop()
            raise

    async def _start(self) -> None:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self._bootstrap, enable_idempotence=True, max_batch_size=_BATCH_BYTES,
                request_timeout_ms=int(_TIMEOUT_S * 1000), max_request_size=_MAX_REQUEST_BYTES,
            )  # fmt: skip
            await _timed(self._producer.start(), f"start a producer on Kafka at {self._bootstrap}")

    async def _pages(self, records: Sequence[OutgoingRecord]) -> list[_Page]:
        """Put the records into batches by topic and partition; those of a key stay in order."""
        counts: dict[str, int] = {}
        filling: dict[tuple[str, int], _Page] = {}
        pages: list[_Page] = []
        for index, (topic, key, value, headers) in enumerate(records):
            if topic not in counts:
                counts[topic] = len(await _timed(self._producer.partitions_for(topic), f"look up {topic}"))
            place = (topic, zlib.crc32(key) % counts[topic])
            page = filling.get(place)
            fields = {"timestamp": None, "key": key or None, "value": value, "headers": headers}
            if page is None or page.batch.append(**fields) is None:
                page = filling[place] = _Page(*place, self._producer.create_batch(), [])
                pages.append(page)
                page.batch.append(**fields)  # the first record of a batch fits, whatever its size
            page.indices.append(index)
        return pages

    async def stop(self) -> None:
        """Close the producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stopped(producer.stop())


async def _stopped(stop: Coroutine[Any, Any, None]) -> None:
    """Wait for a client to stop, but not for long; in a task of its own, which may end as cancelled (broker away)."""
    task = asyncio.create_task(stop, name="stop a Kafka client")
    await asyncio.wait([task], timeout=_STOP_TIMEOUT_S)
    if task.done() and not task.cancelled():
        task.exception()  # seen, so that nobody is told: there is nothing left to do about it
    task.cancel()


async def _too_large(sent: Sequence[Awaitable[Any]]) -> list[int]:
    """Wait for all; the indices of those that the broker finds too large. Raises the first other refusal."""
    ends = await asyncio.gather(*sent, return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException) and not isinstance(end, MessageSizeTooLargeError):
            raise end
    return [index for index, end in enumerate(ends) if isinstance(end, BaseException)]


async def _timed(wait: Awaitable[T], what: str, *, timeout_s: float = _TIMEOUT_S) -> T:
    try:
        async with asyncio.timeout(timeout_s):
            return await wait
    except TopicAlreadyExistsError:
        raise
    except TimeoutError as error:
        raise DependencyError(f"Kafka did not {what} within {timeout_s:.0f} s; is it up? `taskyard doctor`") from error
    except (KafkaError, OSError) as error:
        raise DependencyError(f"cannot {what}: {error or type(error).__name__}") from error


@contextlib.asynccontextmanager
async def _running(client: Any, stop: Callable[[], Coroutine[Any, Any, None]], what: str) -> AsyncGenerator[None]:
    try:
        await _timed(client.start(), f"reach {what}")
        yield
    finally:
        await _stopped(stop())


@contextlib.asynccontextmanager
async def _client(bootstrap: str) -> AsyncGenerator[Any]:
    client: Any = AIOKafkaClient(bootstrap_servers=bootstrap, request_timeout_ms=int(_TIMEOUT_S * 1000))
    try:
        await _timed(client.bootstrap(), f"reach Kafka at {bootstrap}")
        yield client
    finally:
        await _stopped(client.close())
