"""The baseline of figure 1, a process of its own: read, decode, one XADD a task in turn, and no decision at all.

    python -m bench.bare_loop KAFKA REDIS TOPIC GROUP INSTANCES

What a user would write who needs no placement: the dispatcher's own consumer, decoder and event loop, and a pipeline of
a thousand XADDs. It counts what it has done in the key `done`, in the same pipeline.
"""

import asyncio
import sys
from itertools import cycle
from typing import Any

import msgspec
import redis.asyncio as redis

from taskyard.dispatcher.cli.loop import run
from taskyard.dispatcher.kafka.consumer import TopicConsumer
from taskyard.schemas.task import Task

_BATCH = 1_000
_SESSION_MS = 6_000
_POLL_MS = 200


async def main(kafka: str, redis_url: str, topic: str, group: str, instances: int) -> None:
    """Drain the topic for ever."""
    client: Any = redis.Redis.from_url(redis_url)  # pyright: ignore[reportUnknownMemberType]
    consumer = TopicConsumer(kafka, topic, group=group, session_timeout_ms=_SESSION_MS)
    await consumer.start()
    queues = cycle([f"bare:q:{number}" for number in range(instances)])
    decode = msgspec.json.Decoder(Task).decode
    while True:
        found = await consumer.poll(records=_BATCH, timeout_ms=_POLL_MS)
        pipeline = client.pipeline(transaction=False)
        count = 0
        for records in found.values():
            for record in records:
                decode(record.value)
                pipeline.xadd(next(queues), {"e": record.value})
                count += 1
        if count:
            pipeline.incrby("done", count)
            await pipeline.execute()


if __name__ == "__main__":
    try:
        run(main(*sys.argv[1:5], instances=int(sys.argv[5])))
    except asyncio.CancelledError:
        sys.exit(0)
