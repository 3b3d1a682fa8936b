"""Publishing in tests: topics of a prefix, tasks to publish, what is on the topics then."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from taskyard import DependencyError
from taskyard.schemas.codec import JSON
from taskyard.schemas.task import AgentType, Task
from taskyard.schemas.topics import topics

PARTITIONS = 3


async def create_topics(address: str, prefix: str, configs: dict[str, str] | None = None) -> None:
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.create_topics(
            [NewTopic(name, PARTITIONS, 1, topic_configs=configs) for name in topics(prefix).tasks.values()]
        )
    finally:
        await admin.close()


def a_task(text: str = "x" * 200, **fields: Any) -> Task:
    return Task(type=AgentType("summarise"), payload=JSON.encode_payload({"text": text}), **fields)


async def records(address: str, prefix: str) -> list[Any]:
    """Everything on the cell's task topics, in order within a partition."""
    consumer: Any = AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        parts = [TopicPartition(name, p) for name in topics(prefix).tasks.values() for p in range(PARTITIONS)]
        consumer.assign(parts)
        wanted = sum((await consumer.end_offsets(parts)).values())
        found: list[Any] = []
        async with asyncio.timeout(20):
            while len(found) < wanted:
                for batch in (await consumer.getmany(timeout_ms=500)).values():
                    found.extend(batch)
        return found
    finally:
        await consumer.stop()


async def refused_within(seconds: float, waiting: Awaitable[object]) -> DependencyError:
    started_s = time.monotonic()
    with pytest.raises(DependencyError) as refused:
        await waiting
    assert time.monotonic() - started_s < seconds
    return refused.value
