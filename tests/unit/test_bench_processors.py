"""Keeping processes to half of the machine's processors, for the rows of latency."""

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from bench.processors import halves, keep, kept

THREADED = """
import sys, threading
threading.Thread(target=sys.stdin.read).start()
print("runs", flush=True)
"""


@pytest.fixture
def pid() -> Generator[int]:
    """A process of two threads."""
    with subprocess.Popen([sys.executable, "-c", THREADED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"runs\n"
        yield process.pid
        process.kill()


def processors_of(pid: int) -> list[set[int]]:
    return [os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()]


def test_the_halves_are_all_that_there_is_and_share_nothing_where_there_are_two() -> None:
    outside, inside = halves()

    assert outside | inside == os.sched_getaffinity(0)
    assert not outside & inside or len(outside | inside) == 1


def test_all_threads_of_a_process_are_kept_until_the_block_is_left(pid: int) -> None:
    outside, inside = halves()

    with kept({pid: inside}):
        assert processors_of(pid) == [inside] * 2
        keep(pid, outside)
        assert processors_of(pid) == [outside] * 2

    assert processors_of(pid) == [outside | inside] * 2
