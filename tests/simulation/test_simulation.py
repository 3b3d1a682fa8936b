"""The simulation in every run of the tests: some seeds, and whether it is what it claims to be."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SEEDS = 200
_ONCE_BROKEN = (1052, 1521, 2225, 5288, 10386, 10432, 10702, 20407, 30714, 30965, 34107, 50960, 72364, 101651)
"""Seeds that have found faults of the product, or of the judge."""
_AGAIN = """
import sys
from tests.simulation.run import case, play, simulation
with simulation():
    for seed in sys.argv[1:]:
        print(play(case(int(seed))).violation)
"""
_TWICE = """
from tests.simulation.run import case, play, simulation
with simulation():
    for seed in (3, 5, 8):
        print(play(case(seed), is_hashed=True).trace.digest)
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in an interpreter of its own, whose order of strings in sets is fixed."""
    return subprocess.run(
        [sys.executable, *words], cwd=_ROOT, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(600)
def test_the_promises_of_the_design_hold_under_the_faults_of_many_seeds() -> None:
    done = run("-m", "tests.simulation", "--seeds", str(_SEEDS), "--jobs", "2")

    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^(\d+) seeds in .*, (\d+) calls", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    assert int(found[1]) == _SEEDS
    assert int(found[2]) > 100 * _SEEDS


def test_seeds_that_once_broke_a_promise_do_so_no_more() -> None:
    done = run("-c", _AGAIN, *map(str, _ONCE_BROKEN))

    assert done.stdout.split() == ["None"] * len(_ONCE_BROKEN), done.stdout + done.stderr


def test_a_seed_plays_the_same_events_in_the_same_order_every_time() -> None:
    first, second = run("-c", _TWICE), run("-c", _TWICE)

    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert len(set(first.stdout.split())) == 3
