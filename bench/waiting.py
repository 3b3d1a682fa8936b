"""The handler of `memory-running`, for `taskyard worker bench.waiting:handlers`: it runs until it is cancelled."""

import asyncio

from bench.backlog import AGENT_TYPE


async def wait(_payload: str) -> None:
    """Wait for what never comes."""
    await asyncio.Event().wait()


handlers = {AGENT_TYPE: wait}
