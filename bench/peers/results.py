"""The results topic of the bare Kafka peer: made for each run, and counted while it runs."""

import asyncio
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from bench.backlog import PARTITIONS
from taskyard.dispatcher.kafka.topics import create_topics


class ResultsTopic:
    """A new topic, and a client that asks for its ends. For use from one thread that runs no event loop."""

    def __init__(self, bootstrap: str, name: str) -> None:
        self._bootstrap = bootstrap
        self._name = name
        self._partitions = [TopicPartition(name, number) for number in range(PARTITIONS)]
        self._runner = asyncio.Runner()
        self._client: Any = None

    def __enter__(self) -> Self:
        self._runner.run(self._start())
        return self

    async def _start(self) -> None:
        await create_topics(self._bootstrap, {self._name: PARTITIONS}, replication=1)
        self._client = AIOKafkaConsumer(bootstrap_servers=self._bootstrap)
        await self._client.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._runner.run(self._client.stop())
        finally:
            self._runner.close()

    def count(self) -> int:
        """Count the records that Kafka has acknowledged: nothing is ever deleted here. Cost: a round trip."""
        ends: dict[Any, int] = self._runner.run(self._client.end_offsets(self._partitions))
        return sum(ends.values())
