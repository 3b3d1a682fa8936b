"""The threads that run sync handlers."""

import asyncio
import contextvars
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from taskyard.workers.attempt import Attempt
from taskyard.workers.errors import Retry

log = logging.getLogger("taskyard.worker")


async def limited(work: Any, timeout_ms: int) -> Any:
    """Await the work; raises Retry if it takes longer than timeout_ms, having cancelled it."""
    limit = asyncio.timeout(timeout_ms / 1000)
    try:
        async with limit:
            return await work
    except TimeoutError as error:
        if limit.expired():
            raise Retry(f"timed out after {timeout_ms} ms") from error
        raise


class Threads:
    """A pool with one thread for each slot, so that a sync handler starts on arrival as an async one does.

    A thread cannot be stopped: a sync handler that timed out or was cancelled keeps its thread until it returns, while
    the cell has its slot back. A task that comes meanwhile may wait for a thread; its time limit begins then.
    The process does not exit before its threads have returned.
    """

    def __init__(self, size: int) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="taskyard-handler")

    async def run(self, attempt: Attempt, call: Callable[[], Any], timeout_ms: int) -> Any:
        """Run `call` in a thread, with the caller's context variables. Raises what it raises, and Retry on time-out."""
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[None] | None = loop.create_future() if timeout_ms else None

        def in_thread() -> Any:
            if begun is not None:
                loop.call_soon_threadsafe(_resolve, begun)
            try:
                return call()
            except StopIteration as error:
                # No future takes it: the attempt would wait for its end for ever. A coroutine does the same.
                raise RuntimeError("the handler raised StopIteration") from error

        attempt.thread = self._pool.submit(contextvars.copy_context().run, in_thread)
        result = asyncio.wrap_future(attempt.thread)
        try:
            if begun is None:
                return await result
            await begun
            return await limited(result, timeout_ms)
        except (asyncio.CancelledError, Retry):
            if not attempt.thread.cancel() and not attempt.thread.done():
                _warn(attempt)
            raise

    def close(self) -> None:
        """Start nothing more. Does not wait for the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _resolve(begun: asyncio.Future[None]) -> None:
    if not begun.done():
        begun.set_result(None)


def _warn(attempt: Attempt) -> None:
    if attempt.context is not None:
        attempt.context.cancel()
    log.warning(
        "thread_kept",
        extra={"task_id": attempt.task_id, "type": attempt.type, "next": "its thread is free when the handler returns"},
    )
