"""Raw streams, in our own environment: `run_streams.py enqueue REDIS COUNT` or `run_streams.py work REDIS`.

What a user would build without a task queue: a stream, a consumer group, and results that expire.
"""

import asyncio
import sys
from typing import Any

import msgspec
import redis.asyncio as redis
import uvloop

STREAM, GROUP = "streams:tasks", "workers"
PAYLOAD = "x" * 198
# Two loops: while the server answers the one, the other runs its tasks. One of 1,000 and four of 250: no faster.
LOOPS, AT_ONCE = 2, 500
_BLOCK_MS = 1_000
_RESULT_S = 3_600
_ENQUEUED_AT_ONCE = 1_000


class Message(msgspec.Struct):
    """One task, as JSON in one field."""

    id: str
    payload: str


async def noop(payload: str) -> int:
    """Look at the payload."""
    return len(payload)


async def enqueue(client: Any, count: int) -> None:
    """Enqueue in pipelines."""
    await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    for first in range(0, count, _ENQUEUED_AT_ONCE):
        pipeline = client.pipeline(transaction=False)
        for number in range(first, min(first + _ENQUEUED_AT_ONCE, count)):
            pipeline.xadd(STREAM, {"m": msgspec.json.encode(Message(f"{number:032x}", PAYLOAD))})
        await pipeline.execute()
    await client.aclose()


async def work(client: Any) -> None:
    """Run tasks for ever. It does not claim what another left behind: no retry, no dead letter."""
    await asyncio.gather(*[_work(client, f"worker-{number}") for number in range(LOOPS)])


async def _work(client: Any, consumer: str) -> None:
    decode = msgspec.json.Decoder(Message).decode
    while True:
        found = await client.xreadgroup(GROUP, consumer, {STREAM: ">"}, count=AT_ONCE, block=_BLOCK_MS)
        if not found:
            continue
        rows = found[0][1]
        messages = [decode(fields[b"m"]) for _, fields in rows]
        # One after the other they would cost 4 us less each, and the first real task would hold up all.
        results = await asyncio.gather(*[noop(message.payload) for message in messages])
        pipeline = client.pipeline(transaction=False)
        for message, result in zip(messages, results, strict=True):
            # `set(…, ex=)` costs redis-py 3 us more.
            name = f"streams:result:{message.id}"
            pipeline.execute_command("SET", name, msgspec.json.encode(result), "EX", _RESULT_S)
        ids = [stream_id for stream_id, _ in rows]
        # Last: an entry that is gone before its result is stored would be lost with this process.
        pipeline.xack(STREAM, GROUP, *ids)
        pipeline.xdel(STREAM, *ids)
        await pipeline.execute()


async def main(mode: str, url: str, count: int) -> None:
    """Enqueue, or work."""
    client: Any = redis.Redis.from_url(url, protocol=2)  # pyright: ignore[reportUnknownMemberType]
    await (enqueue(client, count) if mode == "enqueue" else work(client))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int((*sys.argv, "0")[3])))
