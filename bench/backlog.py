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


def payload_of(size_bytes: int) -> str:
    """Return a payload that has so many bytes with its quotes."""
    return "x" * (size_bytes - 2)


PAYLOAD = payload_of(PAYLOAD_BYTES)

Needs = tuple[tuple[str, int], ...]
"""Requirements as pairs of a resource and its units."""


@cache
def fill(
    bootstrap: str, prefix: str, count: int, needs: Needs = (), payload_bytes: int = PAYLOAD_BYTES
) -> str:  # fmt: skip
    """Publish so many tasks of normal priority under the prefix, spread over four partitions; return their topic.

    Once only for the same arguments: a topic may be read by any number of runs. Other arguments want another prefix.
    """
    payload = msgspec.Raw(JSON.encode_payload(payload_of(payload_bytes)))
    return asyncio.run(
        _fill(bootstrap, prefix, count, Task(type=AGENT_TYPE, payload=payload, requirements=dict(needs)))
    )


async def _fill(bootstrap: str, prefix: str, count: int, like: Task) -> str:
    names = topics(prefix)
    topic = names.tasks["normal"]
    await check_topics(bootstrap, names, TopicSettings(partitions=PARTITIONS))
    producer: Any = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=256 << 10)
    await producer.start()
    try:
        for partition in range(PARTITIONS):
            await _fill_partition(producer, topic, partition, range(partition, count, PARTITIONS), like)
        await producer.flush()
    finally:
        await producer.stop()
    return topic


async def _fill_partition(producer: Any, topic: str, partition: int, numbers: range, like: Task) -> None:
    batch = producer.create_batch()
    for number in numbers:
        value = JSON.encode_task(msgspec.structs.replace(like, id=TaskId(f"{number:032x}")))
        if batch.append(key=None, value=value, timestamp=None) is None:
            await producer.send_batch(batch, topic, partition=partition)
            batch = producer.create_batch()
            batch.append(key=None, value=value, timestamp=None)
    await producer.send_batch(batch, topic, partition=partition)
