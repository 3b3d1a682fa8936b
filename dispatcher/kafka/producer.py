"""Publishing pages of records and waiting until all are safe."""

import asyncio
import zlib
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from taskyard.dispatcher.kafka.waits import TIMEOUT_S, stopped, timed
from taskyard.schemas.errors import DependencyError

_BATCH_BYTES = 512 << 10
# More than any entry weighs; what the topic takes is the broker's to say.
_MAX_REQUEST_BYTES = 64 << 20

OutgoingRecord = tuple[str, bytes, bytes | None, list[tuple[str, bytes]]]
"""Topic, key (empty: none), value (None: what the key had is deleted, from a compacted topic), headers."""


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key on the topics that this dispatcher publishes to."""
    return zlib.crc32(key) % partitions


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
                await timed(
                    self._producer.send_batch(page.batch, page.topic, partition=page.partition),
                    f"publish to {page.topic}",
                )
                for page in pages
            ]
            refused = await timed(_too_large(sent), "publish outcomes", timeout_s=3 * TIMEOUT_S)
            return [index for page in refused for index in pages[page].indices]
        except DependencyError:
            await self.stop()
            raise

    async def _start(self) -> None:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self._bootstrap, enable_idempotence=True, max_batch_size=_BATCH_BYTES,
                request_timeout_ms=int(TIMEOUT_S * 1000), max_request_size=_MAX_REQUEST_BYTES,
            )  # fmt: skip
            await timed(self._producer.start(), f"start a producer on Kafka at {self._bootstrap}")

    async def _pages(self, records: Sequence[OutgoingRecord]) -> list[_Page]:
        """Put the records into batches by topic and partition; those of a key stay in order."""
        counts: dict[str, int] = {}
        filling: dict[tuple[str, int], _Page] = {}
        pages: list[_Page] = []
        for index, (topic, key, value, headers) in enumerate(records):
            if topic not in counts:
                counts[topic] = len(await timed(self._producer.partitions_for(topic), f"look up {topic}"))
            place = (topic, partition_of(key, counts[topic]))
            page = filling.get(place)
            if page is None or not _added(page, key, value, headers):
                page = filling[place] = _Page(*place, self._producer.create_batch(), [])
                pages.append(page)
                _added(page, key, value, headers)  # the first record of a batch fits, whatever its size
            page.indices.append(index)
        return pages

    async def stop(self) -> None:
        """Close the producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stopped(producer.stop())


def _added(page: _Page, key: bytes, value: bytes | None, headers: list[tuple[str, bytes]]) -> bool:
    return page.batch.append(timestamp=None, key=key or None, value=value, headers=headers) is not None


async def _too_large(sent: Sequence[Awaitable[Any]]) -> list[int]:
    """Wait for all; the indices of those that the broker finds too large. Raises the first other refusal."""
    ends = await asyncio.gather(*sent, return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException) and not isinstance(end, MessageSizeTooLargeError):
            raise end
    return [index for index, end in enumerate(ends) if isinstance(end, BaseException)]
