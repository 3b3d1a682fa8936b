"""Reading `results` and `dead-letter` from their beginning, once a run's load is over."""

import time
from collections.abc import Awaitable, Callable, Collection
from hashlib import blake2b
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from taskyard.dispatcher.kafka.topics import describe_topics
from taskyard.schemas.codec import JSON
from taskyard.schemas.topics import Topics
from tests.fault.history import Ended, Letter

_POLL_MS = 200
_QUIET_EVERY_S = 0.5


class Records(NamedTuple):
    """What the topics hold. waited_s: until the last outcome was there."""

    ended: list[Ended]
    letters: list[Letter]
    waited_s: float


class Reader:
    """Reads one cell's results. mono_of: turns the wall time of a record (Unix ms) into this machine's monotonic s."""

    def __init__(self, bootstrap: str, topics: Topics, mono_of: Callable[[float], float]) -> None:
        self._bootstrap = bootstrap
        self._topics = topics
        self._mono_of = mono_of
        self._ended: list[Ended] = []
        self._letters: list[Letter] = []

    async def read(
        self, wanted: Collection[str], is_quiet: Callable[[], Awaitable[bool]], *, within_s: float
    ) -> Records:
        """Read until all wanted tasks have outcomes and the cell is quiet, or too long; then to the topics' end."""
        consumer: Any = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, enable_auto_commit=False)
        await consumer.start()
        try:
            names = (self._topics.results, self._topics.dead_letter)
            states = await describe_topics(self._bootstrap, names)
            partitions = [TopicPartition(name, p) for name in names for p in range(states[name].partitions)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            waited_s = await self._until_quiet(consumer, set(wanted), is_quiet, within_s)
            ends: dict[Any, int] = await consumer.end_offsets(partitions)
            for partition in partitions:
                while await consumer.position(partition) < ends[partition]:
                    self._take(await consumer.getmany(partition, timeout_ms=_POLL_MS))
        finally:
            await consumer.stop()
        return Records(self._ended, self._letters, waited_s)

    async def _until_quiet(
        self, consumer: Any, open_: set[str], is_quiet: Callable[[], Awaitable[bool]], within_s: float
    ) -> float:
        began_s = asked_s = time.monotonic()
        waited_s = 0.0
        while time.monotonic() - began_s < within_s:
            seen = len(self._ended)
            self._take(await consumer.getmany(timeout_ms=_POLL_MS, max_records=5_000))
            if open_:
                open_.difference_update(one.task_id for one in self._ended[seen:])
                waited_s = time.monotonic() - began_s
            elif time.monotonic() - asked_s > _QUIET_EVERY_S:
                asked_s = time.monotonic()
                if await is_quiet():
                    break
        return waited_s

    def _take(self, found: dict[Any, list[Any]]) -> None:
        for partition, records in found.items():
            for record in records:
                if partition.topic == self._topics.results:
                    self._ended.append(self._outcome(record.value))
                else:
                    letter = JSON.decode_dead_letter(record.value)
                    self._letters.append(Letter(letter.id, letter.attempt, letter.reason))

    def _outcome(self, value: bytes) -> Ended:
        one = JSON.decode_outcome(value)
        return Ended(
            one.id, one.attempt, one.status, one.instance, blake2b(value, digest_size=12).digest(),
            self._mono_of(one.finished_ms),
            placed_s=self._mono_of(one.placed_ms) if one.placed_ms else 0.0,
            arrived_s=self._mono_of(one.arrived_ms) if one.arrived_ms else 0.0,
            failed=tuple(cause.attempt for cause in one.causes),
            reason=one.cause,
        )  # fmt: skip
