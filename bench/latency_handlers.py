"""The handler of the latency rows, for `taskyard worker bench.latency_handlers:handlers` in the directory of a run."""

import asyncio

from bench.latency_stamps import AGENT_TYPE, stamp


async def start(payload: str) -> None:
    """Note the start, then hold the slot for as long as the payload says."""
    hold_ms = stamp(payload)
    if hold_ms:
        await asyncio.sleep(hold_ms / 1000)


handlers = {AGENT_TYPE: start}
