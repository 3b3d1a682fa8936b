"""`python -m bench.plot FILE FOLDER`: a picture for each figure of a run's JSON, and one of all their ratios.

A figure is a row of panels: both sides with every run and what the design asks for, then what the details hold (see
plot_panels.py). Drawn by matplotlib in an environment of its own, made on first use, as the peers' are. The same file
gives the same pictures, byte by byte; they follow the viewer's light or dark scheme.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench import environments
from bench.plot_panels import Figure, Measurement, figures

_HERE = Path(__file__).parent


def main() -> int:
    """Draw what the file holds. Returns 1 if it holds nothing, or is no run's JSON."""
    options = _options()
    try:
        rows = msgspec.json.decode(options.file.read_bytes(), type=list[Measurement])
    except (OSError, msgspec.DecodeError) as error:
        print(f"{options.file}: {error}; `python -m bench --json FILE` writes one", file=sys.stderr)
        return 1
    if not rows:
        print(f"{options.file}: it holds no row", file=sys.stderr)
        return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    draw(figures(rows), options.folder, form=options.format)
    print(f"{len(rows) + 1} pictures in {options.folder}", file=sys.stderr)
    return 0


def draw(drawn: Sequence[Figure], folder: Path, *, form: str = "svg") -> None:
    """Write each figure to `folder/NAME.form`. Raises CalledProcessError if the drawer fails."""
    # -P: the benchmarks' modules must not stand in the way of the library's imports.
    command = [str(environments.python_of(_HERE / "plot.txt")), "-P", str(_HERE / "plot_draw.py"), str(folder), form]
    subprocess.run(command, input=msgspec.json.encode(drawn), check=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="what `python -m bench --json FILE` has written")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--format", choices=("svg", "png"), default="svg", help="png: light only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
