"""Connections to the server of the cell, and exchanges over them. Nothing else of this layer uses redis-py.

Commands go straight over the connections. redis-py's own client would repeat a call that timed out (ten times by
default: a timed-out `fcall` ran twice), convert replies by command, and on Python 3.11 swallow a cancellation that
comes with the reply (it waits in `asyncio.wait_for`). Whoever calls knows what may be repeated; replies are as RESP2
has them: bytes, integers, None and flat lists.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import hiredis
import redis.asyncio as redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, MasterDownError, ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from taskyard.schemas.errors import DependencyError

# Its stub knows only tuples of one word.
_pack = cast("Any", hiredis).pack_command

Word = str | bytes | float
OnSent = Callable[[], None]


class Pool:
    """At most `size` connections, made when they are needed; who finds none waits for one.

    redis-py makes and checks them, but does not hand them out: its own pool spends as much on that, with a condition,
    a timeout and counters for each exchange, as the exchange costs.
    """

    def __init__(self, url: str, size: int) -> None:
        """Connect on first use. Raises ValueError if `url` is not redis://, rediss:// or unix://."""
        self._maker: Any = redis.ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
            url,
            protocol=2,
            # Timeouts are ours, one for the whole exchange.
            socket_timeout=None,
            socket_connect_timeout=None,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
        )
        self._places = asyncio.Semaphore(size)
        self._all: list[Any] = []
        # Those that nobody uses: the last used is the next.
        self._idle: list[Any] = []

    async def exchange(self, words: tuple[Word, ...], timeout_s: float, on_sent: OnSent | None = None) -> Any:
        """Send a command and return its reply. on_sent: called as soon as the request is written.

        Raises DependencyError if there is no reply within the time, or if the server refuses.
        """
        name = words[1] if words[0] == "FCALL" else words[0]
        try:
            async with asyncio.timeout(timeout_s), self._places:
                connection = self._idle.pop() if self._idle else self._new()
                try:
                    return await self._answered(connection, words, on_sent)
                finally:
                    self._idle.append(connection)
        except ResponseError as error:
            raise DependencyError(f"Redis refused {name}: {error}") from error
        except (RedisError, OSError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise DependencyError(f"Redis did not answer {name}: {why}; is it up? `taskyard doctor`") from error

    async def close(self) -> None:
        """Close all connections, and with them the exchanges that are under way."""
        for connection in self._all:
            await connection.disconnect()

    def _new(self) -> Any:
        connection = self._maker.make_connection()
        self._all.append(connection)
        return connection

    async def _answered(self, connection: Any, words: tuple[Word, ...], on_sent: OnSent | None) -> Any:
        try:
            await self._maker.ensure_connection(connection)
            await _send(connection, words)
            if on_sent is not None:
                on_sent()
            return await connection.read_response()
        except (ReadOnlyError, MasterDownError, BusyLoadingError):
            # A server that was a primary once, or is not yet one: who answers at this address next may be another.
            await connection.disconnect(nowait=True)
            raise
        except ResponseError:
            raise
        except BaseException:
            # Cut off before the reply, its own or that to the greeting: what still comes must not be read as another's.
            await connection.disconnect(nowait=True)
            raise


async def _send(connection: Any, words: tuple[Word, ...]) -> None:
    try:
        # Packed here, because redis-py's asyncio connection does it in Python: half of what a small call costs.
        await connection.send_packed_command([_pack(words)])
    except RuntimeError as error:
        # uvloop's word for a connection that has been closed meanwhile; asyncio's own loop says it with an OSError.
        raise ConnectionError(str(error)) from error
