"""The command line on real services: from `taskyard up` to where a task went and why another waits."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from taskyard.compose import embedded

PROGRAM = Path(sys.executable).with_name("taskyard")
WITHIN_S = 40.0
AGENTS = """
import asyncio

def echo(value):
    return value

def fail(value):
    raise ValueError("the model said no")

async def wait(value):
    await asyncio.sleep(3600)

handlers = {"echo": echo, "fail": fail, "wait": wait}
"""


@dataclass
class Yard:
    """A cell of its own on the shared services, as a user's shell sees it."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [PROGRAM, *words], input=stdin, capture_output=True, text=True, timeout=WITHIN_S, check=False,
            cwd=self.folder, env=self.environment,
        )  # fmt: skip

    def json(self, *words: str) -> Any:
        """Run a command with --json; None if it failed."""
        done = self.run(*words, "--json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    @contextlib.contextmanager
    def running(self, *words: str) -> Generator[subprocess.Popen[str]]:
        """Run a command beside the block; afterwards it must end in order."""
        with subprocess.Popen(
            [PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=self.folder, env=self.environment,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()
                try:
                    told, _ = process.communicate(timeout=WITHIN_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise
            assert process.returncode == 0, told


def eventually(what: str, find: Callable[[], Any]) -> Any:
    """Return what `find` finds as soon as it finds something."""
    deadline_s = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline_s:
        if found := find():
            return found
    return pytest.fail(f"not within {WITHIN_S:.0f} s: {what}")


def shell(folder: Path, kafka: str, redis_url: str, cell: str, prefix: str) -> Yard:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("TASKYARD_")}
    ours = {"KAFKA": kafka, "REDIS": redis_url, "CELL": cell, "PREFIX": prefix, "TOPICS_PARTITIONS": "1"}
    (folder / "agents.py").write_text(AGENTS)
    return Yard(folder, outside | {f"TASKYARD_{name}": value for name, value in ours.items()})


@pytest.fixture
def yard(kafka_address: str, redis_url: str, cell: str, prefix: str, tmp_path: Path) -> Yard:
    """An empty cell: nothing runs and there are no topics."""
    return shell(tmp_path, kafka_address, redis_url, cell, prefix)


@pytest.fixture(scope="module")
def placed(kafka_address: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Yard]:
    """A cell at work, shared by the tests that only add to it: two workers of two slots, one for tasks that never end.

    An hour and more between two attempts: a failed task is seen while it waits.
    """
    name = f"test-{uuid.uuid4().hex[:12]}"
    yard = shell(tmp_path_factory.mktemp("yard"), kafka_address, redis_url, name, f"{name}.")
    (yard.folder / "taskyard.toml").write_text(
        "[retry]\nbase_ms = 3_600_000_000\ncap_ms = 3_600_000_000\n"
        "[order]\nheadroom_permille = 0\n[worker]\ndrain_ms = 0\n"
    )
    offer = ("--slots", "2", "--label", "region=eu", "--capacity", "gpu=1")
    quick, endless = ("--type", "echo", "--type", "fail"), ("--type", "wait")
    with yard.running("dispatcher", "--http-port", "0"):
        # The headroom of an instance is that of the cell when it registers.
        eventually("the cell is open", lambda: yard.json("status")["generation"])
        with (
            yard.running("worker", "agents:handlers", *quick, *offer),
            yard.running("worker", "agents:handlers", *endless, *offer),
        ):
            eventually("both instances", lambda: len(yard.json("status")["fleet"]) == 2)
            yield yard
    # redis-py types itself only in part.
    client: Any = redis.Redis.from_url(redis_url)  # pyright: ignore[reportUnknownMemberType]
    with contextlib.closing(client):
        for key in client.scan_iter(match=f"*{{{name}}}*"):
            client.unlink(key)


def test_up_runs_both_services_creates_the_topics_and_keeps_the_data(tmp_path: Path, yard: Yard) -> None:
    del yard.environment["TASKYARD_KAFKA"], yard.environment["TASKYARD_REDIS"]
    words = ("up", "--data", "kept", "--kafka-port", "0", "--redis-port", "0")

    with yard.running(*words) as process:
        assert process.stdout is not None
        told = ""
        while "Ctrl-C" not in told:
            line = process.stdout.readline()
            assert line, told
            told += line
        exports = dict(re.findall(r"export (\w+)=(\S+)", told))
        yard.environment |= exports
        published = yard.run("publish", "--type", "echo", "--id", "one")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=WITHIN_S)

    assert set(exports) == {"TASKYARD_KAFKA", "TASKYARD_REDIS", "TASKYARD_PREFIX"}
    assert (published.returncode, published.stdout) == (0, "one\n"), published.stderr
    assert (tmp_path / "kept" / "kafka").is_dir()
    assert "taskyard dispatcher\n" in told


def test_a_published_task_is_run_and_found_finished(placed: Yard) -> None:
    published = placed.run("publish", "--type", "echo", "--payload", '{"n": 1}', "--priority", "critical")

    task_id = published.stdout.strip()
    finished = eventually("the task is finished", lambda: _in_state(placed, task_id, "finished"))
    shown = placed.run("task", task_id).stdout

    assert finished["instance"]
    assert f"finished on {finished['instance']}" in shown
    told = eventually("the outcome is published", lambda: _outcome(placed, task_id))
    assert (told["status"], told["cause"]) == ("succeeded", "")
    assert "least-agent-load chose" in placed.run("task", task_id).stdout


def test_a_dead_task_shows_why_it_died(placed: Yard) -> None:
    published = placed.run("publish", "--type", "fail", "--max-attempts", "1")

    task_id = published.stdout.strip()
    eventually("the task is dead", lambda: _in_state(placed, task_id, "dead"))
    eventually("the outcome is published", lambda: _outcome(placed, task_id))
    shown = placed.run("task", task_id).stdout

    assert "attempts: ValueError: the model said no" in shown
    assert "least-agent-load chose" in shown


def test_a_running_task_shows_how_its_place_was_chosen(placed: Yard) -> None:
    placed.run("publish", "--type", "wait", "--id", "long", "--tenant", "acme")

    found = eventually("the worker has it", lambda: (t := _in_state(placed, "long", "queued")) and t["is_read"] and t)
    shown = placed.run("task", "long").stdout
    queue = placed.run("queue", found["instance"]).stdout
    status = placed.json("status")
    instance = next(instance for instance in status["fleet"] if instance["id"] == found["instance"])

    assert found["receipt"]["chosen"] == found["instance"]
    assert found["tenant"] == "acme"
    assert f"chose {found['instance']}" in shown
    assert "its worker has it" in shown
    assert re.search(r"^long +taken ", queue, re.MULTILINE)
    assert status["slots"]["capacity"] == 4
    assert instance["used"]["slots"] >= 1
    assert (instance["labels"], instance["types"]) == ({"region": "eu"}, ["wait"])
    assert instance["capacity"] == {"slots": 2, "gpu": 1}
    assert status["lag"] == {"critical": 0, "high": 0, "normal": 0, "low": 0}


def test_an_attempt_that_failed_is_shown_with_its_cause(placed: Yard) -> None:
    placed.run("publish", "--type", "fail", "--id", "unlucky")

    found = eventually("its first attempt has failed", lambda: _in_state(placed, "unlucky", "later"))
    shown = placed.run("task", "unlucky").stdout

    assert [cause["attempt"] for cause in found["causes"]] == [1]
    assert "the model said no" in found["causes"][0]["reason"]
    assert found["due_ms"] > found["now_ms"]
    assert "the model said no" in shown
    assert "2 of 3" in shown


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--type", "unknown"], "no instance serves the agent type unknown"),
        (["--type", "echo", "--constraint", "region=us"], "no instance of the type has the labels region=us"),
        (["--type", "echo", "--require", "gpu=4"], "no instance of the type is that large: gpu=4,slots=1"),
    ],
)
def test_a_parked_task_shows_why_it_waits(flags: list[str], reason: str, placed: Yard) -> None:
    task_id = placed.run("publish", *flags).stdout.strip()

    found = eventually("it is parked", lambda: _in_state(placed, task_id, "parked"))

    assert found["why"] == reason
    assert f"parked: {reason}" in placed.run("task", task_id).stdout
    assert reason in placed.run("queue").stdout
    assert reason in {row["why"] for row in placed.json("queue")["parked"] if row["first"] == task_id}
    assert reason in placed.run("status").stdout


def test_tasks_wait_for_a_full_fleet_and_say_so(placed: Yard) -> None:
    placed.run("publish", "-", stdin='{"type": "wait"}\n' * 3)

    parked = eventually(
        "some are parked", lambda: [r for r in placed.json("queue")["parked"] if "|wait|" in r["shape"]]
    )

    assert parked[0]["why"] == "all instances that could run it are full or closed"
    assert placed.json("queue")["queues"][0]["depth"] == 2


def test_good_lines_are_published_and_bad_ones_told_by_number(placed: Yard) -> None:
    lines = ['{"type": "echo", "id": "a"}', "nonsense", "", '{"type": "echo", "id": "b", "priorty": "high"}',
             '{"type": "echo", "id": "c|d"}', '{"type": "echo", "id": "e"}']  # fmt: skip
    (placed.folder / "tasks.jsonl").write_text("\n".join(lines))

    from_file = placed.run("publish", "tasks.jsonl")
    from_stdin = placed.run("publish", "-", stdin="\n".join(lines).replace('"a"', '"f"'))

    for done, name, first in ((from_file, "tasks.jsonl", "a"), (from_stdin, "standard input", "f")):
        assert done.returncode == 1
        assert done.stdout.split() == [first, "e"]
        *faults, summary = done.stderr.splitlines()
        assert [fault.split(": ")[1] for fault in faults] == [f"{name}, line {number}" for number in (2, 4, 5)]
        assert "did you mean priority?" in faults[1]
        assert summary == "error: 3 bad lines were skipped, 2 tasks were published"


def test_many_lines_are_published_in_order(placed: Yard) -> None:
    count = 20_000
    lines = "".join(f'{{"type": "many", "id": "t{number}"}}\n' for number in range(count))

    done = placed.run("publish", "-", stdin=lines)

    assert done.returncode == 0
    assert done.stdout.split() == [f"t{number}" for number in range(count)]
    eventually("all are parked", lambda: count in [row["parked"] for row in placed.json("queue")["parked"]])


def test_ctrl_c_ends_a_publisher_that_waits_for_input(placed: Yard) -> None:
    with subprocess.Popen(
        [PROGRAM, "publish", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=placed.environment,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write('{"type": "echo", "id": "first"}\n')
        process.stdin.flush()
        assert process.stdout.readline() == "first\n"

        process.send_signal(signal.SIGINT)

        assert process.wait(timeout=WITHIN_S) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_watch_shows_one_reading_after_the_other_until_ctrl_c(placed: Yard) -> None:
    words = [PROGRAM, "status", "--watch", "--json", "--every", "0.1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=placed.environment) as process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=WITHIN_S)

    assert first["now_ms"] < second["now_ms"]
    assert code == 130


def test_the_doctor_finds_nothing_wrong_with_a_cell_at_work(placed: Yard) -> None:
    done = placed.run("doctor")

    assert done.returncode == 0, done.stdout
    good = [line.removeprefix("ok    ") for line in done.stdout.splitlines() if line.startswith("ok ")]
    assert "7 topics with 1 partitions each" in good
    assert "the append-only file is on" in good
    assert "a dispatcher runs" in good
    assert "2 instances are registered, their leases are current" in good
    assert "capacity and queues agree on 2 instances" in good


def test_the_doctor_says_what_is_missing_and_what_to_do(yard: Yard) -> None:
    done = yard.run("doctor")
    findings = {finding["what"]: finding for finding in json.loads(yard.run("doctor", "--json").stdout)}

    missing = next(what for what in findings if what.startswith("7 topics are missing"))
    assert done.returncode == 1
    assert findings[missing]["status"] == "fail"
    assert "→ a dispatcher creates them" in done.stdout
    assert any(what.startswith("no dispatcher has opened the cell") for what in findings)


def test_the_doctor_tells_of_a_server_without_room(yard: Yard) -> None:
    with embedded.start_valkey() as valkey:
        with contextlib.closing(redis.Redis(port=valkey.port)) as client:
            client.execute_command("CONFIG", "SET", "maxmemory", "100kb")  # pyright: ignore[reportUnknownMemberType]

        done = yard.run("doctor", "--redis", valkey.url)

    assert done.returncode == 1
    assert "fail  the memory is full" in done.stdout
    assert "→ raise maxmemory" in done.stdout


def test_a_cell_and_a_task_that_nobody_knows_are_told(yard: Yard) -> None:
    queue, task, status = yard.run("queue"), yard.run("task", "nobody"), yard.run("status")

    assert queue.returncode == 2
    assert "no dispatcher has opened the cell" in queue.stderr
    assert task.returncode == 1
    assert "does not know the task nobody" in task.stderr
    assert "no dispatcher has opened this cell" in status.stdout


def test_an_instance_that_nobody_knows_is_told_with_the_one_that_was_meant(placed: Yard) -> None:
    name = placed.json("status")["fleet"][0]["id"]

    done = placed.run("queue", f"{name}x")

    assert done.returncode == 2
    assert f"did you mean {name}?" in done.stderr


def _outcome(yard: Yard, task_id: str) -> Any:
    found = yard.json("task", task_id)
    return found and found["outcome"]


def _in_state(yard: Yard, task_id: str, state: str) -> Any:
    found = yard.json("task", task_id)
    return found if found and found["state"] == state else None
