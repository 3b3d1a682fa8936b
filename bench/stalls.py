"""How long an event loop stops at most: a ticker beside what a process does, on the same loop.

    python -m bench.stalls DIRECTORY NAME dispatcher --cell main …

runs a `taskyard` command as a user does, but in DIRECTORY, with the ticker, which writes DIRECTORY/stalls.NAME.
A tick comes late if the loop was busy, or if the machine ran something else: the processor time that the loop's thread
spent meanwhile tells one from the other. A stop is told as shorter by up to a tick.

It imports little: what a process has loaded is looked at by each full garbage collection, which stops its loop (26 ms
with the rest of the bench on board, seen).
"""

import asyncio
import os
import struct
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

TICK_S = 0.002
"""Each tick takes processor time from what is watched."""
# One line in the file for each such stretch of time: a run's stalls are those of its stretches.
_STRETCH_NS = 100_000_000
_PREFIX = "stalls."
_RECORD = struct.Struct("<qqqq")


class Stretch(NamedTuple):
    """The longest stop in a stretch of time (monotonic ns), and the most processor time that a stop took."""

    began_ns: int
    ended_ns: int
    stop_ns: int
    cpu_ns: int


async def watched(main: Coroutine[Any, Any, T], file: Path) -> T:
    """Run a coroutine with a ticker beside it that writes its stretches to the file."""
    ticker = asyncio.create_task(_tick(file), name="ticker")
    try:
        return await main
    finally:
        ticker.cancel()


async def _tick(file: Path) -> None:
    # Unbuffered, ten times a second: whoever reads the file sees all but the last stretch.
    with file.open("ab", buffering=0) as out:
        while True:
            out.write(_RECORD.pack(*await stretch()))


async def stretch() -> Stretch:
    """Tick for 0.1 s and tell the longest stop."""
    began_ns = before_ns = time.monotonic_ns()
    cpu_before_ns = time.thread_time_ns()
    stop_ns = most_cpu_ns = 0
    while before_ns - began_ns < _STRETCH_NS:
        await asyncio.sleep(TICK_S)
        now_ns, cpu_ns = time.monotonic_ns(), time.thread_time_ns()
        stop_ns = max(stop_ns, now_ns - before_ns - int(TICK_S * 1e9))
        most_cpu_ns = max(most_cpu_ns, cpu_ns - cpu_before_ns)
        before_ns, cpu_before_ns = now_ns, cpu_ns
    return Stretch(began_ns, before_ns, stop_ns, most_cpu_ns)


def longest(stretches: Sequence[Stretch], began_ns: int, ended_ns: int) -> dict[str, float]:
    """Return the longest stop of the stretches that touch this time: `stall_ms`, and `stall_cpu_ms` spent in one.

    stall_ms far above stall_cpu_ms: the loop was ready and the machine did something else. Raises ValueError if no
    stretch touches it.
    """
    inside = [stretch for stretch in stretches if stretch.ended_ns > began_ns and stretch.began_ns < ended_ns]
    if not inside:
        raise ValueError("the ticker wrote nothing during the run")
    stop_ns, cpu_ns = (max(values) for values in zip(*[stretch[2:] for stretch in inside], strict=True))
    return {"stall_ms": stop_ns / 1e6, "stall_cpu_ms": cpu_ns / 1e6}


def read(directory: Path, name: str) -> list[Stretch]:
    """Return what the ticker of this name has written."""
    written = stalls_file(directory, name).read_bytes()
    return [Stretch(*fields) for fields in _RECORD.iter_unpack(written[: len(written) // _RECORD.size * _RECORD.size])]


def names(directory: Path) -> list[str]:
    """Return the names of the tickers that wrote here."""
    return sorted(path.name.removeprefix(_PREFIX) for path in directory.glob(f"{_PREFIX}*"))


def stalls_file(directory: Path, name: str) -> Path:
    """Where a ticker writes."""
    return directory / f"{_PREFIX}{name}"


def command(directory: Path, line: Sequence[str]) -> tuple[str, ...]:
    """Make of the command line of a `taskyard` command (`rig.taskyard`) one with a ticker named after the command."""
    python, _, _, *words = line
    return (python, "-m", "bench.stalls", str(directory), words[0], *words)


def main(directory: str, name: str, words: Sequence[str]) -> int:
    """Run a command with a ticker on its loop. Returns its exit code."""
    # Not needed to watch another process's loop, and large.
    from taskyard.dispatcher.cli import app, loop  # noqa: PLC0415

    os.chdir(directory)
    file, run = stalls_file(Path(directory), name), loop.run

    def run_watched(main: Coroutine[Any, Any, T]) -> T:
        return run(watched(main, file))

    # The one place through which every command starts its loop; a command imports it when it runs.
    loop.run = run_watched
    return app.run(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
