"""`python -m bench`: run the figures, print them as a table."""

import argparse
import json
import logging
import platform
import sys
import time
from pathlib import Path

from rich.console import Console

from bench import dispatch, life
from bench.pairs import Measured, Row, as_json, measure, show
from bench.peers import PEERS
from bench.rig import Rig
from taskyard.compose import embedded

NAMES = ("dispatch", "dispatch-resources", "dispatch-fleet", *[f"life-{name}" for name in PEERS], "life-parked")


def main() -> int:
    """Run the rows that were asked for. Returns 1 if a smoke finds a ratio beyond its limit."""
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    began_s = time.monotonic()
    # A topic that was made a moment ago is not known to every client at once; aiokafka tells of each new attempt.
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    with embedded.start(on_progress=_say) as services:
        rows = [row for row in _rows(Rig(services), options) if options.only in ("", row.name)]
        found = [measure(row, options.pairs, _say) for row in rows]
    show(found, console)
    console.print(
        f"{platform.machine()}, Python {platform.python_version()}, {time.monotonic() - began_s:.0f} s in all"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(found), indent=2) + "\n")
    return _judged(found) if options.smoke else 0


def _rows(rig: Rig, options: argparse.Namespace) -> list[Row]:
    small = options.smoke
    tasks = options.tasks or (20_000 if small else 100_000)
    fleets = (100, 20, 500) if small else (1_000, 100, 10_000)
    return [
        *dispatch.rows(rig, tasks=tasks, fleets=fleets),
        *life.rows(rig, tasks=options.tasks or (2_000 if small else 40_000), peers=[] if small else list(PEERS)),
    ]


def _judged(found: list[Measured]) -> int:
    """Say whether every ratio is within its limit."""
    bad = [f"{m.row.name}: ratio {m.ratio:.2f}, limit {m.row.limit:g}" for m in found if not m.is_within_limit]
    _say("bench smoke: " + ("; ".join(bad) or f"{len(found)} rows work, each ratio within its limit"))
    return 1 if bad else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=NAMES, default="", help="run this row only")
    parser.add_argument("--pairs", type=int, default=0, help="pairs of runs for each row (default 5; 1 in a smoke)")
    parser.add_argument("--tasks", type=int, default=0, help="tasks in a run (default: enough for a second or more)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to a file too")
    parser.add_argument("--smoke", action="store_true", help="tiny, without the peers: does everything work?")
    options = parser.parse_args()
    options.pairs = options.pairs or (1 if options.smoke else 5)
    return options


if __name__ == "__main__":
    sys.exit(main())
