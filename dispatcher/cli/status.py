"""`taskyard status`: the fleet, what waits, and the lag."""

import asyncio
from collections import Counter
from typing import Annotated

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape

from taskyard.dispatcher.cli.flags import NONE, Common, settings_of
from taskyard.dispatcher.cli.overview import Overview, overview, reading, used, why_parked
from taskyard.dispatcher.cli.terminal import duration, out, print_json, size, table
from taskyard.dispatcher.core.snapshot import InstanceView
from taskyard.dispatcher.settings import Settings

_SHAPES_SHOWN = 5
_STATE_STYLES = {"open": "green", "cordoned": "yellow", "held": "cyan"}


def status(
    *,
    watch: Annotated[bool, Parameter(help="show it again and again until Ctrl-C")] = False,
    every: Annotated[float, Parameter(show_default=True, help="seconds between two readings with --watch")] = 1.0,
    limit: Annotated[int, Parameter(show_default=True, help="instances that are listed; 0: none")] = 20,
    json: Annotated[bool, Parameter(help="one line of JSON per reading, with all instances")] = False,
    common: Common = NONE,
) -> None:
    """Show the fleet and its utilisation, parked tasks and why they wait, the outbox, and the lag by priority.

    Instances that are not open come first, then the busiest.
    """
    settings = settings_of(common)
    if watch:
        asyncio.run(_watch(settings, every_s=max(every, 0.1), limit=limit, is_json=json))
    else:
        asyncio.run(_once(settings, limit=limit, is_json=json))


async def _once(settings: Settings, *, limit: int, is_json: bool) -> None:
    async with reading(settings) as at:
        found = await overview(settings, at)
    _print(found, limit=limit, is_json=is_json)


async def _watch(settings: Settings, *, every_s: float, limit: int, is_json: bool) -> None:
    console = out()
    async with reading(settings) as at:
        if is_json or not console.is_terminal:
            while True:
                _print(await overview(settings, at), limit=limit, is_json=is_json)
                await asyncio.sleep(every_s)
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                live.update(_page(await overview(settings, at), limit), refresh=True)
                await asyncio.sleep(every_s)


def _print(found: Overview, *, limit: int, is_json: bool) -> None:
    if is_json:
        print_json(found.as_json())
    else:
        out().print(_page(found, limit))


def _page(found: Overview, limit: int) -> RenderableType:
    parts: list[RenderableType] = [_summary(found)]
    if not found.generation:
        parts.append("[yellow]no dispatcher has opened this cell on this server; are --cell and --redis right?[/]")
    elif not found.is_begun:
        parts.append("[red]intake waits: the cell is new or has lost its history;[/] `taskyard recover` says more")
    if found.paused:
        which = ", ".join(found.paused)
        parts.append(f"[yellow]intake waits for {which}: the park or the outbox is full; Kafka keeps the rest[/]")
    if found.parked:
        parts += ["", _waiting(found)]
    if found.instances and limit > 0:
        parts += ["", _fleet(found, limit)]
    return Group(*parts)


def _summary(found: Overview) -> RenderableType:
    states = Counter(instance.state for instance in found.instances)
    taken, total = found.slots
    share = f" ({100 * taken / total:.1f} %)" if total else ""
    if found.lag is None:
        lag = f"[red]unknown[/]: {escape(found.lag_fault)}"
    else:
        lag = "   ".join(f"{priority} {count:,}" for priority, count in found.lag.items())
    level = found.level
    closed = "".join(f", {states[state]:,} {state}" for state in ("cordoned", "held") if states[state])
    return "\n".join(
        (
            f"[bold]cell[/]       {escape(found.cell)}",
            f"[bold]instances[/]  {states['open']:,} open{closed}",
            f"[bold]slots[/]      {taken:,} of {total:,} used{share}",
            f"[bold]parked[/]     {level.parked:,} tasks ({size(level.parked_bytes)})",
            f"[bold]later[/]      {level.later:,} tasks between two attempts",
            f"[bold]outbox[/]     {level.outbox:,} outcomes that Kafka has not got yet",
            f"[bold]lag[/]        {lag}",
        )
    )


def _waiting(found: Overview) -> RenderableType:
    shapes = sorted(found.parked, key=lambda shape: -shape.parked)
    rows = [
        (f"{shape.parked:,}", escape(shape.shape), escape(why_parked(shape, found.instances)))
        for shape in shapes[:_SHAPES_SHOWN]
    ]
    if len(shapes) > _SHAPES_SHOWN:
        rows.append((f"{sum(s.parked for s in shapes[_SHAPES_SHOWN:]):,}", "others", "`taskyard queue` lists them all"))
    return table(">parked", "shape", "why", rows=rows)


def _fleet(found: Overview, limit: int) -> RenderableType:
    ordered = sorted(found.instances, key=lambda i: (i.state == "open", -_share(i), i.id))
    rows = [_row(instance, found.level.now_ms) for instance in ordered[:limit]]
    columns = ("instance", "state", ">slots", ">cpu", ">memory", ">errors", ">lease", "types", "")
    parts: list[RenderableType] = [table(*columns, rows=rows)]
    if len(ordered) > limit:
        parts.append(f"[dim]and {len(ordered) - limit:,} more; --limit shows more of them, --json all[/]")
    return Group(*parts)


def _row(instance: InstanceView, now_ms: int) -> tuple[str, ...]:
    left_ms = instance.lease_until_ms - now_ms
    report = instance.reported
    style = _STATE_STYLES[instance.state]
    return (
        escape(instance.id),
        f"[{style}]{instance.state}[/]",
        f"{used(instance)['slots']}/{instance.capacity['slots']}",
        f"{report.cpu_permille / 10:.0f} %",
        f"{report.memory_permille / 10:.0f} %",
        f"{report.errors_permille / 10:.0f} %",
        duration(left_ms) if left_ms > 0 else "[red]expired[/]",
        escape(",".join(instance.types)),
        escape(instance.reason),
    )


def _share(instance: InstanceView) -> float:
    return used(instance)["slots"] / max(1, instance.capacity["slots"])
