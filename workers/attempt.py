"""One attempt of a task on an instance: from its arrival until the cell has taken its ending."""

import asyncio
from concurrent.futures import Future
from typing import Any, Literal

from taskyard.dispatcher.cell.contract import Ending
from taskyard.workers.context import Context

How = Literal["succeeded", "retry", "gave_up", "unstarted"]

_MAX_CAUSE_BYTES = 400  # what the cell keeps of one


class Attempt:
    """The record of one attempt. Owned by its instance; written by the runner, and by whoever stops it.

    stream_id: where the cell has it; a resync may change it. raw: the entry, for a resync.
    """

    __slots__ = (
        "_delay_ms", "_detail", "_verdict", "context", "how", "is_taken", "is_told", "number", "raw", "started_ms",
        "stream_id", "task", "task_id", "thread", "type",
    )  # fmt: skip

    def __init__(self, task_id: str, number: int, stream_id: str, raw: bytes) -> None:
        self.task_id = task_id
        self.number = number
        self.stream_id = stream_id
        self.raw = raw
        self.type = ""
        self.started_ms = 0
        self.task: asyncio.Task[None] | None = None
        self.thread: Future[Any] | None = None
        self.context: Context | None = None
        self.how: How | None = None  # None: it runs
        self.is_taken = False  # the cell gave it to another; its end is nobody's business
        self.is_told = False  # its ending is queued for the cell
        self._verdict: tuple[How, str] | None = None
        self._detail = b""
        self._delay_ms = -1

    def end(self, how: How, detail: bytes | str, delay_ms: int = -1) -> None:
        """Say how it ended; the first word counts."""
        if self.how is None:
            self.how = how
            self._detail = detail if isinstance(detail, bytes) else bounded(detail)
            self._delay_ms = delay_ms

    def ending(self) -> Ending:
        """The ending for the cell, once there is one."""
        assert self.how is not None
        return Ending(self.task_id, self.stream_id, self.number, self.how, self._detail, self._delay_ms)

    @property
    def size_bytes(self) -> int:
        """What its ending weighs, about."""
        return len(self._detail) + 100

    def stop(self, how: How, cause: str) -> None:
        """Cancel it; if the handler obeys, that is its ending, else what the handler makes of it."""
        if self.how is None:
            self._verdict = self._verdict or (how, cause)
            self._cancel()

    def take_away(self) -> None:
        """Cancel it without an ending: it is this instance's no more."""
        self.is_taken = True
        if self.how is None:
            self._cancel()

    def give_back(self, cause: str) -> None:
        """Stop it if it waits for a thread, as if it had never come."""
        if self.thread is not None and self.thread.cancel():
            self.stop("unstarted", cause)

    def obey(self) -> bool:
        """End as the one who cancelled wants it. False if nobody had cancelled."""
        if self._verdict is not None:
            # At once: that the worker stops is not the task's fault.
            self.end(*self._verdict, delay_ms=0)
        return self.is_taken or self._verdict is not None

    def _cancel(self) -> None:
        if self.context is not None:
            self.context.cancel()
        if self.task is not None:
            self.task.cancel()


def bounded(cause: str) -> bytes:
    """Cut a cause to what the cell keeps, at a character's end."""
    return str(cause).encode(errors="replace")[:_MAX_CAUSE_BYTES].decode(errors="ignore").encode()
