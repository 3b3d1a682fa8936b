"""The baseline of the latency rows, a process of its own: aiokafka reads records and notes when it had each.

    python -m bench.raw_echo KAFKA TOPIC PARTITIONS DIRECTORY

No group, no checks, no decision: the least that a program can do which reads from Kafka. Its ticker writes
DIRECTORY/stalls.reader.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from bench.latency_stamps import stamp
from bench.stalls import stalls_file, watched
from taskyard.dispatcher.cli import loop

_POLL_MS = 200
_FETCH_WAIT_MS = 200
"""As the dispatcher's own consumer."""


async def main(kafka: str, topic: str, partitions: int) -> None:
    """Read what is published from now on, for ever."""
    consumer: Any = AIOKafkaConsumer(bootstrap_servers=kafka, fetch_max_wait_ms=_FETCH_WAIT_MS)
    await consumer.start()
    places = [TopicPartition(topic, partition) for partition in range(partitions)]
    consumer.assign(places)
    await consumer.seek_to_end()
    while True:
        found = await consumer.getmany(timeout_ms=_POLL_MS)
        for records in found.values():
            for record in records:
                stamp(record.value[1:-1].decode())


if __name__ == "__main__":
    address, read, count, home = sys.argv[1:]
    os.chdir(home)
    try:
        loop.run(watched(main(address, read, int(count)), stalls_file(Path(home), "reader")))
    except asyncio.CancelledError:
        sys.exit(0)
