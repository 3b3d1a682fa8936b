"""The demo's last word: does everything add up, and how did it go."""

import math
from typing import NamedTuple, Self

from rich.markup import escape

from taskyard.dispatcher.cell.contract import Drift
from taskyard.dispatcher.cli.rehearsal.figures import Spread, spread
from taskyard.dispatcher.cli.rehearsal.rehearsal import Rehearsal
from taskyard.dispatcher.cli.terminal import duration, fail, out, table
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.priority import PRIORITIES


class Line(NamedTuple):
    """One priority."""

    priority: str
    published: int
    succeeded: int
    dead: int
    wait_ms: Spread


class Summary(NamedTuple):
    """What the demo did. drifts: None if the cell did not answer the audit."""

    lines: tuple[Line, ...]
    seconds: float
    utilisation: float
    peak_parked: int
    repeated: int
    retried: int
    late_ms: Spread
    instances: int
    drifts: list[Drift] | None
    faults: tuple[str, ...]
    deaths: tuple[str, ...] = ()

    @property
    def adds_up(self) -> bool:
        """Whether every task ended once and no instance's ledger differs from its vector."""
        return not self.faults and self.drifts == []

    @classmethod
    async def of(cls, at: Rehearsal, *, published_s: float) -> Self:
        """Take stock of a run whose workers are still there."""
        try:
            drifts = await at.audit()
        except DependencyError:
            drifts = None
        samples, total = at.gauge.samples, at.gauge.capacity["slots"]
        measured = [sample.used.get("slots", 0) / total for sample in samples[at.measured]]
        return cls(
            lines=tuple(_line(at, priority) for priority in PRIORITIES),
            seconds=published_s,
            utilisation=math.fsum(measured) / len(measured) if measured else 0.0,
            peak_parked=max((sample.parked for sample in samples), default=0),
            repeated=at.account.repeated,
            retried=sum(ended.attempt > 1 for ended in at.account.ended.values()),
            late_ms=spread(at.load.late_ms),
            instances=len(at.cast.fleet),
            drifts=drifts,
            faults=tuple(at.account.faults()),
        )


def _line(at: Rehearsal, priority: str) -> Line:
    account = at.account
    mine = [task_id for task_id, sent in account.sent.items() if sent.priority == priority]
    ended = [account.ended[task_id] for task_id in mine if task_id in account.ended]
    succeeded = sum(one.is_succeeded for one in ended)
    return Line(
        priority,
        len(mine),
        succeeded,
        len(ended) - succeeded,
        spread(one.wait_ms for one in ended if one.wait_ms >= 0),
    )


def show(summary: Summary) -> None:
    """Print it: results to standard output, what does not add up to standard error."""
    console = out()
    rows = [_row(line) for line in summary.lines]
    sums = [sum(getattr(line, name) for line in summary.lines) for name in ("published", "succeeded", "dead")]
    rows.append(("[bold]all[/]", *(f"[bold]{count:,}[/]" for count in sums), "", "", ""))
    console.print()
    columns = ("priority", ">published", ">succeeded", ">dead", ">wait p50", ">wait p99", ">wait max")
    console.print(table(*columns, rows=rows))
    console.print()
    for line in _notes(summary):
        console.print(line, soft_wrap=True)
    for death in summary.deaths:
        console.print(f"[yellow]died[/]         {escape(death)}", soft_wrap=True)
    for fault in summary.faults:
        fail(fault)
    for drift in summary.drifts or ():
        fail(f"the ledger of {drift.instance} differs from its vector by {drift.used}, {drift.misplaced} misplaced")
    if summary.drifts is None:
        fail("the cell did not answer the audit")
    verdict = "[bold green]everything adds up[/]" if summary.adds_up else "[bold red]it does not add up[/]"
    console.print(f"{verdict}: {sums[0]:,} published = {sums[1]:,} succeeded + {sums[2]:,} dead" + (
        "" if sums[0] == sums[1] + sums[2] else f" + {sums[0] - sums[1] - sums[2]:,} missing"
    ))  # fmt: skip


def _row(line: Line) -> tuple[str, ...]:
    wait = line.wait_ms
    shown = tuple(map(duration, (wait.p50, wait.p99, wait.max))) if wait.size else ("-", "-", "-")
    return (line.priority, f"{line.published:,}", f"{line.succeeded:,}", f"{line.dead:,}", *shown)


def _notes(summary: Summary) -> list[str]:
    drift = "unknown" if summary.drifts is None else f"{len(summary.drifts)} of {summary.instances} instances"
    late = summary.late_ms
    notes = [
        f"[bold]utilisation[/]  {summary.utilisation:.0%} of the slots on average while tasks were published",
        f"[bold]parked[/]       {summary.peak_parked:,} tasks at most",
        f"[bold]load[/]         published {duration(late.p99)} late at p99, {duration(late.max)} at most",
        f"[bold]audit drift[/]  {drift}",
    ]
    if summary.retried:
        notes.append(f"[bold]retried[/]      {summary.retried:,} tasks ended in a later attempt than the first")
    if summary.repeated:
        notes.append(
            f"[bold]repeated[/]     {summary.repeated:,} outcomes were told twice, with the same id and attempt: "
            "at least once is the promise"
        )
    return notes
