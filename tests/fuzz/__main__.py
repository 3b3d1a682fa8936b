"""`python -m tests.fuzz --inputs 1000000`: feed every target, or one, and say what was found."""

# ruff: noqa: T201 - it talks to the terminal

import argparse
import secrets
import sys

from taskyard.compose import embedded
from tests.fuzz.campaign import Finding, Tally, peak_bytes
from tests.fuzz.rounds import every_target, feed


def main() -> int:
    """Return 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all targets together, or of the one named")
    parser.add_argument("--seed", type=int, help="the same seed makes the same inputs")
    parser.add_argument("--target", help="feed this one only")
    chosen = parser.parse_args()
    seed = secrets.randbits(32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    with embedded.start_valkey() as valkey, every_target(valkey.url) as targets:
        wanted = [target for target in targets if chosen.target in (None, target.name)]
        if not wanted:
            parser.error(f"--target is one of {', '.join(target.name for target in targets)}")
        tallies = feed(wanted, seed=seed, inputs=chosen.inputs, tell=_tell)
    findings = [finding for tally in tallies for finding in tally.findings]
    for finding in findings:
        _show(finding)
    took_s = sum(tally.took_s for tally in tallies)
    print(f"{sum(tally.inputs for tally in tallies):,} inputs in {took_s:.0f} s, {len(findings)} findings, "
          f"{peak_bytes() >> 20} MiB at most; seed {seed}")  # fmt: skip
    return 1 if findings else 0


def _tell(tally: Tally) -> None:
    rate = tally.inputs / tally.took_s if tally.took_s else 0
    slowest = f"slowest {tally.slowest_s * 1000:.1f} ms for {tally.slowest_bytes:,} bytes"
    print(f"{tally.target:<10} {tally.inputs:>9,} inputs {rate:>8,.0f}/s  {slowest}  {len(tally.findings)} findings",
          flush=True)  # fmt: skip


def _show(finding: Finding) -> None:
    print(f"\n{finding.target}: {finding.where}\n  {finding.error}\n  parts = {finding.parts!r}\n")


if __name__ == "__main__":
    sys.exit(main())
