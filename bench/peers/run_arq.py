# pyright: basic, reportMissingImports=false
"""arq, in its own environment: `run_arq.py enqueue REDIS COUNT` or `run_arq.py work REDIS`."""

import asyncio
import sys

import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

PAYLOAD = "x" * 198
AT_ONCE = 100

mode, url = sys.argv[1:3]


async def noop(_context: dict, payload: str) -> int:
    """Look at the payload."""
    return len(payload)


async def enqueue(count: int) -> None:
    """Enqueue as fast as it can: many sends under way at once."""
    pool = await create_pool(RedisSettings.from_dsn(url))
    for first in range(0, count, AT_ONCE):
        await asyncio.gather(*[pool.enqueue_job("noop", PAYLOAD) for _ in range(first, min(first + AT_ONCE, count))])
    await pool.aclose()


async def work() -> None:
    """Run tasks for ever. poll_delay: half a second by default, which would be all that is measured."""
    settings = RedisSettings.from_dsn(url)
    worker = Worker([func(noop, name="noop")], redis_settings=settings, max_jobs=AT_ONCE, poll_delay=0.01)
    await worker.async_run()


uvloop.install()
asyncio.run(enqueue(int(sys.argv[3])) if mode == "enqueue" else work())
