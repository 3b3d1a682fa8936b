"""The handler of the soak, for `taskyard worker bench.soak_handlers:handlers`: it holds its slot for a moment."""

import asyncio

from bench.backlog import AGENT_TYPE

HOLD_MS = 50


async def hold(payload: str) -> int:
    """Wait as an agent waits for a model."""
    await asyncio.sleep(HOLD_MS / 1000)
    return len(payload)


handlers = {AGENT_TYPE: hold}
