"""What a handler may know and say about the attempt that it runs."""

from taskyard.schemas.entry import Entry
from taskyard.schemas.task import Task

_MAX_PROGRESS_CHARS = 200  # a beat carries one for each running task


class Context:
    """One attempt, as its handler sees it; asked for by a parameter annotated `Context`. Made for that attempt only.

    task: as published; its payload is still encoded. attempt: from 1. deadline_ms: Unix time, 0: none.
    instance: the id of the instance that runs it. headers: of the record, untouched (`traceparent`, `ce_*` …).
    """

    __slots__ = ("_is_cancelled", "_said", "attempt", "deadline_ms", "headers", "instance", "max_attempts", "task")

    def __init__(self, task: Task, entry: Entry, instance: str) -> None:
        self.task = task
        self.attempt = entry.attempt
        self.max_attempts = entry.max_attempts
        self.deadline_ms = int(entry.deadline_ms)
        self.instance = instance
        self.headers = entry.headers
        self._said = ""  # written by the handler
        self._is_cancelled = False  # written by the worker, once

    @property
    def is_cancelled(self) -> bool:
        """Whether the result is wanted no more: timed out, taken away, or the worker stops.

        An async handler gets CancelledError as well; a sync one can only look here and return early. Any thread.
        """
        return self._is_cancelled

    def progress(self, done: float | str, note: str = "") -> None:
        """Tell how far it is: a fraction from 0 to 1 or a text. The next beat carries the last one. Any thread."""
        text = done if isinstance(done, str) else f"{done:.0%}"
        # A lone surrogate has no form in a beat.
        self._said = f"{text} {note}".strip()[:_MAX_PROGRESS_CHARS].encode(errors="replace").decode()

    @property
    def said(self) -> str:
        """The last progress; empty if there was none."""
        return self._said

    def cancel(self) -> None:
        """Let the handler see that it is cancelled. For the worker: it stops nothing by itself."""
        self._is_cancelled = True
