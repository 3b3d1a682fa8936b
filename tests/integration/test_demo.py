"""`taskyard demo` on real services: it adds up, also when its processes are killed or it is interrupted."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.conftest import TestServices

_WITHIN_S = 60.0


class Demo:
    """A demo that is running, and what it has printed so far."""

    def __init__(self, services: TestServices, cell: str, prefix: str, output: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "taskyard.dispatcher.cli", "demo", "--kafka", services.kafka]
        command += ["--redis", services.redis, "--cell", cell, "--prefix", prefix, *flags]
        self._output = output
        with output.open("wb") as file:
            # A demo that is killed leaves its temporary folder behind: here the test's is taken.
            environment = {**os.environ, "TMPDIR": str(output.parent)}
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def finished(self) -> int:
        found = re.findall(r"finished (\d+)", self.output)
        return int(found[-1]) if found else 0

    def children(self, what: str) -> list[int]:
        """The process ids of the demo's children whose command line has `what`."""
        found: list[int] = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if parent == self.process.pid and what in command:
                found.append(int(folder.name))
        return found

    def wait_until(self, is_so: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + _WITHIN_S
        while not is_so():
            assert self.process.poll() is None, f"the demo ended before: {what}\n{self.output}"
            assert time.monotonic() < deadline_s, f"not within {_WITHIN_S:.0f} s: {what}\n{self.output}"
            time.sleep(0.05)

    def end(self) -> int:
        try:
            return self.process.wait(_WITHIN_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the demo did not end within {_WITHIN_S:.0f} s\n{self.output}")


Start = Callable[..., Demo]


@pytest.fixture
def start(services: TestServices, cell: str, prefix: str, tmp_path: Path) -> Generator[Start]:
    """Start demos in a cell of their own; whatever still runs afterwards is killed."""
    running: list[Demo] = []

    def started(*flags: str) -> Demo:
        running.append(Demo(services, cell, prefix, tmp_path / f"output-{len(running)}.txt", *flags))
        return running[-1]

    yield started
    for demo in running:
        demo.process.kill()
        demo.process.wait()


def published_and_succeeded(output: str) -> tuple[int, int]:
    found = re.search(r"([\d,]+) published = ([\d,]+) succeeded", output)
    assert found, output
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


def test_a_short_demo_accounts_for_every_task_it_published(start: Start) -> None:
    demo = start("--seconds", "4", "--dispatchers", "1", "--workers", "1", "--rate", "30")

    code = demo.end()

    published, succeeded = published_and_succeeded(demo.output)
    assert code == 0, demo.output
    assert "everything adds up" in demo.output
    assert published == succeeded > 30
    assert re.search(r"audit drift +0 of 4 instances", demo.output)


def test_a_demo_survives_the_kill_of_a_dispatcher_and_a_worker(start: Start) -> None:
    demo = start("--seconds", "8", "--workers", "2", "--rate", "40")
    demo.wait_until(lambda: demo.finished > 20, "tasks are finished")

    victims = [demo.children("rehearsal.host")[0], demo.children(" dispatcher ")[0]]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)

    assert demo.end() == 0, demo.output
    published, succeeded = published_and_succeeded(demo.output)
    assert published == succeeded
    assert demo.output.count("was killed by SIGKILL; starting it again") == 4, "told at once and in the summary"
    assert all(f"(pid {pid})" in demo.output for pid in victims)


def test_an_interrupt_ends_the_load_and_what_was_published_is_still_accounted_for(start: Start) -> None:
    demo = start("--seconds", "0", "--dispatchers", "1", "--workers", "1", "--rate", "30")
    demo.wait_until(lambda: demo.finished > 5, "tasks are finished")

    demo.process.send_signal(signal.SIGINT)

    assert demo.end() == 0, demo.output
    published, succeeded = published_and_succeeded(demo.output)
    assert published == succeeded


def test_its_processes_die_with_a_demo_that_is_killed(start: Start) -> None:
    demo = start("--seconds", "0", "--dispatchers", "1", "--workers", "1", "--rate", "30")
    demo.wait_until(lambda: demo.finished > 5, "tasks are finished")
    children = demo.children("taskyard")
    assert len(children) == 2

    demo.process.kill()
    demo.process.wait()

    deadline_s = time.monotonic() + 10
    while left := [pid for pid in children if _is_alive(pid)]:
        assert time.monotonic() < deadline_s, f"still running: {left}"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("flags", [("--seconds", "-1"), ("--workers", "0"), ("--dispatchers", "0"), ("--rate", "0")])
def test_a_number_that_makes_no_demo_is_refused_before_anything_starts(start: Start, flags: tuple[str, ...]) -> None:
    demo = start(*flags)

    assert demo.end() == 2
    assert f"{flags[0]}" in demo.output
    assert "starting" not in demo.output
