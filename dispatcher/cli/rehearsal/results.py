"""Reading `results` and `dead-letter` from now on. The one place of the command line that imports aiokafka.

No consumer group: every record of every partition, positions of our own, so that nothing is left behind on the server.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from taskyard.dispatcher.cli.rehearsal.account import Account
from taskyard.dispatcher.kafka.topics import describe_topics
from taskyard.schemas.codec import JSON
from taskyard.schemas.errors import DependencyError, SchemaError
from taskyard.schemas.topics import Topics

_POLL_MS = 200
_TIMEOUT_S = 10.0
# aiokafka may hang after a broker restart without a sign (its issue 1154): a silent client is replaced.
_SILENT_S = 5.0
_PAUSE_S = 0.5


class Results:
    """Feeds an account. For one event loop."""

    def __init__(self, bootstrap: str, topics: Topics, account: Account) -> None:
        self._bootstrap = bootstrap
        self._topics = topics
        self._account = account
        # The next offset of each partition. Written by seek_to_end and _take.
        self._positions: dict[TopicPartition, int] = {}
        self.unreadable = 0

    async def seek_to_end(self) -> None:
        """Begin behind what is on the topics now. Raises DependencyError if a topic is missing."""
        names = (self._topics.results, self._topics.dead_letter)
        states = await describe_topics(self._bootstrap, names)
        missing = [name for name in names if name not in states]
        if missing:
            raise DependencyError(f"topic {missing[0]} is missing; a dispatcher creates it")
        partitions = [TopicPartition(name, p) for name in names for p in range(states[name].partitions)]
        async with _consumer(self._bootstrap, dict.fromkeys(partitions, 0)) as consumer:
            try:
                self._positions = await asyncio.wait_for(consumer.end_offsets(partitions), _TIMEOUT_S)
            except (KafkaError, TimeoutError, OSError) as error:
                raise DependencyError(f"Kafka at {self._bootstrap} did not tell its offsets: {error}") from error

    async def run(self) -> None:
        """Read for ever; a client that fails or falls silent is replaced, from the same position on."""
        while True:
            # An account that waits while Kafka is away is what its reader sees: nothing is lost by trying again.
            with contextlib.suppress(KafkaError, DependencyError, TimeoutError, OSError):
                async with _consumer(self._bootstrap, self._positions) as consumer:
                    await self._read(consumer)
            await asyncio.sleep(_PAUSE_S)

    async def _read(self, consumer: Any) -> None:
        """Read until nothing has come for a while although something is open."""
        heard_s = time.monotonic()
        while time.monotonic() - heard_s < _SILENT_S:
            found = await asyncio.wait_for(consumer.getmany(timeout_ms=_POLL_MS, max_records=2_000), _TIMEOUT_S)
            for partition, records in found.items():
                for record in records:
                    self._take(partition, record)
            if found or not self._account.open:
                heard_s = time.monotonic()

    def _take(self, partition: TopicPartition, record: Any) -> None:
        self._positions[partition] = record.offset + 1
        try:
            if partition.topic == self._topics.results:
                self._account.take(JSON.decode_outcome(record.value))
            else:
                self._account.take_letter(JSON.decode_dead_letter(record.value))
        except SchemaError:
            self.unreadable += 1


@contextlib.asynccontextmanager
async def _consumer(bootstrap: str, positions: Mapping[TopicPartition, int]) -> AsyncGenerator[Any]:
    """Yield a client that stands at the positions."""
    client: Any = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, fetch_max_wait_ms=50, auto_offset_reset="earliest",
        request_timeout_ms=int(_TIMEOUT_S * 1000),
    )  # fmt: skip
    try:
        try:
            await asyncio.wait_for(client.start(), _TIMEOUT_S)
        except (KafkaError, TimeoutError, OSError) as error:
            raise DependencyError(
                f"Kafka at {bootstrap} did not answer: {str(error) or type(error).__name__}"
            ) from error
        client.assign(list(positions))
        for partition, offset in positions.items():
            client.seek(partition, offset)
        yield client
    finally:
        # In a task of its own: after a broker's death the client's stop ends as cancelled, and awaited here that would
        # end the reader without a word.
        stopping = asyncio.create_task(client.stop(), name="results-stop")
        await asyncio.wait([stopping], timeout=_TIMEOUT_S)
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
