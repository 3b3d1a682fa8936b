"""The trace: what happened, in order. Kept as it came; put into words only if somebody wants to read it."""

import hashlib
import logging
import traceback
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple

import structlog

from taskyard.dispatcher.cell.contract import Batch, Delivery, Ending, Outgoing, Planned, Running
from tests.simulation.process import Process, process_of
from tests.simulation.sight import decoded

_KEPT = 4_000
_MOST_CHARS = 220
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message"}


class Event(NamedTuple):
    """One thing that happened."""

    at_s: float
    who: str
    what: str
    detail: object


class Trace:
    """The events of one run. is_hashed: also make a digest of all, in words, which costs about as much as the run."""

    def __init__(self, now_s: Callable[[], float], *, is_hashed: bool = False, is_whole: bool = False) -> None:
        self._now_s = now_s
        self._hash = hashlib.sha256() if is_hashed else None
        self.events: deque[Event] = deque(maxlen=None if is_whole else _KEPT)
        self.count = 0

    def note(self, who: str, what: str, detail: object = "") -> None:
        """Add an event."""
        event = Event(self._now_s(), who, what, detail)
        self.events.append(event)
        self.count += 1
        if self._hash is not None:
            self._hash.update(in_words(event).encode())

    def call(self, process: Process, call: str, told: object, end: object) -> None:
        """Add a call that a server has answered."""
        self.note(process.name, call, (told, end))

    def error(self, error: BaseException | None) -> None:
        """Add where an error came from."""
        if error is not None:
            self.note("!", "traceback", "".join(traceback.format_exception(error)))

    @property
    def digest(self) -> str:
        """Of all events."""
        return self._hash.hexdigest() if self._hash else ""


def in_words(event: Event) -> str:
    """One line, or a traceback."""
    if event.what == "traceback":
        return str(event.detail)
    return f"{event.at_s:9.4f} {event.who:<8} {event.what:<16} {_said(event.detail)}"[:_MOST_CHARS]


def _said(detail: Any) -> str:
    if isinstance(detail, Batch):
        return f"{[tuple(r) for r in detail.ranges]} {_said(list(detail.tasks))} refused={len(detail.refused)}"
    if isinstance(detail, Planned):
        return decoded(detail.entry).id
    if isinstance(detail, Delivery):
        return f"{detail.instance}<-{decoded(detail.entry).id}@{detail.stream_id}"
    if isinstance(detail, Ending):
        return f"{detail.task_id}/{detail.attempt} {detail.how}@{detail.stream_id}"
    if isinstance(detail, Running):
        return f"{detail.task_id}/{detail.attempt}@{detail.stream_id}"
    if isinstance(detail, Outgoing):
        return f"{detail.kind}@{detail.stream_id}"
    if isinstance(detail, bytes):
        return f"<{len(detail)} bytes>"
    if type(detail) in (tuple, list):
        items: list[object] = list(detail)
        return "(" + ", ".join(_said(item) for item in items if item not in ((), {}, [])) + ")"
    return repr(detail)


def _from_structlog(_: object, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    process = process_of(None)
    if process is not None and not process.is_dead:
        fields = {name: value for name, value in event.items() if name not in ("event", "next")}
        process.log(process.name, f"{level} {event['event']}", fields)
    raise structlog.DropEvent


class _Tracing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        process = process_of(None)
        if process is not None and not process.is_dead:
            fields = {name: value for name, value in vars(record).items() if name not in _STANDARD and name != "next"}
            process.log(process.name, f"{record.levelname.lower()} {record.getMessage()}", fields)


def trace_logs() -> None:
    """Send what our code logs to the trace of the process that logs, for the life of this interpreter."""
    structlog.configure(processors=[_from_structlog], cache_logger_on_first_use=False)
    log = logging.getLogger("taskyard.worker")
    log.handlers, log.propagate = [_Tracing()], False
    log.setLevel(logging.INFO)
