# pyright: basic, reportMissingImports=false
"""Taskiq, in its own environment: `run_taskiq.py enqueue REDIS COUNT` or `run_taskiq.py work REDIS`."""

import asyncio
import sys

import uvloop
from taskiq.api import run_receiver_task
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

PAYLOAD = "x" * 198
AT_ONCE = 100

mode, url = sys.argv[1:3]
# A pool without a bound opens too many connections: half the rate (tried). Messages in ORJSON, the fastest it has.
results = RedisAsyncResultBackend(redis_url=url, result_ex_time=3_600, max_connection_pool_size=AT_ONCE, protocol=3)
broker = (
    ListQueueBroker(url=url, max_connection_pool_size=AT_ONCE, protocol=3)
    .with_result_backend(results)
    .with_serializer(ORJSONSerializer())
)


@broker.task(task_name="noop")
async def noop(payload: str) -> int:
    """Look at the payload."""
    return len(payload)


async def enqueue(count: int) -> None:
    """Enqueue as fast as it can: many sends under way at once."""
    await broker.startup()
    for first in range(0, count, 100):
        await asyncio.gather(*[noop.kiq(PAYLOAD) for _ in range(first, min(first + 100, count))])
    await broker.shutdown()


async def work() -> None:
    """Run tasks for ever."""
    await run_receiver_task(broker, run_startup=True, max_async_tasks=AT_ONCE, validate_params=False)


uvloop.run(enqueue(int(sys.argv[3])) if mode == "enqueue" else work())
