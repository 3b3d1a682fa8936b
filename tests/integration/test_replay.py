"""`taskyard replay` on real services: recordings, made here, through the whole system."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TestServices

SAMPLE = Path(__file__).parents[2] / "compose" / "sample_trace.csv"
_WITHIN_S = 90.0

Replay = Callable[..., tuple[int, str, dict[str, Any]]]


@pytest.fixture
def replay(services: TestServices, cell: str, prefix: str, tmp_path: Path) -> Replay:
    """Run a replay to its end in a cell of its own: exit code, output, and the numbers it wrote."""

    def run(*arguments: str) -> tuple[int, str, dict[str, Any]]:
        numbers = tmp_path / "numbers.json"
        command = [sys.executable, "-m", "taskyard.dispatcher.cli", "replay", *arguments, "--json", str(numbers)]
        command += ["--kafka", services.kafka, "--redis", services.redis, "--cell", cell, "--prefix", prefix]
        command += ["--dispatchers", "1", "--workers", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
        output = done.stdout + done.stderr
        return done.returncode, output, json.loads(numbers.read_text()) if numbers.exists() else {}

    return run


def test_a_recording_is_played_and_every_row_ends_as_it_did(replay: Replay) -> None:
    code, output, numbers = replay(str(SAMPLE), "--seconds", "6", "--limit", "300")

    assert code == 0, output
    assert "everything adds up" in output
    assert numbers["adds_up"] is True
    assert numbers["published"] == numbers["rows"] == numbers["succeeded"] + numbers["dead"]
    failed = sum(",FAILED," in line for line in SAMPLE.read_text().splitlines()[1:301])
    assert numbers["reasons"] == ({"gave_up": failed} if failed else {})
    assert numbers["drift"] == []
    assert {one["name"] for one in numbers["waits"]["priority"]} == {"high", "normal"}
    assert len(numbers["waits"]["tenant"]) == 11
    assert sum(one["published"] for one in numbers["waits"]["tenant"]) == numbers["published"]
    assert 0 < numbers["use"][0]["mean"] <= 1


def test_a_cluster_is_played_on_its_own_machines_with_all_their_resources(replay: Replay, tmp_path: Path) -> None:
    chance = random.Random(3)
    tasks, fleet = tmp_path / "tasks.csv", tmp_path / "fleet.csv"
    lines = ["cpu_milli,memory_mib,num_gpu,gpu_milli,qos,creation_time,deletion_time,scheduled_time"]
    for number in range(80):
        length = chance.randint(50, 500)
        gpu = chance.choice(["0,0", "1,500", "1,1000"])
        qos = chance.choice(["Guaranteed", "LS", "Burstable", "BE"])
        lines.append(
            f"{chance.choice([1000, 4000])},2048,{gpu},{qos},{number * 10},{number * 10 + length},{number * 10}"
        )
    lines += ["64000,1,1,1000,LS,5,10,5", "nonsense"]
    tasks.write_text("\n".join(lines) + "\n")
    fleet.write_text("sn,cpu_milli,memory_mib,gpu,model\n" + "".join(f"n{n},16000,65536,2,M1\n" for n in range(6)))

    code, output, numbers = replay(str(tasks), "--fleet", str(fleet), "--seconds", "6", "--utilisation", "0.6")

    assert code == 0, output
    assert (numbers["rows"], numbers["bad_rows"], numbers["left_out"]) == (80, 1, {"fit no instance": 1})
    assert numbers["published"] == 80 * numbers["pace"]["copies"] == numbers["succeeded"]
    assert {one["resource"] for one in numbers["use"]} == {"slots", "cpu_milli", "memory_mib", "gpu_milli"}
    assert max(one["offered"] for one in numbers["use"]) == pytest.approx(0.6)
    assert numbers["spots"]["instances"] == 6


def test_a_file_of_another_form_is_refused_before_anything_starts(replay: Replay, tmp_path: Path) -> None:
    file = tmp_path / "other.csv"
    file.write_text("when,what\n1,2\n")

    code, output, _ = replay(str(file))

    assert code == 2
    assert "gmt_create" in output
    assert "starting" not in output
