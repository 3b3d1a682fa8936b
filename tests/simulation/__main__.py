"""`python -m tests.simulation`: many seeds, or one of them again.

python -m tests.simulation --seeds 10000 --jobs 2 --minutes 30
python -m tests.simulation --seed 4711 --trace
"""

import argparse
import os
import sys
import time

from tests.simulation.many import in_jobs, many, report
from tests.simulation.run import case, play, simulation
from tests.simulation.trace import in_words


def main() -> int:
    """Run what the arguments ask for; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to run them in")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so long")
    parser.add_argument("--kinds", default="", help="faults of these kinds only, separated by commas")
    parser.add_argument("--seed", type=int, help="one seed again")
    parser.add_argument("--trace", action="store_true", help="with --seed: every event")
    parser.add_argument("--no-shrink", action="store_true", help="report a broken promise as it was found")
    asked = parser.parse_args()
    kinds = tuple(kind for kind in asked.kinds.split(",") if kind)
    if asked.seed is not None:
        return _one(asked.seed, kinds, is_traced=asked.trace, is_shrunk=not asked.no_shrink)
    until_s = time.monotonic() + asked.minutes * 60 if asked.minutes else float("inf")
    jobs = in_jobs(range(asked.first, asked.first + asked.seeds), kinds, is_shrunk=not asked.no_shrink)
    summary = many(jobs, processes=asked.jobs, until_s=until_s)
    summary.show()
    return 1 if summary.broken else 0


def _one(seed: int, kinds: tuple[str, ...], *, is_traced: bool, is_shrunk: bool) -> int:
    with simulation():
        what = case(seed, kinds=kinds)
        result = play(what, is_whole=is_traced)
        if is_traced:
            print(*what.faults, *map(in_words, result.trace.events), sep="\n")
        if result.violation is None:
            print(f"seed {seed}: all promises held; {result.calls} calls, {result.end_s:.1f} s of virtual time")
            return 0
        print(report(result, kinds, is_shrunk=is_shrunk and not is_traced))
    return 1


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of strings are walked in the order of their hashes.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main())
