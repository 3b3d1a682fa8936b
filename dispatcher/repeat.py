"""Running a step over and over until the process stops: the one place that backs off when a dependency is away."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from taskyard.dispatcher.metrics import Metrics
from taskyard.schemas.errors import DependencyError

log = structlog.get_logger()

_BASE_S = 0.1
_CAP_S = 5.0


def backoff_s(failures: int) -> float:
    """Exponential with full jitter and a cap (AWS, "Exponential backoff and jitter"). failures: from 1."""
    return random.uniform(0, min(_CAP_S, _BASE_S * 2 ** min(failures, 10)))


Step = Callable[[], Awaitable[bool | None]]
"""Raises DependencyError. False: nothing went wrong so far, but whether the dependency answers is not known yet."""


async def repeat(name: str, step: Step, *, stopping: asyncio.Event, metrics: Metrics, pause_s: float = 0) -> None:
    """Run `step` until `stopping` is set, with `pause_s` between two runs.

    A DependencyError is logged when it first comes and when it is over; anything else ends the process.
    """
    attempts = _Attempts(name, metrics)
    while not stopping.is_set():
        delay_s = pause_s if await attempts.worked(step) else backoff_s(attempts.failures)
        if delay_s:
            await _pause(stopping, delay_s)


async def until_done(name: str, step: Step, *, stopping: asyncio.Event, metrics: Metrics) -> bool:
    """Run `step` until it has worked once; False if the process is to stop first. Errors as in `repeat`.

    A step that is under way when the process is to stop is cut off: waiting for what is away would be all it does.
    """
    attempts = _Attempts(name, metrics)
    while not stopping.is_set():
        if await _unless(stopping, attempts.worked(step), name):
            return True
        await _pause(stopping, backoff_s(attempts.failures))
    return False


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, bool], name: str) -> bool:
    """Return what the work returns; False if it was cut off because the process is to stop."""
    tasks = (asyncio.create_task(work, name=name), asyncio.create_task(stopping.wait(), name=f"stop {name}"))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return not tasks[0].cancelled() and tasks[0].result()


class _Attempts:
    def __init__(self, name: str, metrics: Metrics) -> None:
        self._name = name
        self._metrics = metrics
        self.failures = 0

    async def worked(self, step: Step) -> bool:
        try:
            is_known = await step() is not False
        except DependencyError as error:
            self.failures += 1
            self._metrics.failures.labels(self._name).inc()
            if self.failures == 1:
                log.warning("loop_failed", loop=self._name, error=str(error), next="tries again, more seldom each time")
            return False
        if self.failures and is_known:
            log.info("loop_recovered", loop=self._name, failures=self.failures)
            self.failures = 0
        return True


async def _pause(stopping: asyncio.Event, delay_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), delay_s)
