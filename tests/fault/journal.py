"""The journals of a run: what a process writes down, one line for each event, and how they are read back.

Lines are written with one write each, appended, so that a process that is killed leaves whole lines.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

from tests.fault.history import Fate, How, Published, Run

_HOWS: dict[str, How] = {"r": "returned", "x": "raised", "c": "cancelled"}


class Journal:
    """An append-only file of one process."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, *words: object) -> None:
        """Write one line: the words, and the monotonic time in ns."""
        os.write(self._file, f"{' '.join(map(str, words))} {time.monotonic_ns()}\n".encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_published(file: Path, mono_s: Callable[[float], float]) -> list[Published]:
    """Read a producer's journal.

    `s id priority type fate how` when sent; `a id topic partition offset appended_ms` when acknowledged, which `mono_s`
    turns into the monotonic clock's.
    """
    found: dict[str, Published] = {}
    for kind, *words, at_s in _lines(file):
        if kind == "s":
            task_id, priority, agent_type, fate, how = words
            found[task_id] = Published(task_id, priority, agent_type, cast("Fate", fate), how, float(at_s))
        else:
            task_id, topic, partition, offset, appended_ms = words
            found[task_id] = found[task_id]._replace(
                topic=topic, partition=int(partition), offset=int(offset), appended_s=mono_s(float(appended_ms))
            )
    return list(found.values())


def read_runs(files: Iterable[Path]) -> list[Run]:
    """Read workers' journals: `s id attempt instance` at a start; `r`, `x` or `c` and the same at its end.

    A journal is named for its process: `<name>.<pid>.runs`.
    """
    found: list[Run] = []
    for file in files:
        process = file.name.removesuffix(".runs")
        running: dict[tuple[str, ...], Run] = {}
        for kind, *words, at_s in _lines(file):
            place = tuple(words)
            if kind == "s":
                if place in running:  # it is there once more: the earlier start has no end
                    found.append(running[place])
                running[place] = Run(words[0], int(words[1]), words[2], process, float(at_s))
            else:
                found.append(running.pop(place)._replace(ended_s=float(at_s), how=_HOWS[kind]))
        found += running.values()
    return found


def _lines(file: Path) -> Iterator[list[str]]:
    with file.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                *words, mono_ns = line.split()
                yield [*words, str(int(mono_ns) / 1e9)]
