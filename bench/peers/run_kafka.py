"""A bare consumer group, in our own environment: `run_kafka.py KAFKA TOPIC RESULTS GROUP`.

What a user would build who has Kafka and no dispatcher: read a batch, run it, produce the results, commit. It reads the
same records as ours. A slow task holds up its whole batch, and the partitions are all the placement there is.
"""

import asyncio
import sys
from typing import Any

import msgspec
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord

AT_ONCE = 1_000
_WAIT_MS = 200
_BATCH_BYTES = 256 << 10


class Message(msgspec.Struct):
    """What it needs of a task."""

    id: str
    payload: str


async def noop(payload: str) -> int:
    """Look at the payload."""
    return len(payload)


_decode = msgspec.json.Decoder(Message).decode


async def work(kafka: str, topic: str, results: str, group: str) -> None:
    """Run tasks for ever."""
    consumer: Any = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False
    )
    producer: Any = AIOKafkaProducer(bootstrap_servers=kafka, acks="all", max_batch_size=_BATCH_BYTES)
    await producer.start()
    await consumer.start()
    while True:
        found = await consumer.getmany(timeout_ms=_WAIT_MS, max_records=AT_ONCE)
        # One `send` a result costs aiokafka ten times as much as a batch for each partition.
        sent = [await _run(producer, results, place, records) for place, records in found.items()]
        if sent:
            await asyncio.gather(*sent)
            await consumer.commit({place: records[-1].offset + 1 for place, records in found.items()})


async def _run(producer: Any, results: str, place: TopicPartition, records: list[ConsumerRecord[Any, bytes]]) -> Any:
    """Run one partition's tasks and send their results to the same partition; returns what to wait for."""
    messages = [_decode(record.value or b"") for record in records]
    lengths = await asyncio.gather(*[noop(message.payload) for message in messages])
    batch = producer.create_batch()  # takes all of them: they have some 60 bytes each
    for message, length in zip(messages, lengths, strict=True):
        batch.append(key=message.id.encode(), value=msgspec.json.encode(length), timestamp=None)
    return await producer.send_batch(batch, results, partition=place.partition)


if __name__ == "__main__":
    uvloop.run(work(*sys.argv[1:5]))
