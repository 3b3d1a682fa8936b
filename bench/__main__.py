"""`python -m bench`: run the figures, print them as a table."""

import argparse
import json
import logging
import platform
import sys
import time
from ctypes.util import find_library
from pathlib import Path

from rich.console import Console

from bench import dispatch, latency, life, memory, pull, scale, wait
from bench.pairs import Measured, Row, as_json, measure, show
from bench.peers import BARE, PEERS
from bench.rig import Rig
from taskyard.compose import embedded

NAMES = (
    "dispatch", "dispatch-resources", "dispatch-fleet", *[f"life-{name}" for name in (*PEERS, *BARE)], "life-parked",
    *latency.NAMES, "wait", "wait-no-headroom", "pull", "pull-tight", "memory-parked", "memory-instance",
    "memory-running", "scale-instances", "scale-dispatchers", "scale-resources", "scale-parked", "scale-payload",
)  # fmt: skip


def main() -> int:
    """Run the rows that were asked for. Returns 1 if a smoke finds a ratio beyond its limit."""
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    began_s = time.monotonic()
    # A topic that was made a moment ago is not known to every client at once; aiokafka tells of each new attempt.
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    _say(f"Valkey's allocator: {options.allocator or 'malloc of the C library; its own packages have jemalloc'}")
    with embedded.start(allocator=options.allocator, on_progress=_say) as services:
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
    parked = 4_000 if small else 100_000
    # Beside a flood, or near the capacity that was measured a moment ago, a run fails where the machine gets slower: in
    # a smoke on a shared machine that would say nothing of the code.
    paced = latency.rows(
        rig, seconds=1 if small else 10, warm_s=0.5 if small else 2, per_s=500 if small else 2_000,
        critical_per_s=50 if small else 200, tasks=20 if small else 1_000, is_rehearsed=not small,
    )  # fmt: skip
    return [
        *dispatch.rows(rig, tasks=tasks, fleets=fleets),
        *life.rows(rig, tasks=options.tasks or (2_000 if small else 40_000), peers=[] if small else list(PEERS)),
        *(paced[:1] if small else paced),
        *wait.rows(tasks=1_000 if small else 8_000, trace=options.trace),
        *pull.rows(rig, parked=parked, finishes=1_600 if small else 16_000),
        *memory.rows(rig, parked=parked, instances=500 if small else 10_000, running=500 if small else 10_000),
        *scale.rows(rig, tasks=options.tasks or (5_000 if small else 100_000), instances=50 if small else 1_000,
                    fleets=(10, 500) if small else (10, 100, 1_000, 10_000),
                    parks=(0, 2_000) if small else (0, 10_000, 100_000, 1_000_000), is_whole=not small),
    ]  # fmt: skip


def _judged(found: list[Measured]) -> int:
    """Say whether every ratio is within its limit."""
    bad = [f"{m.row.name}: {m.bounded:.2f}, limit {m.row.limit:g}" for m in found if not m.is_within_limit]
    _say("bench smoke: " + ("; ".join(bad) or f"{len(found)} rows work, each within its limit"))
    return 1 if bad else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=NAMES, default="", help="run this row only")
    parser.add_argument("--pairs", type=int, default=0, help="pairs of runs for each row (default 5; 1 in a smoke)")
    parser.add_argument("--tasks", type=int, default=0, help="tasks in a run (default: enough for a second or more)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="a recorded workload for the rows of `wait`")
    parser.add_argument(
        "--allocator", default=find_library("jemalloc") or "", metavar="LIBRARY",
        help="what Valkey uses instead of malloc; '' nothing (default: jemalloc if the machine has it)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to a file too")
    parser.add_argument("--smoke", action="store_true", help="tiny, without the peers: does everything work?")
    options = parser.parse_args()
    options.pairs = options.pairs or (1 if options.smoke else 5)
    return options


if __name__ == "__main__":
    sys.exit(main())
