"""Environments for what the benchmarks run and the project must not depend on, kept inside the project's own."""

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path


def python_of(wanted: Path) -> Path:
    """Return the Python of the environment of a list that pins everything, `NAME.txt`.

    It is made on first use, and anew if the list has changed. Raises CalledProcessError if pip fails.
    """
    home = Path(sys.prefix) / "bench" / f"{wanted.stem}-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:8]}"
    python = home / "bin" / "python"
    if not (home / "made").exists():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
        subprocess.run([*pip, "--requirement", str(wanted)], check=True)
        (home / "made").touch()
    return python
