"""Records that the Kafka client itself cannot decode: each is named, and nothing else waits for it (real Kafka)."""

import struct
from typing import Any

import pytest
from aiokafka.record.util import calc_crc32c

from taskyard.dispatcher.kafka.consumer import TopicConsumer, Unreadable
from taskyard.dispatcher.kafka.topics import check_topics
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.codec import JSON
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.task import Task
from tests.integration.yard import Yard, count, task, until


async def test_a_record_that_the_kafka_client_cannot_decode_is_a_dead_letter_and_stops_neither_the_process_nor_its_lane(
    yard: Yard,
) -> None:
    await yard.dispatcher()
    await yard.instance("i", slots=100)

    await _publish_odd(yard, task("before"), task("odd"))
    await yard.publish_raw(yard.topics.tasks["normal"], JSON.encode_task(task("behind")), partition=0)

    (letter,) = await yard.dead_letters(1)
    assert (letter.reason, letter.partition, letter.offset) == ("undecodable", 0, 1)
    await until(lambda: count(yard, "i", 2), what="those before and behind it are placed")


async def test_a_record_that_cannot_be_decoded_is_found_however_soon_a_read_gives_up(
    yard: Yard, settings: Settings
) -> None:
    await check_topics(settings.kafka, yard.topics, settings.topics)
    await _publish_odd(yard, task("odd"))
    consumer = TopicConsumer(settings.kafka, yard.topics.tasks["normal"], group="g", session_timeout_ms=6_000)
    await consumer.start()
    found: list[Any] = []

    async def is_found() -> bool:
        try:
            found.extend((await consumer.poll(records=9, timeout_ms=0)).get(0, ()))
        except DependencyError:
            consumer.seek({0: 0, 1: 0})
            found.extend((await consumer.poll(records=9, timeout_ms=0)).get(0, ()))
        return bool(found)

    try:
        await until(is_found, what="the record is named")
    finally:
        await consumer.stop()

    assert [type(record) for record in found] == [Unreadable]


async def test_looking_for_a_record_ends_and_reads_every_partition_though_more_keep_coming(
    yard: Yard, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await check_topics(settings.kafka, yard.topics, settings.topics)
    topic, good = yard.topics.tasks["normal"], JSON.encode_task(task("good"))
    await _publish_odd(yard, task("odd"))
    await yard.publish_raw(topic, good, partition=1)
    consumer = TopicConsumer(settings.kafka, topic, group="g", session_timeout_ms=6_000)
    await consumer.start()
    client: Any = vars(consumer)["_consumer"]
    read = client.getmany

    async def has_failed() -> bool:
        try:
            await consumer.poll(records=9, timeout_ms=200)
        except DependencyError:
            return True
        return False

    async def read_while_one_comes(place: Any, **how: Any) -> Any:
        await yard.publish_raw(topic, good, partition=place.partition)
        return await read(place, **how)

    try:
        await until(has_failed, what="the record is met")
        consumer.seek({0: 0, 1: 0})
        monkeypatch.setattr(client, "getmany", read_while_one_comes)
        found = await consumer.poll(records=50, timeout_ms=5_000)
    finally:
        await consumer.stop()

    assert {partition: len(records) for partition, records in found.items()} == {0: 1, 1: 1}


class _NameThatIsNoText:
    """Builds a batch in which the header `ZZZZ` has a name that is not UTF-8."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def build(self) -> bytearray:
        built = bytearray(bytes(self._builder.build()).replace(b"ZZZZ", b"\xff\xfe\xfd\xfc"))
        struct.pack_into(">I", built, 17, calc_crc32c(bytes(built[21:])))
        return built


async def _publish_odd(yard: Yard, *tasks: Task) -> None:
    """Publish a batch of `normal` tasks, the last of which the Kafka client cannot decode."""
    batch = yard.producer.create_batch()
    for one in tasks:
        headers = [("ZZZZ", b"")] if one is tasks[-1] else []
        batch.append(key=None, value=JSON.encode_task(one), timestamp=None, headers=headers)
    batch._builder = _NameThatIsNoText(batch._builder)
    await (await yard.producer.send_batch(batch, yard.topics.tasks["normal"], partition=0))
