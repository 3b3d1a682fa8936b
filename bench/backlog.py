"""The backlog: topics with tasks in them, published before the clock starts."""

import asyncio
from functools import cache
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer

from taskyard.dispatcher.kafka.topics import check_topics
from taskyard.dispatcher.settings import TopicSettings
from taskyard.schemas.codec import JSON
from taskyard.schemas.task import AgentType, Task, TaskId
from taskyard.schemas.topics import topics

AGENT_TYPE = AgentType("noop")
PARTITIONS = 4
PAYLOAD_BYTES = 200
PAYLOAD = "x" * (PAYLOAD_BYTES - 2)
"""200 bytes with its quotes."""

Needs = tuple[tuple[str, int], ...]
"""Requirements as pairs of a resource and its units."""


@cache
def fill(bootstrap: str, prefix: str, count: int, needs: Needs = ()) -> str:
    """Publish so many tasks of normal priority under the prefix, spread over four partitions; return their topic.

    Once only for the same arguments: a topic may be read by any number of runs.
    """
    return asyncio.run(_fill(bootstrap, prefix, count, dict(needs)))


async def _fill(bootstrap: str, prefix: str, count: int, requirements: dict[str, int]) -> str:
    names = topics(prefix)
    topic = names.tasks["normal"]
    await check_topics(bootstrap, names, TopicSettings(partitions=PARTITIONS))
    producer: Any = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=256 << 10)
    await producer.start()
    try:
        for partition in range(PARTITIONS):
            await _fill_partition(producer, topic, partition, range(partition, count, PARTITIONS), requirements)
        await producer.flush()
    finally:
        await producer.stop()
    return topic


async def _fill_partition(
    producer: Any, topic: str, partition: int, numbers: range, requirements: dict[str, int]
) -> None:
    payload = msgspec.Raw(JSON.encode_payload(PAYLOAD))
    batch = producer.create_batch()
    for number in numbers:
        task = Task(id=TaskId(f"{number:032x}"), type=AGENT_TYPE, payload=payload, requirements=requirements)
        value = JSON.encode_task(task)
        if batch.append(key=None, value=value, timestamp=None) is None:
            await producer.send_batch(batch, topic, partition=partition)
            batch = producer.create_batch()
            batch.append(key=None, value=value, timestamp=None)
    await producer.send_batch(batch, topic, partition=partition)
