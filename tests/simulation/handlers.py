"""What the simulated workers run, and what is known of it afterwards."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from taskyard.workers.context import Context
from taskyard.workers.errors import GiveUp, Retry
from tests.simulation.process import Process
from tests.simulation.workload import TYPES


class Run(NamedTuple):
    """One run of a handler. how: `begun`, `returned` or `raised`."""

    at_s: float
    process: str
    instance: str
    task_id: str
    attempt: int
    how: str


class Handlers:
    """The handlers of one process. tell: what is done with each Run. slowness: durations are so many times as long."""

    def __init__(self, process: Process, tell: Callable[[Run], None]) -> None:
        self._process = process
        self._tell = tell
        self.slowness = 1.0

    def by_type(self) -> dict[str, Callable[..., Any]]:
        """The handler of each agent type."""
        return dict.fromkeys(TYPES, self._handle)

    def _note(self, context: Context, how: str) -> None:
        if not self._process.is_dead:
            now_s = asyncio.get_running_loop().time()
            self._tell(Run(now_s, self._process.name, context.instance, context.task.id, context.attempt, how))

    async def _handle(self, payload: dict[str, Any], context: Context) -> str:
        self._note(context, "begun")
        try:
            await self._do(payload["how"], payload["ms"] * self.slowness, context)
        except BaseException:
            self._note(context, "raised")
            raise
        self._note(context, "returned")
        return context.instance

    async def _do(self, how: str, ms: float, context: Context) -> None:
        if ms:
            await asyncio.sleep(ms / 1000)
        match how:
            case "fail":
                raise ValueError("as it was told")
            case "fail_once" if context.attempt == 1:
                raise ValueError("the first time")
            case "retry" if context.attempt <= 2:
                raise Retry("not now", delay_s=0.05 * context.attempt)
            case "give_up":
                raise GiveUp("never")
            case "hang":
                await asyncio.sleep(3600)
            case "exit":
                raise SystemExit(1)
            case _:
                pass
