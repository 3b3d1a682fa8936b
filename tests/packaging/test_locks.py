"""The lock files: what `make demo` and `make test` install, the same for everyone, from whichever registry they use."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN, DEV = ROOT / "requirements" / "run.txt", ROOT / "requirements" / "dev.txt"


def pins(lock: Path) -> dict[str, str]:
    """Name -> version of every requirement in the lock file."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("lock", [RUN, DEV], ids=lambda lock: lock.name)
def test_every_requirement_is_pinned_with_a_hash_and_names_no_address(lock: Path) -> None:
    logical_lines = re.sub(r"#.*", "", lock.read_text()).replace("\\\n", "").split("\n")
    requirements = [line for line in logical_lines if line.strip()]

    hashed = r"[a-z0-9-]+==\S+( ; [^\\]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*"

    assert [line for line in requirements if not re.fullmatch(hashed, line)] == []
    assert len(requirements) == len(pins(lock)) > 0


def test_the_test_environment_runs_the_same_versions_as_the_demo() -> None:
    assert pins(RUN).items() <= pins(DEV).items()


def test_what_the_project_depends_on_is_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    wanted: list[str] = [*project["dependencies"], *extras["embedded"], *extras["fast"]]

    missing = {re.split(r"[^A-Za-z0-9-]", requirement)[0] for requirement in wanted} - pins(RUN).keys()

    assert missing == set()
