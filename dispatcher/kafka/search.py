"""Looking for the record of one key, for a person who asks."""

from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from taskyard.dispatcher.kafka.producer import partition_of
from taskyard.dispatcher.kafka.topics import describe_topics
from taskyard.dispatcher.kafka.waits import running, timed

_POLL_MS = 500
_RECORDS = 5_000


async def find_value(bootstrap: str, topic: str, key: bytes, *, since_ms: int) -> bytes | None:
    """Return the value of the first record of the key that was published since then; None if there is none (any more).

    Reads all that was published to the key's partition since then, about 100,000 records a second.
    Raises DependencyError.
    """
    states = await describe_topics(bootstrap, [topic])
    if topic not in states:
        return None
    partition = TopicPartition(topic, partition_of(key, states[topic].partitions))
    consumer: Any = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    async with running(consumer, consumer.stop, f"Kafka at {bootstrap}"):
        consumer.assign([partition])
        found = await timed(consumer.offsets_for_times({partition: since_ms}), "look up an offset")
        if found[partition] is None:
            return None
        position, end = (
            found[partition].offset,
            (await timed(consumer.end_offsets([partition]), "read the end"))[partition],
        )
        consumer.seek(partition, position)
        while position < end:
            rows = (await timed(consumer.getmany(timeout_ms=_POLL_MS, max_records=_RECORDS), "read")).get(partition, [])
            for record in rows:
                if record.key == key:
                    return record.value
            position = await timed(consumer.position(partition), "read a position")
    return None
