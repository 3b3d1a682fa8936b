# pyright: basic, reportMissingImports=false
"""SAQ, in its own environment: `run_saq.py enqueue REDIS COUNT` or `run_saq.py work REDIS`."""

import asyncio
import sys

import uvloop
from saq import Queue, Worker

PAYLOAD = "x" * 198
AT_ONCE = 100

mode, url = sys.argv[1:3]


async def noop(_context: dict, *, payload: str) -> int:
    """Look at the payload."""
    return len(payload)


async def enqueue(count: int) -> None:
    """Enqueue as fast as it can: many sends under way at once."""
    queue = Queue.from_url(url)
    await queue.connect()
    for first in range(0, count, AT_ONCE):
        await asyncio.gather(
            *[queue.enqueue("noop", payload=PAYLOAD) for _ in range(first, min(first + AT_ONCE, count))]
        )
    await queue.disconnect()


async def work() -> None:
    """Run tasks for ever."""
    await Worker(Queue.from_url(url), functions=[("noop", noop)], concurrency=AT_ONCE).start()


uvloop.run(enqueue(int(sys.argv[3])) if mode == "enqueue" else work())
