"""What a replay found, as numbers (`--json`) and as tables."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.markup import escape

from taskyard.dispatcher.cli.rehearsal.account import Account
from taskyard.dispatcher.cli.rehearsal.figures import Spread, percentile, spread
from taskyard.dispatcher.cli.rehearsal.gauge import Gauge
from taskyard.dispatcher.cli.rehearsal.heat import Spots
from taskyard.dispatcher.cli.rehearsal.pace import Pace
from taskyard.dispatcher.cli.terminal import duration, table
from taskyard.schemas.priority import PRIORITIES

_TENANTS = 10
_HOT_NAMED = 5


class Waits(msgspec.Struct, frozen=True):
    """The waits from publish to start of one group of tasks, ms."""

    name: str
    published: int
    wait_ms: Spread


class Use(msgspec.Struct, frozen=True):
    """Utilisation of one resource over the fleet, 0 to 1, while tasks were published. second_half: of that time."""

    resource: str
    offered: float
    mean: float
    p50: float
    max: float
    second_half: float


class Report(msgspec.Struct, frozen=True):
    """All numbers. drift: instances whose ledger differs from their vector; None if the cell did not answer."""

    trace: str
    form: str
    rows: int
    bad_rows: int
    left_out: dict[str, int]
    pace: Pace
    instances: int
    slots: int
    published: int
    succeeded: int
    dead: int
    reasons: dict[str, int]
    faults: list[str]
    repeated: int
    drift: list[str] | None
    is_interrupted: bool
    published_s: float
    total_s: float
    throughput: float
    late_ms: Spread
    waits: dict[str, list[Waits]]
    ideal_wait_ms: Spread | None
    use: list[Use]
    spots: Spots
    peak_parked: int
    deaths: list[str]

    @property
    def adds_up(self) -> bool:
        """Whether every task ended once and no ledger differs."""
        return not self.faults and self.drift == []

    def as_json(self) -> bytes:
        """All numbers as one JSON object. What has no limit is null."""
        plain: Any = msgspec.to_builtins(self)
        for name in ("pace", "late_ms", "ideal_wait_ms", "spots"):
            value = getattr(self, name)
            plain[name] = None if value is None else value._asdict()
        plain["adds_up"] = self.adds_up
        plain["waits"] = {
            by: [{"name": one.name, "published": one.published, **one.wait_ms._asdict()} for one in found]
            for by, found in self.waits.items()
        }
        return msgspec.json.format(msgspec.json.encode(plain), indent=2)


def waits_of(account: Account) -> dict[str, list[Waits]]:
    """Group the waits by priority, agent type and tenant (the ten that published most, and the rest)."""
    return {
        "priority": _grouped(account, lambda task_id: account.sent[task_id].priority, order=PRIORITIES),
        "type": _grouped(account, lambda task_id: account.sent[task_id].type),
        "tenant": _tenants(account),
    }


def _tenants(account: Account) -> list[Waits]:
    counts = Counter(sent.tenant for sent in account.sent.values() if sent.tenant)
    if not counts:
        return []
    top = [name for name, _ in counts.most_common(_TENANTS)]
    rest = f"the other {len(counts) - len(top):,}"
    known = set(top)

    def named(task_id: str) -> str:
        tenant = account.sent[task_id].tenant
        return tenant if tenant in known else rest

    return _grouped(account, named, order=[*top, rest])


def _grouped(account: Account, name: Callable[[str], str], *, order: Sequence[str] = ()) -> list[Waits]:
    counts: Counter[str] = Counter()
    waits: defaultdict[str, list[int]] = defaultdict(list)
    for task_id in account.sent:
        group = name(task_id)
        counts[group] += 1
        ended = account.ended.get(task_id)
        if ended is not None and ended.wait_ms >= 0:
            waits[group].append(ended.wait_ms)
    ordered = [group for group in order if group in counts] or [group for group, _ in counts.most_common()]
    return [Waits(group, counts[group], spread(waits[group])) for group in ordered]


def use_of(gauge: Gauge, measured: slice, pace: Pace) -> list[Use]:
    """The utilisation of each resource that tasks needed."""
    samples = gauge.samples[measured]
    found: list[Use] = []
    for resource, offered in sorted(pace.offered.items()):
        total = gauge.capacity[resource]
        shares = [sample.used.get(resource, 0) / total for sample in samples]
        half = shares[len(shares) // 2 :]
        ordered = sorted(shares)
        found.append(
            Use(
                resource,
                offered,
                math.fsum(shares) / len(shares) if shares else 0.0,
                percentile(ordered, 0.5),
                ordered[-1] if ordered else 0.0,
                math.fsum(half) / len(half) if half else 0.0,
            )
        )
    return found


def show(report: Report, console: Console) -> None:
    """Print the tables."""
    for part in (_head(report), *_wait_tables(report), _use_table(report), _tail(report)):
        console.print(part, soft_wrap=True)
        console.print()
    ended = report.succeeded + report.dead
    verdict = "[bold green]everything adds up[/]" if report.adds_up else "[bold red]it does not add up[/]"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(report.reasons.items()))
    dead = f"{report.dead:,} dead-lettered" + (f" ({escape(reasons)})" if reasons else "")
    missing = f" + {report.published - ended:,} missing" if report.published != ended else ""
    console.print(
        f"{verdict}: {report.published:,} published = {report.succeeded:,} succeeded + {dead}{missing}", soft_wrap=True
    )


def _head(report: Report) -> RenderableType:
    pace = report.pace
    left = ", ".join(f"{count:,} {why}" for why, count in report.left_out.items())
    lines = [
        f"[bold]trace[/]        {escape(report.trace)} ({report.form}), {report.rows:,} rows"
        + (f", left out: {escape(left)}" if left else "")
        + (f", [yellow]{report.bad_rows:,} bad[/]" if report.bad_rows else ""),
        f"[bold]fleet[/]        {report.instances:,} instances, {report.slots:,} slots",
        f"[bold]speed[/]        arrivals {pace.arrival_speed:,.1f}x, services {pace.service_speed:,.1f}x"
        + (f", laid over itself {pace.copies} times" if pace.copies > 1 else ""),
    ]
    if pace.cut:
        longest = duration(pace.longest_s * 1000)
        lines.append(f"[bold]cut[/]          the {pace.cut:,} services longer than {longest} were cut to that")
    lines += [
        f"[bold]time[/]         {duration(report.published_s * 1000)} of arrivals, {duration(report.total_s * 1000)} "
        f"until the last task ended; {report.throughput:,.1f} tasks ended a second"
        + (", [yellow]interrupted[/]" if report.is_interrupted else ""),
        _late(report.late_ms),
    ]
    return "\n".join(lines)


def _late(found: Spread) -> str:
    p50, p99, most = map(duration, (found.p50, found.p99, found.max))
    return f"[bold]load[/]         published {p50} late at p50, {p99} at p99, {most} at most"


def _wait_tables(report: Report) -> list[RenderableType]:
    tables: list[RenderableType] = []
    for by, found in report.waits.items():
        if found:
            columns = (by, ">published", ">measured", ">wait mean", ">p50", ">p95", ">p99", ">max")
            rows = [
                (escape(one.name), f"{one.published:,}", f"{one.wait_ms.size:,}", *_durations(one.wait_ms))
                for one in found
            ]
            if by == "type" and report.ideal_wait_ms:
                rows.append(("[dim]ideal queue, all types[/]", "", "", *_durations(report.ideal_wait_ms)))
            tables.append(table(*columns, rows=rows))
    return tables


def _durations(found: Spread) -> tuple[str, ...]:
    if not found.size:
        return ("-",) * 5
    return tuple(map(duration, (found.mean, found.p50, found.p95, found.p99, found.max)))


def _use_table(report: Report) -> RenderableType:
    rows = [
        (one.resource, *(f"{share:.1%}" for share in (one.offered, one.mean, one.p50, one.max, one.second_half)))
        for one in report.use
    ]
    return table("resource", ">offered", ">used, mean", ">p50", ">max", ">second half", rows=rows)


def _evenness(spots: Spots) -> str:
    least, median, p95, most = (f"{share:.0%}" for share in (spots.min, spots.median, spots.p95, spots.max))
    shares = f"{least} at least, {median} median, {p95} p95, {most} at most"
    return f"[bold]instances[/]    mean utilisation {shares}; coefficient of variation {spots.variation:.2f}"


def _tail(report: Report) -> RenderableType:
    spots = report.spots
    named = ", ".join(spots.hot[:_HOT_NAMED]) + (" …" if len(spots.hot) > _HOT_NAMED else "")
    drift = "unknown: the cell did not answer" if report.drift is None else f"{len(report.drift)} instances"
    lines = [
        _evenness(spots),
        f"[bold]hot spots[/]    {len(spots.hot):,}" + (f": {escape(named)}" if spots.hot else ""),
        f"[bold]parked[/]       {report.peak_parked:,} tasks at most",
        f"[bold]audit drift[/]  {drift}",
    ]
    if report.repeated:
        lines.append(f"[bold]repeated[/]     {report.repeated:,} outcomes were told twice, same id and attempt")
    lines += [f"[yellow]died[/]         {escape(death)}" for death in report.deaths]
    lines += [f"[bold red]fault[/]        {escape(fault)}" for fault in report.faults]
    lines += [f"[bold red]drift[/]        {escape(name)}" for name in report.drift or ()]
    return Group("\n".join(lines))
