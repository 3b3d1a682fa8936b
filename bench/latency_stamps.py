"""Stamps: when a task was due and when it started, carried in its payload and written to a file for each stream.

Both are CLOCK_MONOTONIC, which all processes of a machine share. A file is appended to by one process and read by
another; nothing of it goes over Kafka. A probe is due at 0: it is not stamped, but makes the file.
"""

import os
import struct
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

from taskyard.schemas.task import AgentType

AGENT_TYPE = AgentType("stamped")
_PAIR = struct.Struct("<qq")
_MEMORY = Path("/dev/shm")


class Stamp(NamedTuple):
    """When a task was due and when its handler started, monotonic ns."""

    due_ns: int
    started_ns: int


def payload_of(due_ns: int, stream: str, hold_ms: int, size_bytes: int) -> bytes:
    """Encode what a handler needs to know as a JSON string of that size."""
    return f'"{due_ns} {hold_ms} {stream} '.encode().ljust(size_bytes - 1, b"x") + b'"'


def stamp(payload: str) -> int:
    """Note that the task of this payload starts now; return for how many ms it is to hold its slot. Cost: 5 us."""
    started_ns = time.monotonic_ns()
    due, hold, stream, _ = payload.split(" ", 3)
    file = _opened(stream)
    if due != "0":
        os.write(file, _PAIR.pack(int(due), started_ns))
    return int(hold)


@cache
def _opened(stream: str) -> int:
    # In the working directory, which is the run's. Unbuffered: whoever counts the stamps must see the last one.
    return os.open(_path(Path.cwd(), stream), os.O_CREAT | os.O_WRONLY | os.O_APPEND)


def is_probed(directory: Path, stream: str) -> bool:
    """Whether the first task of a stream has come through."""
    return _path(directory, stream).exists()


def count(directory: Path, stream: str) -> int:
    """How many tasks of a stream have started; 0 before the first."""
    path = _path(directory, stream)
    return path.stat().st_size // _PAIR.size if path.exists() else 0


def read(directory: Path, stream: str) -> list[Stamp]:
    """Return the stamps of a stream, in the order in which the tasks started."""
    written = _path(directory, stream).read_bytes()
    return [Stamp(*pair) for pair in _PAIR.iter_unpack(written[: len(written) // _PAIR.size * _PAIR.size])]


def new_directory() -> tempfile.TemporaryDirectory[str]:
    """Make the directory of one run; in memory, where there is such a place: a write must not wait for a disk."""
    return tempfile.TemporaryDirectory(prefix="taskyard-bench-", dir=_MEMORY if _MEMORY.is_dir() else None)


def _path(directory: Path, stream: str) -> Path:
    return directory / f"starts.{stream}"
