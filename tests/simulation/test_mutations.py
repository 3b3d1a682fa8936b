"""The simulation finds planted bugs; without that its silence would say nothing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation.mutations import HUNT, MUTATIONS, Mutation

_ROOT = Path(__file__).parents[2]
_CODE = ("compose", "dispatcher", "producers", "schemas", "taskyard", "tests", "workers")


def hunt(tree: Path, seeds: int) -> str:
    """Run seeds on the product in `tree` until a promise is broken; say how many it took, and which."""
    environment = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", HUNT, str(seeds)],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_bug_is_found(
    tmp_path: Path, mutation: Mutation, record_property: Callable[[str, object], None]
) -> None:
    for folder in _CODE:
        shutil.copytree(_ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    broken = tmp_path / mutation.path
    text = broken.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.path} has changed; plant it anew"
    broken.write_text(text.replace(mutation.old, mutation.new))

    found = hunt(tmp_path, mutation.seeds)

    assert found, f"not found in {mutation.seeds} seeds"
    record_property("seeds", found)
    print(f"{mutation.name}: {found}")
