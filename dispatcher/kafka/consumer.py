"""Reading one topic as a member of a consumer group."""

import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from taskyard.dispatcher.kafka.topics import TopicState, describe_topics
from taskyard.dispatcher.kafka.waits import TIMEOUT_S, stopped, timed
from taskyard.schemas.errors import DependencyError

log = structlog.get_logger()

T = TypeVar("T")

Record = Any
"""aiokafka's ConsumerRecord: offset, timestamp (ms), key, value, headers."""

# Intake does not poll while the park is full. Heartbeats go on; what stands still is seen in the lag, not here.
_POLL_INTERVAL_MS = 24 * 3_600_000
# How long the broker holds a read that finds nothing. A seek waits for the read that is under way.
_FETCH_WAIT_MS = 200
# How soon partitions that were added are seen; aiokafka's own is 5 minutes.
_METADATA_AGE_MS = 5_000
# A client whose background tasks have died (aiokafka) raises for ever, or waits for ever: it is replaced.
_MAX_FAILURES = 3
_DEAF_S = 10.0


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
            "metadata_max_age_ms": _METADATA_AGE_MS,
            "retry_backoff_ms": 100,
        }
        # Written by start only.
        self._consumer: Any = None
        # Whether a record that cannot be decoded is being looked for.
        self._is_careful = False
        # Calls in a row that raised.
        self._failures = 0
        # When the last record came, or was looked for in vain; and places where some were left then. Monotonic.
        self._heard_s = 0.0
        self._left: dict[TopicPartition, int] = {}

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
        await timed(self._consumer.start(), f"join a group on Kafka at {self._bootstrap}", timeout_s=3 * TIMEOUT_S)
        self._failures, self._heard_s, self._left = 0, time.monotonic(), {}

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
        await self._replace_if_dead()
        found = await (self._poll_singly if self._is_careful else self._poll_all)(records, timeout_ms)
        if found:
            self._heard_s, self._left = time.monotonic(), {}
        return found

    async def _poll_all(self, records: int, timeout_ms: int) -> dict[int, list[Record]]:
        try:
            found = await self._getmany(records, timeout_ms)
        except ValueError as error:  # such as the name of a header that is not UTF-8
            self._is_careful = True
            raise DependencyError(f"a record of {self.topic} cannot be decoded: {error}") from error
        return {partition.partition: rows for partition, rows in found.items()}

    async def _poll_singly(self, records: int, timeout_ms: int) -> dict[int, list[Record]]:
        """Read one record at a time, so that the one that cannot be decoded is known by its offset.

        Of each partition up to its end as it is now, whichever gets more meanwhile; and again until all that was there
        has been read cleanly: a read that found nothing in time may have been about to find it.
        """
        found: dict[int, list[Record]] = {}
        left, is_clean = records, True
        places = list(self._consumer.assignment())
        random.shuffle(places)  # or the records of the first could be all that is read, each time
        ends = await self.ends(place.partition for place in places)
        for place in places:
            offset = await self._asked(self._consumer.position(place), "read a position")
            while left > 0 and offset < ends[place.partition]:
                try:
                    rows = (await self._getmany(1, timeout_ms, place)).get(place, [])
                except ValueError as error:
                    is_clean = False
                    rows = [Unreadable(offset, int(time.time() * 1000), str(error))]
                    self._consumer.seek(place, offset + 1)
                if not rows:
                    break
                found.setdefault(place.partition, []).extend(rows)
                left, offset = left - 1, rows[-1].offset + 1
            is_clean &= offset >= ends[place.partition]
        self._is_careful = not is_clean
        return found

    async def _getmany(self, records: int, timeout_ms: int, *places: Any) -> dict[Any, list[Record]]:
        return await self._asked(
            self._consumer.getmany(*places, timeout_ms=timeout_ms, max_records=records),
            "read records",
            timeout_s=timeout_ms / 1000 + 3 * TIMEOUT_S,
        )

    async def _asked(self, wait: Awaitable[T], what: str, *, timeout_s: float = TIMEOUT_S) -> T:
        try:
            found = await timed(wait, what, timeout_s=timeout_s)
        except DependencyError:
            self._failures += 1
            raise
        self._failures = 0
        return found

    async def _replace_if_dead(self) -> None:
        """Join the group with a new client if this one has failed too often, or does not read what is there."""
        if self._failures >= _MAX_FAILURES or await self._is_deaf():
            log.warning("consumer_replaced", topic=self.topic, failures=self._failures)
            await self.start()

    async def _is_deaf(self) -> bool:
        """Whether records have been left unread at the same place twice in a row, without one having come between."""
        if time.monotonic() - self._heard_s < _DEAF_S:
            return False
        self._heard_s = time.monotonic()
        places = self._consumer.assignment()
        if not places:
            return False
        ends: dict[TopicPartition, int] = await self._asked(self._consumer.end_offsets(places), "read end offsets")
        before, self._left = self._left, {}
        for place in places:
            position = await self._asked(self._consumer.position(place), "read a position")
            if position < ends[place]:
                self._left[place] = position
        return any(before.get(place) == position for place, position in self._left.items())

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Read each of these partitions from its offset on. Raises DependencyError if one is not ours any more."""
        try:
            for partition, offset in offsets.items():
                self._consumer.seek(TopicPartition(self.topic, partition), offset)
        except (KafkaError, ValueError) as error:
            raise DependencyError(f"cannot seek in {self.topic}: {error}") from error

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the first offset that each partition still has."""
        await self._replace_if_dead()
        wanted = [TopicPartition(self.topic, partition) for partition in partitions]
        found = await self._asked(self._consumer.beginning_offsets(wanted), "read beginning offsets")
        return {partition.partition: offset for partition, offset in found.items()}

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the end of each partition. Asked anew: what reading has seen of it stands still while nobody reads."""
        wanted = [TopicPartition(self.topic, partition) for partition in partitions]
        found: dict[Any, int] = await self._asked(self._consumer.end_offsets(wanted), "read end offsets")
        return {partition.partition: offset for partition, offset in found.items()}

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Store offsets in the group, for the lag that ordinary tools show; they decide nothing."""
        wanted = {TopicPartition(self.topic, partition): offset for partition, offset in offsets.items()}
        if wanted:
            await timed(self._consumer.commit(wanted), "commit offsets")

    async def stop(self) -> None:
        """Leave the group. Never raises, never waits for long: the session would run out anyway."""
        if self._consumer is not None:
            await stopped(self._consumer.stop())
