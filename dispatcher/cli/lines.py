"""Tasks as JSON lines: read without blocking the loop, and parsed one by one."""

import asyncio
import contextlib
import difflib
import os
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import CancelledError
from typing import NamedTuple

import msgspec

from taskyard.schemas.errors import SchemaError
from taskyard.schemas.task import Task

_CHUNK_BYTES = 256 << 10
_AHEAD = 4  # chunks read before they are wanted

_task = msgspec.json.Decoder(Task).decode
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_FIELDS = {*Task.__struct_fields__, "kind"}


class Line(NamedTuple):
    """One line. task: None if it has none; fault says why, empty if the line is blank."""

    number: int
    task: Task | None
    fault: str


def parse(number: int, text: bytes) -> Line:
    """Parse a line; the task gets an id if it has none, and the producer checks the rest.

    A field that a task has not is a fault here: a person has misspelt it.
    """
    if not text.strip():
        return Line(number, None, "")
    try:
        task = _task(text)
        unknown = [name for name in _keys(text) if name not in _FIELDS]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Line(number, None, str(error))
    if unknown:
        near = difflib.get_close_matches(unknown[0], _FIELDS, n=1)
        return Line(number, None, f"a task has no {unknown[0]}" + (f"; did you mean {near[0]}?" if near else ""))
    return Line(number, task, "")


class Lines:
    """The lines of a file or a pipe. read_bytes: how far it has come."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.read_bytes = 0

    async def read(self) -> AsyncGenerator[Line]:
        """Yield every line as soon as it is there."""
        number, rest = 0, b""
        async for chunk in self._chunks():
            self.read_bytes += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            for number, text in enumerate(whole, start=number + 1):  # noqa: B020 - goes on where it stopped
                yield parse(number, text)
        if rest:
            yield parse(number + 1, rest)

    async def _chunks(self) -> AsyncGenerator[bytes]:
        chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue(_AHEAD)
        loop = asyncio.get_running_loop()

        def read() -> None:
            # In a daemon thread, from the bare descriptor: nothing can end a read from a terminal or a quiet pipe, and
            # neither the loop's executor nor Python's own lock of stdin lets a process end before that.
            with contextlib.suppress(RuntimeError, CancelledError):  # the loop has gone
                for chunk in _contents(self._descriptor):
                    asyncio.run_coroutine_threadsafe(chunks.put(chunk), loop).result()

        threading.Thread(target=read, name="taskyard-lines", daemon=True).start()
        while chunk := await chunks.get():
            if isinstance(chunk, OSError):
                raise SchemaError(f"cannot be read: {chunk.strerror}", field="file") from chunk
            yield chunk


def _contents(descriptor: int) -> Iterator[bytes | OSError]:
    """Yield what is there as it comes; at last an empty piece, or the error."""
    chunk = b"-"
    while chunk:
        try:
            chunk = os.read(descriptor, _CHUNK_BYTES)
        except OSError as error:
            yield error
            return
        yield chunk
