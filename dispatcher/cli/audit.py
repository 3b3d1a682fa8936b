"""`taskyard audit`: is what the cell keeps twice the same in both places?"""

import asyncio
from collections import Counter
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from taskyard.dispatcher.audit import advice
from taskyard.dispatcher.cell.audit import RedisAudit
from taskyard.dispatcher.cli.flags import NONE, Common, settings_of
from taskyard.dispatcher.cli.overview import Reading, never_opened, reading
from taskyard.dispatcher.cli.terminal import err, out, print_json, table
from taskyard.dispatcher.inspection import Found, Inspection
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.errors import ConfigError

_SHOWN = 20


def audit(
    *,
    mend: Annotated[bool, Parameter(help="mend what can be mended; without it nothing is changed")] = False,
    instance: Annotated[str | None, Parameter(help="only this instance and its queue")] = None,
    json: Annotated[bool, Parameter(help="one line of JSON")] = False,
    common: Common = NONE,
) -> int:
    """Compare used capacity with the queues, places with tasks, and every index with what it indexes.

    A dispatcher does the same all the time. Exit code 1 if anything was found, mended or not.
    """
    found = asyncio.run(_audit(settings_of(common), instance, is_mending=mend))
    if json:
        print_json([_as_json(row) for row in found])
    else:
        _print(found)
    return 1 if found else 0


async def _audit(settings: Settings, instance: str | None, *, is_mending: bool) -> list[Found]:
    async with reading(settings) as at:
        if not await at.generation():
            raise never_opened(settings)
        if instance is not None and not await _is_known(at, instance):
            raise ConfigError(f"no instance {instance} is registered, and none has left a queue; see `taskyard queue`")
        inspection = Inspection(RedisAudit(at.connection), is_mending=is_mending, instance=instance)
        text = TextColumn("{task.completed:,} pages, {task.description}")
        with Progress(
            SpinnerColumn(), text, TimeElapsedColumn(), console=err(), transient=True, disable=not err().is_terminal
        ) as progress:
            bar = progress.add_task("", total=None)
            while await inspection.step():
                progress.update(bar, completed=inspection.pages, description=inspection.doing)
        return inspection.found


async def _is_known(at: Reading, instance: str) -> bool:
    root = at.connection.root
    is_registered = await at.connection.command("HEXISTS", f"{root}:inst", instance)
    return bool(is_registered or await at.connection.command("EXISTS", f"{root}:q:{instance}"))


def _as_json(row: Found) -> dict[str, Any]:
    return {**row.finding._asdict(), "mended": row.is_mended, "next": advice(row)}


def _print(found: list[Found]) -> None:
    console = out()
    if not found:
        console.print("nothing is wrong: queues, places, capacity and indexes agree")
        return
    counts = Counter((row.finding.kind, row.is_mended, advice(row)) for row in found)
    rows = [
        (kind, f"{count:,}", "[green]mended[/]" if is_mended else "[red]no[/]", escape(what))
        for (kind, is_mended, what), count in sorted(counts.items())
    ]
    console.print(table("kind", ">found", "mended", "what to do", rows=rows))
    console.print()
    details = [
        (row.finding.kind, escape(row.finding.subject), escape(row.finding.task), escape(row.finding.detail))
        for row in found[:_SHOWN]
    ]
    console.print(table("kind", "of", "task", "seen", rows=details))
    if len(found) > _SHOWN:
        console.print(f"[dim]and {len(found) - _SHOWN:,} more; --json shows all[/]")
