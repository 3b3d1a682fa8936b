"""Targets: the relay on whatever the outbox holds, the worker's runner on whatever is on its queue, the page."""

import asyncio
import contextlib
import http.client
import logging
import socket
from collections.abc import Generator
from functools import partial
from random import Random
from typing import Any, cast

import msgspec
import structlog.testing

from taskyard.dispatcher.cell.contract import Outgoing
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.relay import Relay, shortened
from taskyard.dispatcher.web import Health, Web
from taskyard.schemas.codec import JSON, MSGPACK
from taskyard.schemas.entry import type_headers
from taskyard.schemas.outcome import REASONS
from taskyard.schemas.topics import topics
from taskyard.workers.handler import inspect_handlers
from taskyard.workers.instance import Instance, InstanceSpec
from taskyard.workers.runner import Runner
from taskyard.workers.threads import Threads
from tests.fuzz import samples
from tests.fuzz.campaign import Parts, Target
from tests.fuzz.mutations import damaged, noise, text, varied

_TOPICS = topics("p.")
_KINDS = ("outcome", "dead", "refused")
_HOW = ("succeeded", "retry", "gave_up", "unstarted")
_SHORT_BYTES = 65 << 10
_PAGE_WITHIN_S = 4.0
_MAX_THREADS = 8


def entry_of_any_kind(rng: Random) -> bytes:
    """An entry that is damaged, or whole with a record in it that need not be."""
    is_json = rng.randrange(2) == 0
    headers: type_headers = () if is_json else (("content-type", b"application/msgpack"),)
    if not rng.randrange(4):
        headers = (*headers, rng.choice(samples.HEADERS))
    wire = varied(rng, samples.TASK_TREE, is_json=is_json)
    good = samples.entry(rng, shape=rng.choice(samples.SHAPES), wire=wire, headers=headers)
    return good if rng.randrange(3) else damaged(rng, good)


def _outgoing(rng: Random) -> Parts:
    kind = rng.choice(_KINDS)
    if kind == "dead":
        body = entry_of_any_kind(rng)
    elif kind == "outcome" and rng.randrange(2):
        body = varied(rng, samples.OUTCOME_TREE, is_json=True)
    elif kind == "outcome":
        body = varied(rng, samples.OUTCOME_PACKED, is_json=False)
    else:
        body = varied(rng, samples.LETTER_TREE, is_json=True)
    cause, instance = (text(rng).encode("utf-8", "replace")[:500] for _ in range(2))
    return (kind.encode(), body, rng.choice(REASONS).encode(), cause, instance)


def _relayed(relay: Relay, logs: list[Any], parts: Parts) -> None:
    """Never raises: what is published is for a topic of ours, and so is what becomes of one that is too large."""
    logs.clear()
    kind, body, *rest = (*parts, b"", b"", b"", b"", b"")[:5]
    if kind.decode(errors="replace") not in _KINDS:
        return
    reason, cause, instance = (part.decode(errors="replace") for part in rest)
    row = Outgoing("1800000000000-1", cast("Any", kind.decode()), body, reason, cause, instance)
    for record in relay.records(row):
        short = shortened(record)
        assert len(short[1]) + len(short[2] or b"") <= _SHORT_BYTES, "it is still long"
        for topic, key, value, headers in (record, short):
            assert topic in (_TOPICS.results, _TOPICS.dead_letter)
            assert isinstance(key, bytes)
            assert isinstance(value, bytes)
            assert all(isinstance(name, str) and isinstance(content, bytes) for name, content in headers)


async def _any(payload: Any) -> Any:
    return payload


async def _typed(payload: dict[str, list[int]]) -> int:
    return len(payload)


def _sync(payload: list[Any]) -> str:
    return repr(payload)[:10]


class _Worker:
    """A runner on a loop of its own, as a worker process has it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        handlers, faults = inspect_handlers({"agent": _any, "b": _typed, "c": _sync})
        assert not faults, faults
        self._runner = Runner(handlers, Threads(2))

    def feed(self, parts: Parts) -> None:
        """Start an entry: it is skipped, or there is an ending that can be sent."""
        self._loop.run_until_complete(self._run(parts[0] if parts else b""))

    async def _run(self, raw: bytes) -> None:
        instance = Instance(InstanceSpec(id="i"))
        instance.begin("g", "0-0")
        self._runner.start(instance, "1800000000000-1", raw)
        if self._runner.tasks:
            await asyncio.wait(self._runner.tasks)
        for attempt in instance.take_batch():
            ending = attempt.ending()
            assert ending.how in _HOW
            msgspec.msgpack.encode(ending)
            if ending.how == "succeeded":
                (JSON if ending.detail[:1] == b"{" else MSGPACK).decode_outcome(ending.detail)
        assert all(attempt.is_told for attempt in instance.held.values())

    def close(self) -> None:
        self._loop.run_until_complete(self._runner.close(1.0))


def _delivery(rng: Random) -> Parts:
    return (entry_of_any_kind(rng) if rng.randrange(8) else noise(rng),)


_REQUESTS = (
    b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /metrics?name[]=%ff&x HTTP/1.0\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nAccept: */*;q=a\r\n\r\n",
    b"POST /ready HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"GET //%00/%zz?%%% HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    b"OPTIONS * HTTP/9.9\r\n" + b"A: b\r\n" * 200 + b"\r\n",
)
_PAGE_ODD = (
    b"\r\n",
    b"\n",
    b"\0",
    b" ",
    b"%",
    b"HTTP/1.1",
    b": ",
    b"\xff",
    b"Content-Length: -1\r\n",
    b"?",
    b"/metrics",
)


def _request(rng: Random) -> Parts:
    return (noise(rng) if not rng.randrange(6) else damaged(rng, rng.choice(_REQUESTS), _PAGE_ODD),)


def _answered(port: int, parts: Parts) -> None:
    """The page answers or hangs up, and answers the next one as if nothing had been."""
    # It may hang up before all is sent, or read.
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), _PAGE_WITHIN_S) as sock:
        sock.sendall(b"".join(parts))
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65_536):
            pass
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PAGE_WITHIN_S)
    with contextlib.closing(connection):
        connection.request("GET", "/live")
        assert connection.getresponse().status == 200


@contextlib.contextmanager
def quiet() -> Generator[list[Any]]:
    """Put what is logged into the list: it is right, and much."""
    worker_log = logging.getLogger("taskyard.worker")
    worker_log.disabled = True
    try:
        with structlog.testing.capture_logs() as logs:
            yield logs
    finally:
        worker_log.disabled = False


@contextlib.contextmanager
def loop_targets() -> Generator[list[Target]]:
    """All of them; the page serves until the block is left."""
    with quiet() as logs, _loop_targets(logs) as targets:
        yield targets


@contextlib.contextmanager
def _loop_targets(logs: list[Any]) -> Generator[list[Target]]:
    loop = asyncio.new_event_loop()
    worker = _Worker(loop)
    metrics = Metrics()
    # Neither a cell nor Kafka is asked for what is fed here.
    relay = Relay(cast("Any", None), cast("Any", None), _TOPICS, metrics, "owner")
    health = Health()
    health.beat_s = float("inf")
    web = Web("127.0.0.1", 0, health, metrics)
    try:
        yield [
            Target("outbox", _outgoing, partial(_relayed, relay, logs), 100),
            Target("runner", _delivery, worker.feed, 70),
            Target("page", _request, partial(_answered, web.port), 5),
        ]
    finally:
        web.stop()
        worker.close()
        loop.close()
