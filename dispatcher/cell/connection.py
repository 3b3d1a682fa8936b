"""The connection to Redis or Valkey: the one place of this layer that imports redis-py and hiredis.

Commands go straight over the pool's connections. redis-py's own client would repeat a call that timed out (ten times by
default: a timed-out `fcall` ran twice), convert replies by command, and on Python 3.11 swallow a cancellation that
comes with the reply (it waits in `asyncio.wait_for`). Whoever calls knows what may be repeated; replies are as RESP2
has them: bytes, integers, None and flat lists.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import hiredis
import redis.asyncio as redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, MasterDownError, ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from taskyard.schemas.errors import DependencyError

LIBRARY_FILES = (
    "keys",
    "vector",
    "headroom",
    "entry",
    "move",
    "apply",
    "lease",
    "finish",
    "tick",
    "carry",
    "check",
    "index",
    "audit",
)
"""The function library, in the order in which one part uses another."""

_BUILD = 15
"""Of the library's text, from 1: raised with every change of it. A server keeps the newest of those with one name."""

_CALL_TIMEOUT_S = 5.0
_CONNECTIONS = 16

# Its stub knows only tuples of one word.
_pack = cast("Any", hiredis).pack_command

Word = str | bytes | float
OnSent = Callable[[], None]


class Library(NamedTuple):
    """A function library. prefix: of its functions' names, the version of their arguments and replies.

    Of two texts under one name the newer build stays, so that old and new dispatchers of a rolling upgrade do not take
    the library from each other. A change of arguments, replies or keys needs another name and prefix: both then live
    side by side.
    """

    name: str
    prefix: str
    build: int
    text: str


def library() -> Library:
    """Read the function library as one text."""
    folder = Path(__file__).with_name("library")
    parts = [(folder / f"{name}.lua").read_text() for name in LIBRARY_FILES]
    return Library("taskyard_v1", "ty1", _BUILD, "\n".join(parts))


class Connection:
    """A pool of connections to the server that has one cell. Safe for any number of asyncio tasks."""

    def __init__(self, url: str, cell: str, *, functions: Library | None = None) -> None:
        """Connect on first use. Raises ValueError if `url` is not redis://, rediss:// or unix://."""
        self._functions = functions or library()
        self.root = f"ty:{{{cell}}}"
        self._url = url
        self._pool = _pool(url, _CONNECTIONS)
        # One for each reader: a blocked read would keep a connection of the pool.
        self._readers: list[redis.BlockingConnectionPool] = []

    async def command(self, *words: Word) -> Any:
        """Run one command. Raises DependencyError if the server does not answer or refuses."""
        return await _exchange(self._pool, words, _CALL_TIMEOUT_S)

    async def call(self, function: str, *arguments: Word, on_sent: OnSent | None = None) -> Any:
        """Call a function of the library on this cell; loads the library if the server lost it.

        on_sent: called as soon as the request is written, so that the caller may use the time until the reply.
        """
        words = ("FCALL", f"{self._functions.prefix}_{function}", 1, self.root, *arguments)
        try:
            return await _exchange(self._pool, words, _CALL_TIMEOUT_S, on_sent)
        except DependencyError as error:
            if "Function not found" not in str(error):
                raise
        await self.load()
        return await _exchange(self._pool, words, _CALL_TIMEOUT_S, on_sent)

    async def load(self) -> None:
        """Load the library, unless it or a newer build is there.

        To load it is a write of 80 KB to the server's log, which a server that has no memory left refuses.
        """
        name, _, build, text = self._functions
        there = await self.loaded()
        if there is None or there[0] < build or (there[0] == build and there[1] != text):
            await self.command("FUNCTION", "LOAD", "REPLACE", f"#!lua name={name}\n-- build {build}\n{text}")

    async def loaded(self) -> tuple[int, str] | None:
        """Ask for the build and the text of the library that the server has; None if it has none of this name."""
        found = await self.command("FUNCTION", "LIST", "LIBRARYNAME", self._functions.name, "WITHCODE")
        if not found:
            return None
        code = dict(zip(found[0][::2], found[0][1::2], strict=True))[b"library_code"].decode()
        _, said, text = code.split("\n", 2)
        build = re.fullmatch(r"-- build (\d+)", said)
        return (int(build[1]), text) if build else (0, code)

    def reader(self, *, block_ms: int) -> Callable[..., Awaitable[Any]]:
        """Return a `command` on a connection of its own, for commands that block for at most block_ms."""
        pool = _pool(self._url, 1)
        self._readers.append(pool)

        async def command(*words: Word) -> Any:
            return await _exchange(pool, words, block_ms / 1000 + _CALL_TIMEOUT_S)

        return command

    async def close(self) -> None:
        """Close all connections."""
        for pool in (self._pool, *self._readers):
            await pool.disconnect()


def _pool(url: str, size: int) -> redis.BlockingConnectionPool:
    return redis.BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        url,
        max_connections=size,
        timeout=_CALL_TIMEOUT_S,
        protocol=2,
        # Timeouts are ours, one for the whole exchange.
        socket_timeout=None,
        socket_connect_timeout=None,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )


async def _exchange(
    pool: redis.BlockingConnectionPool, words: tuple[Word, ...], timeout_s: float, on_sent: OnSent | None = None
) -> Any:
    name = words[1] if words[0] == "FCALL" else words[0]
    try:
        async with asyncio.timeout(timeout_s):
            connection = await cast("Any", pool).get_connection()
            try:
                return await _answered(connection, words, on_sent)
            finally:
                await pool.release(connection)
    except ResponseError as error:
        raise DependencyError(f"Redis refused {name}: {error}") from error
    except (RedisError, OSError, TimeoutError) as error:
        why = str(error) or type(error).__name__
        raise DependencyError(f"Redis did not answer {name}: {why}; is it up? `taskyard doctor`") from error


async def _send(connection: Any, words: tuple[Word, ...]) -> None:
    try:
        # Packed here, because redis-py's asyncio connection does it in Python: half of what a small call costs.
        await connection.send_packed_command([_pack(words)])
    except RuntimeError as error:
        # uvloop's word for a connection that has been closed meanwhile; asyncio's own loop says it with an OSError.
        raise ConnectionError(str(error)) from error


async def _answered(connection: Any, words: tuple[Word, ...], on_sent: OnSent | None) -> Any:
    try:
        await _send(connection, words)
        if on_sent is not None:
            on_sent()
        return await connection.read_response()
    except (ReadOnlyError, MasterDownError, BusyLoadingError):
        # A server that was a primary once, or is not yet one: whoever answers at this address next time may be another.
        await connection.disconnect(nowait=True)
        raise
    except ResponseError:
        raise
    except BaseException:
        # Cut off between request and reply: what still comes must not be read as the reply to another command.
        await connection.disconnect(nowait=True)
        raise
