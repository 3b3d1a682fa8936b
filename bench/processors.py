"""Two halves of the machine's processors, so that what is measured has one to itself, as it has a machine elsewhere.

Outside: Kafka and whoever publishes. Inside: Taskyard with its Valkey, or the baseline's reader. On two processors that
are nearly full the system moves all of them about; with halves the pairs of the latency rows lie closer together.
"""

import contextlib
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import NamedTuple

Processors = frozenset[int]


class Halves(NamedTuple):
    """The same one where there is one only; both empty where the system does not let one choose (macOS)."""

    outside: Processors
    inside: Processors


def halves() -> Halves:
    """Halve the processors that this process may use."""
    if not hasattr(os, "sched_getaffinity"):
        return Halves(frozenset(), frozenset())
    ours = sorted(os.sched_getaffinity(0))
    middle = (len(ours) + 1) // 2
    return Halves(frozenset(ours[:middle]), frozenset(ours[middle:] or ours))


@contextlib.contextmanager
def kept(processes: Mapping[int, Processors]) -> Generator[None]:
    """Keep processes that run already to some processors until the block is left. processes: by pid."""
    halved = halves()
    try:
        for pid, processors in processes.items():
            keep(pid, processors)
        yield
    finally:
        for pid in processes:
            keep(pid, halved.outside | halved.inside)


def keep(pid: int, processors: Processors) -> None:
    """Keep all threads of a process to some processors; those that it makes later follow. Does nothing for none."""
    for thread in Path(f"/proc/{pid}/task").glob("*") if processors else ():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), processors)
