"""A TCP proxy that does what networks do: delays, cuts, half-opens, swallows. One thread of its own."""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from taskyard.compose.process import free_port

_STOP_WITHIN_S = 5.0
# As every client of Redis writes it; no payload of a run has it.
_XREAD = b"\r\n$5\r\nXREAD\r\n"


class Proxy:
    """Listens on a port of 127.0.0.1 and passes on to another. Methods may be called from any thread.

    port: where clients connect; the same for its whole life.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        # All below are read and written on the proxy's own loop only.
        self.target = target
        self.delay_s = 0.0
        self.is_swallowing = False
        self.is_losing_reads = False
        self.pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self._do(self._open)

    def aim(self, target: int) -> None:
        """Connect to another port from now on; what is connected is cut."""
        self._set(target=target)
        self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        self._on_all(lambda pair: pair.cut())

    def half_open(self) -> None:
        """Let every connection be dead without a word: clients notice nothing, servers see them go. New ones work."""
        self._on_all(lambda pair: pair.half_open())

    def swallow(self, *, is_on: bool) -> None:
        """Let nothing through, in either direction, on old and new connections; what was swallowed does not come later:
        the connections are cut in the end."""
        self._set(is_swallowing=is_on)
        if not is_on:
            self.cut()

    def lose_replies(self) -> None:
        """Let requests through on every connection there is, but no reply any more."""
        self._on_all(lambda pair: pair.lose_replies())

    def lose_reads(self, *, is_on: bool) -> None:
        """Let through no reply on connections, old and new, that have sent an XREAD, and all else; what was lost does
        not come later: those connections are cut in the end."""

        def do() -> None:
            self.is_losing_reads = is_on
            # At the same moment, or what one of them has asked for before would still come.
            for pair in [] if is_on else [pair for pair in self.pairs if pair.is_reader]:
                pair.cut()

        self._call(do)

    def delay(self, delay_s: float) -> None:
        """Hold every piece back for up to twice so long, in order."""
        self._set(delay_s=delay_s)

    def refuse(self) -> None:
        """Cut all connections and take no new ones."""
        self._do(self._close)
        self.cut()

    def accept(self) -> None:
        """Take connections again."""
        self._do(self._open)

    def stop(self) -> None:
        """End the proxy and its thread."""
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_WITHIN_S)
        self._loop.close()

    def _set(self, **values: object) -> None:
        def do() -> None:
            for name, value in values.items():
                setattr(self, name, value)

        self._call(do)

    def _on_all(self, act: Callable[["_Pair"], None]) -> None:
        def do() -> None:
            for pair in list(self.pairs):
                act(pair)

        self._call(do)

    def _call(self, act: Callable[[], None]) -> None:
        done: Future[None] = Future()

        def do() -> None:
            act()
            done.set_result(None)

        self._loop.call_soon_threadsafe(do)
        done.result(_STOP_WITHIN_S)

    def _do(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run_coroutine_threadsafe(make(), self._loop).result(_STOP_WITHIN_S)

    async def _open(self) -> None:
        self._server = await self._loop.create_server(lambda: _Side(_Pair(self)), "127.0.0.1", self.port)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


class _Pair:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client: asyncio.Transport | None = None
        self.server: asyncio.Transport | None = None
        self.is_reader = False  # it has sent an XREAD
        self._early: list[bytes] = []  # from the client, before the server's side is there
        self._is_deaf = False  # nothing goes through any more, in any direction
        self._has_no_replies = False
        self._is_over = False

    def begin(self, client: asyncio.Transport) -> None:
        self.client = client
        self.proxy.pairs.add(self)
        self._connecting = asyncio.get_running_loop().create_task(self._connect(), name="proxy-connect")

    async def _connect(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: _Side(self, is_server=True), "127.0.0.1", self.proxy.target)
        except OSError:
            self.cut()

    def connected(self, server: asyncio.Transport) -> None:
        self.server = server
        if self._is_over:
            server.abort()
        for data in self._early:
            server.write(data)
        self._early.clear()

    def passed(self, data: bytes, *, from_server: bool) -> None:
        """Write what the delay has let through."""
        if self._is_deaf or self._is_over or self.proxy.is_swallowing:
            return
        self.is_reader = self.is_reader or (not from_server and _XREAD in data)
        if from_server and (self._has_no_replies or (self.is_reader and self.proxy.is_losing_reads)):
            return
        to = self.client if from_server else self.server
        if to is not None:
            to.write(data)
        elif not from_server:
            self._early.append(data)

    def half_open(self) -> None:
        self._is_deaf = True
        if self.server is not None:
            _reset(self.server)

    def lose_replies(self) -> None:
        self._has_no_replies = True

    def cut(self) -> None:
        self._is_over = True
        self.proxy.pairs.discard(self)
        for transport in (self.client, self.server):
            if transport is not None:
                _reset(transport)

    def lost(self, *, is_server: bool) -> None:
        """One side has gone; so does the other, unless that is the fault."""
        if not (is_server and self._is_deaf):
            self.cut()

    def pause(self, *, is_server: bool, is_on: bool) -> None:
        """One side takes no more for now: read no more from the other."""
        source = self.client if is_server else self.server
        if source is not None and not source.is_closing():
            with contextlib.suppress(RuntimeError):
                (source.pause_reading if is_on else source.resume_reading)()


def _reset(transport: asyncio.Transport) -> None:
    """Close with a reset rather than an orderly end."""
    with contextlib.suppress(OSError):  # it is closed
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class _Side(asyncio.Protocol):
    """One of the two connections."""

    def __init__(self, pair: _Pair, *, is_server: bool = False) -> None:
        self._pair = pair
        self._is_server = is_server
        self._waiting: deque[tuple[float, bytes]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._is_server:
            self._pair.connected(transport)
        else:
            self._pair.begin(transport)

    def data_received(self, data: bytes) -> None:
        delay_s = self._pair.proxy.delay_s
        if not delay_s and not self._waiting:
            self._pair.passed(data, from_server=self._is_server)
            return
        loop = asyncio.get_running_loop()
        due_s = loop.time() + random.uniform(0, 2 * delay_s)
        if self._waiting:
            due_s = max(due_s, self._waiting[-1][0])
        self._waiting.append((due_s, data))
        loop.call_at(due_s, self._next)

    def _next(self) -> None:
        self._pair.passed(self._waiting.popleft()[1], from_server=self._is_server)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self._pair.lost(is_server=self._is_server)

    def pause_writing(self) -> None:
        self._pair.pause(is_server=self._is_server, is_on=True)

    def resume_writing(self) -> None:
        self._pair.pause(is_server=self._is_server, is_on=False)
