"""`python -m tests.fault`: every fault once, or at random for a time, and a table of what came of it."""

import argparse
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from taskyard.dispatcher.cli.terminal import err, out, table
from tests.fault.catalogue import SCENARIOS
from tests.fault.scenario import Row, Scenario, perform

_USUAL_S = 18.0
_SHOWN = 10


def main() -> int:
    """Run what the command line asks for; 1 if a rule was broken."""
    flags = _flags()
    chosen = [one for one in SCENARIOS if not flags.only or one.name in flags.only]
    if not chosen:
        err().print(f"no such scenario; there are {', '.join(one.name for one in SCENARIOS)}", markup=False)
        return 2
    rows: list[Row] = []
    # So that processes and files go with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for scenario in _order(chosen, flags.minutes, flags.seed):
            rows.append(perform(scenario, scale=flags.seconds / _USUAL_S, keep=flags.keep))
            _tell(rows[-1])
    except KeyboardInterrupt:
        err().print("interrupted", markup=False)
    _show(rows)
    return int(not all(row.is_right for row in rows))


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.fault", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="these scenarios")
    parser.add_argument("--seconds", type=float, default=_USUAL_S, help="load around each fault, about")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="repeat at random for so long; 0: each once, in order"
    )
    parser.add_argument("--seed", type=int, default=None, help="of the random order, as a run has printed it")
    parser.add_argument("--keep", type=Path, default=None, help="folder for the logs of a run that broke a rule")
    return parser.parse_args()


def _order(scenarios: Sequence[Scenario], minutes: float, seed: int | None) -> Iterator[Scenario]:
    if not minutes:
        yield from sorted(scenarios, key=lambda one: one.is_last)
        return
    seed = random.randrange(1 << 32) if seed is None else seed
    err().print(f"seed {seed}", markup=False)
    chance, until_s = random.Random(seed), time.monotonic() + 60 * minutes
    while time.monotonic() < until_s:
        yield chance.choice(scenarios)


def _tell(row: Row) -> None:
    broken = ", ".join(f"{rule} {count}" for rule, count in row.verdict.by_rule().items())
    err().print(f"{row.name}: {row.tasks} tasks, {row.rate:.0f}/s, {broken or 'every rule held'}", markup=False)
    for violation in row.verdict.violations[:_SHOWN]:
        err().print(f"  {violation.rule} {violation.task_id}: {violation.what}", markup=False)


def _show(rows: Sequence[Row]) -> None:
    columns = ("scenario", ">tasks", ">offered/s", ">taken/s", ">faults", ">checked", ">violations", ">whole after")
    cells = [
        (
            row.name, row.tasks, row.offered, f"{row.rate:.0f}", row.faults, row.verdict.checked,
            len(row.verdict.violations), f"{row.verdict.whole_s:.1f} s",
        )
        for row in rows
    ]  # fmt: skip
    out().print(table(*columns, rows=cells))


if __name__ == "__main__":
    sys.exit(main())
