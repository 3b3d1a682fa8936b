"""The connection to Redis or Valkey: the one place of this layer that imports redis-py.

Calls are never repeated by the library underneath (its default of ten retries ran a timed-out call twice): whoever
calls knows what may be repeated. Replies are as RESP2 has them: bytes, integers, None and flat lists; the library's
own conversions differ by command and protocol version.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import redis.asyncio as redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from taskyard.schemas.errors import DependencyError

LIBRARY_FILES = ("keys", "vector", "entry", "move", "apply", "lease", "finish", "tick")
"""The function library, in the order in which one part uses another."""

_NAME = "taskyard_v1"
_CALL_TIMEOUT_S = 5.0
_CONNECTIONS = 16


def library() -> str:
    """Read the function library as one text. All versions of it may be loaded beside each other."""
    folder = Path(__file__).with_name("library")
    return f"#!lua name={_NAME}\n" + "\n".join((folder / f"{name}.lua").read_text() for name in LIBRARY_FILES)


class Connection:
    """A pool of connections to the server that has one cell. Safe for any number of asyncio tasks."""

    def __init__(self, url: str, cell: str) -> None:
        """Connect on first use. Raises ValueError if `url` is not redis://, rediss:// or unix://."""
        self.root = f"ty:{{{cell}}}"
        self._url = url
        self._client = self._pool(_CALL_TIMEOUT_S, _CONNECTIONS)
        # One for each reader: a blocked read would keep a connection of the pool.
        self._readers: list[redis.Redis] = []

    def _pool(self, timeout_s: float, size: int) -> redis.Redis:
        pool = redis.BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
            self._url,
            max_connections=size,
            timeout=_CALL_TIMEOUT_S,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=_CALL_TIMEOUT_S,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
        )
        client = redis.Redis(connection_pool=pool)
        client.response_callbacks.clear()
        return client

    async def command(self, *words: str | bytes | float) -> Any:
        """Run one command. Raises DependencyError if the server does not answer or refuses."""
        return await _translated(self._client, words)

    async def call(self, function: str, *arguments: str | bytes | float) -> Any:
        """Call a function of the library on this cell; loads the library if the server lost it."""
        words = ("FCALL", f"ty1_{function}", 1, self.root, *arguments)
        try:
            return await _translated(self._client, words)
        except DependencyError as error:
            if "Function not found" not in str(error):
                raise
        await self.load()
        return await _translated(self._client, words)

    async def load(self) -> None:
        """Load the library, replacing one of the same version."""
        await self.command("FUNCTION", "LOAD", "REPLACE", library())

    def reader(self, *, block_ms: int) -> Callable[..., Awaitable[Any]]:
        """Return a `command` on a connection of its own, for commands that block for at most block_ms."""
        client = self._pool(block_ms / 1000 + _CALL_TIMEOUT_S, 1)
        self._readers.append(client)

        async def command(*words: str | bytes | float) -> Any:
            return await _translated(client, words)

        return command

    async def close(self) -> None:
        """Close all connections."""
        for client in (self._client, *self._readers):
            await client.aclose()
            await client.connection_pool.disconnect()


async def _translated(client: redis.Redis, words: tuple[str | bytes | float, ...]) -> Any:
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        reply = await cast("Any", client).execute_command(*words)
    except ResponseError as error:
        raise DependencyError(f"Redis refused {_named(words)}: {error}") from error
    except (RedisError, OSError, TimeoutError) as error:
        why = error or type(error).__name__
        raise DependencyError(f"Redis did not answer {_named(words)}: {why}; is it up? `taskyard doctor`") from error
    if task and task.cancelling() > before:
        # redis-py waits in `asyncio.wait_for`, which on Python 3.11 swallows a cancellation that comes with the result.
        raise asyncio.CancelledError
    return reply


def _named(words: tuple[str | bytes | float, ...]) -> str:
    return str(words[1] if words[0] == "FCALL" else words[0])
