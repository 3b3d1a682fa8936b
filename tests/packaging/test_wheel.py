"""The built wheel, installed beside a user's project that has packages of the same names as our folders."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("schemas", "producers", "dispatcher", "workers", "compose")


def run(*command: str | Path, cwd: Path) -> str:
    """The command's standard output; the test fails with all that it said if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(target: str, *, source: Path, into: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", into, cwd=source)
    [built] = into.iterdir()
    return built


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source=ROOT, into=tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter in a new environment with the wheel, and with the libraries of the one that runs the tests.

    The path file hands over the libraries without a download. It does not run the path files that it finds there, so
    the development install of this tree is out of reach.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home)
    [site] = home.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project with `schemas` and `workers` of its own."""
    for package in ("schemas", "workers"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"OWNER = 'the user, in {package}'\n")
    return tmp_path


def test_a_users_own_packages_and_ours_of_the_same_names_are_imported_side_by_side(python: Path, project: Path) -> None:
    (project / "main.py").write_text(
        "import schemas, workers\n"
        "import taskyard.schemas, taskyard.workers\n"
        "print(schemas.OWNER, workers.OWNER, taskyard.schemas.__file__, taskyard.workers.__file__, sep='\\n')\n"
    )

    ours, theirs = python.parents[1].resolve(), ("the user, in schemas", "the user, in workers")
    *owners, schemas, workers = run(python, "main.py", cwd=project).splitlines()

    assert tuple(owners) == theirs
    assert [Path(file).resolve().is_relative_to(ours) for file in (schemas, workers)] == [True, True]


def test_an_environment_with_the_wheel_has_no_top_level_packages_of_ours(python: Path, tmp_path: Path) -> None:
    code = f"from importlib.util import find_spec; print([find_spec(name) for name in {FOLDERS}])"

    assert run(python, "-c", code, cwd=tmp_path).strip() == str([None] * len(FOLDERS))


def test_the_installed_command_answers(python: Path, tmp_path: Path) -> None:
    assert "Usage" in run(python.parent / "taskyard", "--help", cwd=tmp_path)


def test_the_wheel_carries_every_file_of_the_folders_data_files_included(wheel: Path) -> None:
    files = {
        f"taskyard/{path.relative_to(ROOT)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert contents(wheel) == files | {"taskyard/__init__.py", "taskyard/py.typed"}


def test_a_wheel_built_from_the_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", source=ROOT, into=tmp_path / "sdist")
    run(sys.executable, "-m", "tarfile", "--extract", sdist, tmp_path, cwd=tmp_path)

    again = build("wheel", source=tmp_path / sdist.name.removesuffix(".tar.gz"), into=tmp_path / "wheel")

    assert contents(again) == contents(wheel)
