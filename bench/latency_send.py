"""Sends tasks when they are due, a process of its own: an open loop.

    python -m bench.latency_send KAFKA PREFIX FILE HOLD_MS WARM_S SECONDS EVERY_MS STREAM=PER_S …

When each task is due is fixed before the first is sent. A sender that is held up sends late, but what it sends still
counts from when it was due, so that no wait is left out (coordinated omission). Streams are priorities, published as a
user does; or the one stream `raw`, published with aiokafka alone to the topic PREFIX. EVERY_MS: 0, or tasks are due
together so many milliseconds apart, as a service that works in rounds publishes.

First it sends probes until one of each stream has come through, as the directory of FILE shows. Afterwards it writes
FILE and waits to be ended.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer

from bench.backlog import PARTITIONS, PAYLOAD_BYTES
from bench.latency_figures import schedule, spread
from bench.latency_stamps import AGENT_TYPE, is_probed, payload_of
from taskyard.dispatcher.cli.loop import run
from taskyard.producers.producer import Producer
from taskyard.schemas.priority import PRIORITIES
from taskyard.schemas.task import Task

RAW = "raw"
_PROBED_WITHIN_S = 60.0
_PROBE_EVERY_S = 0.25
# Sends after which the client gets a turn of the loop: one that is behind would keep it to itself.
_TURN = 32
_TICK_S = 0.001
# From the plan to its first task.
_AHEAD_NS = 50_000_000

Send = Callable[[str, int], Awaitable[object]]
"""Publish a task of a stream that is due at this time (monotonic ns); returns once it is in the client's buffer."""
Way = tuple[Send, Callable[[], Awaitable[object]]]
"""How to send, and how to wait until all of it is acknowledged."""


@asynccontextmanager
async def _priorities(kafka: str, prefix: str, hold_ms: int) -> AsyncGenerator[Way]:
    async def send(priority: str, due_ns: int) -> object:
        payload = msgspec.Raw(payload_of(due_ns, priority, hold_ms, PAYLOAD_BYTES))
        return await producer.send(Task(type=AGENT_TYPE, priority=priority, payload=payload))

    async with Producer(kafka, prefix=prefix) as producer:
        yield send, producer.flush


@asynccontextmanager
async def _raw(kafka: str, topic: str, hold_ms: int) -> AsyncGenerator[Way]:
    partitions = cycle(range(PARTITIONS))

    async def send(stream: str, due_ns: int) -> object:
        value = payload_of(due_ns, stream, hold_ms, PAYLOAD_BYTES)
        return await producer.send(topic, value, partition=next(partitions))

    producer: Any = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    try:
        yield send, producer.flush
    finally:
        await producer.stop()


async def main(kafka: str, prefix: str, file: Path, hold_ms: int, times_s: tuple[float, float], every_ms: int,
               rates: Mapping[str, float]) -> None:  # fmt: skip
    """Probe, warm up, send; then wait for ever."""
    is_raw = RAW in rates
    async with (_raw if is_raw else _priorities)(kafka, prefix, hold_ms) as (send, flush):
        await _probe(send, file.parent, [RAW] if is_raw else PRIORITIES)
        warm_s, seconds = times_s
        plan = schedule(rates, warm_s + seconds, every_ms)
        # A full collection would stop the sender for some 20 ms, and that is not what is measured.
        gc.freeze()
        began_ns = time.monotonic_ns() + _AHEAD_NS
        late_ns = await send_all(send, [(began_ns + offset_ns, stream) for offset_ns, stream in plan])
        await flush()
    sent = {
        "began_ns": began_ns + int(warm_s * 1e9),
        "ended_ns": time.monotonic_ns(),
        "late": spread(late_ns)._asdict(),
    }
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(sent))
    draft.rename(file)
    await asyncio.Event().wait()


async def _probe(send: Send, directory: Path, streams: Sequence[str]) -> None:
    """Send until all parts are under way. Raises TimeoutError."""
    async with asyncio.timeout(_PROBED_WITHIN_S):
        while missing := [stream for stream in streams if not is_probed(directory, stream)]:
            for stream in missing:
                await send(stream, 0)
            await asyncio.sleep(_PROBE_EVERY_S)


async def send_all(send: Send, plan: Sequence[tuple[int, str]]) -> list[int]:
    """Send each task when it is due, or as soon after as possible. Returns how late each was sent, ns.

    The loop's timers know whole milliseconds only. A thread that wakes it more exactly took 70 us a task, of a machine
    whose two processors are what bounds these rows.
    """
    late_ns: list[int] = []
    for number, (due_ns, stream) in enumerate(plan):
        if number % _TURN == 0:
            await asyncio.sleep(0)
        while (now_ns := time.monotonic_ns()) < due_ns:  # noqa: ASYNC110 - what is waited for is a time
            await asyncio.sleep(_TICK_S)
        late_ns.append(now_ns - due_ns)
        await send(stream, due_ns)
    return late_ns


def _rates(words: Sequence[str]) -> dict[str, float]:
    return {stream: float(per_s) for stream, _, per_s in (word.partition("=") for word in words)}


if __name__ == "__main__":
    address, topics, told, hold, warm, timed, every, *offered = sys.argv[1:]
    run(main(address, topics, Path(told), int(hold), (float(warm), float(timed)), int(every), _rates(offered)))
