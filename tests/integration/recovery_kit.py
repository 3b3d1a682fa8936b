"""What the tests of recovery share: losing a cell, and what Kafka then says of each task."""

import random
from collections import Counter
from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete

from taskyard.dispatcher.cell.contract import Ending
from taskyard.dispatcher.kafka.published import published_since
from taskyard.dispatcher.settings import OrderSettings, RecoverySettings, Settings
from taskyard.dispatcher.told import ended_ids
from taskyard.schemas.codec import JSON
from taskyard.schemas.entry import decode_entry
from taskyard.schemas.outcome import Outcome
from taskyard.schemas.task import Task
from tests.integration.yard import EPOCH, Yard, until

GRACE_MS = 3_000


def soon_lost(settings: Settings, *, automatic: bool = True, grace_ms: int = GRACE_MS) -> Settings:
    """Settings for a cell that will be lost: a short grace, a watermark that is stored often."""
    recovery = RecoverySettings(automatic=automatic, grace_ms=grace_ms, watermark_ms=100)
    return msgspec.structs.replace(settings, order=OrderSettings(headroom_permille=0), recovery=recovery)


async def lose(yard: Yard, *, also_library: bool = False) -> None:
    """Take everything from the cell, at once."""
    every = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end"
    if also_library:
        await yard.connection.command("FUNCTION", "FLUSH")
    await yard.connection.command("EVAL", every, 0, f"{yard.connection.root}:*")


async def is_begun(yard: Yard) -> bool:
    """Whether the cell takes batches."""
    return (await yard.cell.open(yard.settings.cell_config())).is_begun


async def ended(yard: Yard) -> Counter[str]:
    """How many outcomes `results` has of each task."""
    found: Counter[str] = Counter()
    async for page in published_since(yard.settings.kafka, [yard.topics.results], 0):
        found.update(ended_ids(page))
    return found


async def has_ended(yard: Yard, *names: str) -> bool:
    """Whether `results` tells of all of them."""
    return set(names) <= (await ended(yard)).keys()


async def finish(yard: Yard, instance: str, names: set[str]) -> None:
    """End these tasks of an instance as succeeded."""
    endings: list[Ending] = []
    for delivery in await yard.view.queue(instance, count=10_000):
        entry = decode_entry(delivery.entry)
        if entry.id in names:
            body = JSON.encode_outcome(Outcome(id=entry.id, type="a", status="succeeded", attempt=entry.attempt))
            endings.append(Ending(entry.id, delivery.stream_id, entry.attempt, "succeeded", body))
    await yard.cell.finish(instance, EPOCH, endings)


async def finish_some(yard: Yard, instance: str, chance: random.Random) -> None:
    """End about half of what the instance has, whichever."""
    await finish(yard, instance, {name for name in await yard.queued(instance) if chance.random() < 0.5})


async def publish_at(yard: Yard, one: Task, *, partition: int, at_ms: int | None = None) -> int:
    """Publish a task to a partition, with a timestamp if the topic takes it from its producers; returns its offset."""
    topic = yard.topics.tasks[one.priority]
    value = JSON.encode_task(one)
    return (await yard.producer.send_and_wait(topic, value, partition=partition, timestamp_ms=at_ms)).offset


async def create_topics_stamped_by_producers(yard: Yard) -> None:
    """Create the topics so that records keep the timestamps that they come with."""
    topics = [NewTopic(name, num_partitions=2, replication_factor=1) for name in yard.topics.names]
    await _administer(yard, "create_topics", topics)


async def recreate_topic(yard: Yard, topic: str) -> None:
    """Delete a topic and make it anew."""
    await _administer(yard, "delete_topics", [topic])
    await _administer(yard, "create_topics", [NewTopic(topic, num_partitions=2, replication_factor=1)])


async def add_partitions(yard: Yard, topic: str, total: int) -> None:
    """Give a topic more partitions."""
    await _administer(yard, "create_partitions", {topic: NewPartitions(total_count=total)})

    async def is_known() -> bool:
        await yard.producer.client.force_metadata_update()
        return len(await yard.producer.partitions_for(topic)) == total

    await until(is_known, what="the producer knows the new partitions")


async def delete_records(yard: Yard, topic: str, partition: int, *, before: int) -> None:
    """Take the first records of a partition, as retention does."""
    await _administer(yard, "delete_records", {TopicPartition(topic, partition): RecordsToDelete(before_offset=before)})


async def _administer(yard: Yard, call: str, what: object) -> None:
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=yard.settings.kafka)
    await admin.start()
    try:
        await getattr(admin, call)(what)
    finally:
        await admin.close()
