"""Waiting for Kafka: every wait has an end, and aiokafka's errors become DependencyError."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from taskyard.schemas.errors import DependencyError

T = TypeVar("T")

# What aiokafka fails with where it takes for granted what a broker may not tell: that there is one, that a topic is
# there. uvloop's word for a connection that has just been closed is a RuntimeError.
_CLIENT_FAULTS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, asyncio.InvalidStateError)

TIMEOUT_S = 10.0
# A client whose broker answers stops within milliseconds; of one whose broker is away nothing more can be had.
_STOP_TIMEOUT_S = 2.0


async def stopped(stop: Coroutine[Any, Any, None]) -> None:
    """Wait for a client to stop, but not for long; in a task of its own, which may end as cancelled (broker away)."""
    task = asyncio.create_task(stop, name="stop a Kafka client")
    try:
        await asyncio.wait([task], timeout=_STOP_TIMEOUT_S)
    finally:
        if not task.cancel() and not task.cancelled():
            task.exception()  # seen, so that nobody is told: there is nothing left to do about it


async def timed(wait: Awaitable[T], what: str, *, timeout_s: float = TIMEOUT_S) -> T:
    """Wait for it. Raises DependencyError, which says `what` could not be done."""
    try:
        async with asyncio.timeout(timeout_s):
            return await wait
    except TopicAlreadyExistsError:
        raise
    except TimeoutError as error:
        raise DependencyError(f"Kafka did not {what} within {timeout_s:.0f} s; is it up? `taskyard doctor`") from error
    except (KafkaError, OSError) as error:
        raise DependencyError(f"cannot {what}: {str(error) or type(error).__name__}") from error
    except _CLIENT_FAULTS as error:
        raise DependencyError(f"cannot {what}: {type(error).__name__} in the Kafka client: {error}") from error


@contextlib.asynccontextmanager
async def running(client: Any, stop: Callable[[], Coroutine[Any, Any, None]], what: str) -> AsyncGenerator[None]:
    """Start the client, and stop it when the block is left."""
    try:
        await timed(client.start(), f"reach {what}")
        yield
    finally:
        await stopped(stop())
