"""The link to the cell: calls that are repeated until the cell answers."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from taskyard.schemas.errors import DependencyError

T = TypeVar("T")
log = logging.getLogger("taskyard.worker")

_FIRST_S = 0.1
_CAP_S = 5.0


def backoff_s(failures: int, *, first_s: float = _FIRST_S, cap_s: float = _CAP_S) -> float:
    """Choose a wait: full jitter below a cap that doubles with each failure."""
    return random.uniform(0.0, min(cap_s, first_s * 2 ** min(failures, 16)))


class Link:
    """Whether the cell answers this process. Each change is logged once, whichever loop sees it first."""

    def __init__(self) -> None:
        self._down_s: float | None = None  # when it was first seen down, monotonic; written by every caller

    async def answer(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call()` until the cell answers; it must be idempotent.

        Only DependencyError is repeated. Has no limit of its own: whoever waits no longer cancels it.
        """
        failures = 0
        while True:
            try:
                return await self.once(call)
            except DependencyError:
                await asyncio.sleep(backoff_s(failures))
                failures += 1

    async def once(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call()` and note whether the cell answered. Raises DependencyError if it did not.

        A cancellation that arrives just when redis-py has sent a command is lost: it sends under `asyncio.wait_for`,
        which in Python 3.11 returns the result instead. The task's count of cancellations still tells, so it is raised
        here, after the call.
        """
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        try:
            reply = await call()
        except DependencyError as error:
            self._failed(error)
            if task.cancelling() > before:
                raise asyncio.CancelledError from error
            raise
        self._answered()
        if task.cancelling() > before:
            raise asyncio.CancelledError
        return reply

    def _failed(self, error: DependencyError) -> None:
        if self._down_s is None:
            self._down_s = time.monotonic()
            next_step = "running tasks go on, endings are kept, calls are repeated"
            log.warning("cell_unreachable", extra={"error": str(error), "next": next_step})

    def _answered(self) -> None:
        if self._down_s is not None:
            log.info("cell_reachable", extra={"after_s": round(time.monotonic() - self._down_s, 1)})
            self._down_s = None
