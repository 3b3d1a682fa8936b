"""aiokafka's background tasks may die; the dispatcher must hear of it, or go on without them (real Kafka)."""

import asyncio
from typing import Any

import pytest
import uvloop
from aiokafka import AIOKafkaProducer
from aiokafka.conn import create_conn  # pyright: ignore[reportUnknownVariableType]
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from taskyard.dispatcher.kafka import consumer as consumer_module
from taskyard.dispatcher.kafka.consumer import TopicConsumer
from taskyard.dispatcher.kafka.topics import create_topics
from tests.integration.yard import until


def test_a_write_to_a_connection_that_uvloop_has_just_closed_is_a_connection_error(kafka_address: str) -> None:
    async def write_after_close() -> None:
        host, port = kafka_address.rsplit(":", 1)
        connection: Any = await create_conn(host, int(port))
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def write() -> None:
            try:
                connection.send(MetadataRequest([]))
            except (KafkaConnectionError, RuntimeError) as error:
                written.set_exception(error)

        connection._writer.transport.abort()  # as when the peer resets it
        # Behind the loss of the connection, before its reader has woken up to hear of it.
        asyncio.get_running_loop().call_soon(write)
        with pytest.raises(KafkaConnectionError, match="was closed"):
            await written

    uvloop.run(write_after_close())


@pytest.fixture
async def topic(kafka_address: str, prefix: str) -> str:
    name = f"{prefix}topic"
    await create_topics(kafka_address, {name: 1}, replication=1)
    return name


async def test_a_consumer_whose_fetching_has_died_is_replaced_and_reads_on(
    kafka_address: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "_DEAF_S", 0.2)
    consumer = TopicConsumer(kafka_address, topic, group=f"of-{topic}", session_timeout_ms=6_000)
    found: list[bytes] = []

    async def has_read(value: bytes) -> bool:
        for rows in (await consumer.poll(records=10, timeout_ms=50)).values():
            found.extend(row.value for row in rows)
        return value in found

    await consumer.start()
    producer: Any = AIOKafkaProducer(bootstrap_servers=kafka_address)
    await producer.start()
    try:
        await producer.send_and_wait(topic, b"before")
        await until(lambda: has_read(b"before"), what="it reads")
        fetching: asyncio.Task[None] = consumer._consumer._fetcher._fetch_task  # pyright: ignore[reportPrivateUsage]
        fetching.cancel()
        await asyncio.wait([fetching])
        await producer.send_and_wait(topic, b"after")

        await until(lambda: has_read(b"after"), what="it reads on")
    finally:
        await producer.stop()
        await consumer.stop()
