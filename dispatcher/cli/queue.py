"""`taskyard queue`: the instances' queues, and what is parked and why."""

import asyncio
import difflib
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from taskyard.dispatcher.cell.contract import Delivery
from taskyard.dispatcher.cli.flags import NONE, Common, settings_of
from taskyard.dispatcher.cli.overview import Reading, never_opened, reading, used, why_parked
from taskyard.dispatcher.cli.terminal import duration, out, print_json, table
from taskyard.dispatcher.core.snapshot import InstanceView, ShapeView
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.entry import decode_entry
from taskyard.schemas.errors import ConfigError

# Depths asked for at once: enough to hide the way there and back, too few to be noticed by the server.
_AT_ONCE = 200


def queue(
    instance: Annotated[str | None, Parameter(help="show the tasks of this instance's queue")] = None,
    /,
    *,
    limit: Annotated[int, Parameter(show_default=True, help="rows of each table")] = 50,
    json: Annotated[bool, Parameter(help="one line of JSON")] = False,
    common: Common = NONE,
) -> None:
    """Show the queues with their depth, the deepest first, and the parked tasks with why they wait.

    With an instance: the tasks on its queue, the oldest first.
    """
    asyncio.run(_queue(settings_of(common), instance, limit=max(limit, 1), is_json=json))


async def _queue(settings: Settings, name: str | None, *, limit: int, is_json: bool) -> None:
    async with reading(settings) as at:
        if not await at.generation():
            raise never_opened(settings)
        instances = await at.view.instances()
        if name is not None:
            tasks = await _tasks(at, name, instances, limit)
            print_json({"instance": name, "tasks": tasks}) if is_json else _print_tasks(tasks, name)
            return
        queues, parked = await _depths(at, instances), await _parked(at, instances)
        print_json({"queues": queues, "parked": parked}) if is_json else _print_all(queues, parked, limit)


async def _depths(at: Reading, instances: list[InstanceView]) -> list[dict[str, Any]]:
    depths: list[int] = []
    for first in range(0, len(instances), _AT_ONCE):
        page = instances[first : first + _AT_ONCE]
        root = at.connection.root
        depths += await asyncio.gather(*(at.connection.command("XLEN", f"{root}:q:{i.id}") for i in page))
    found = [
        {"instance": i.id, "depth": depth, "slots": i.capacity["slots"], "used": used(i)["slots"], "state": i.state}
        for i, depth in zip(instances, depths, strict=True)
    ]
    return sorted(found, key=lambda row: (-row["depth"], row["instance"]))


async def _parked(at: Reading, instances: list[InstanceView]) -> list[dict[str, Any]]:
    now_ms = (await at.view.level()).now_ms

    async def described(shape: ShapeView) -> dict[str, Any]:
        first = await at.view.parked(shape.shape, count=1)
        return {
            "shape": shape.shape,
            "parked": shape.parked,
            "first": first[0].id if first else "",
            "first_waits_ms": max(0, round(now_ms - first[0].arrived_ms)) if first else 0,
            "why": why_parked(shape, instances),
        }

    found = [await described(shape) for shape in await at.view.shapes()]
    return sorted(found, key=lambda row: -row["parked"])


async def _tasks(at: Reading, name: str, instances: list[InstanceView], limit: int) -> list[dict[str, Any]]:
    instance = next((i for i in instances if i.id == name), None)
    if instance is None:
        near = difflib.get_close_matches(name, [i.id for i in instances], n=1)
        hint = f"did you mean {near[0]}?" if near else "`taskyard queue` lists all"
        raise ConfigError(f"no instance {name} is registered; {hint}")
    now_ms = (await at.view.level()).now_ms
    return [_task(row, instance, now_ms) for row in await at.view.queue(name, count=limit)]


def _task(row: Delivery, instance: InstanceView, now_ms: int) -> dict[str, Any]:
    entry = decode_entry(row.entry)
    return {
        "task": entry.id,
        "shape": entry.shape,
        "attempt": entry.attempt,
        "max_attempts": entry.max_attempts,
        "is_read": is_read(row.stream_id, instance),
        "queued_for_ms": max(0, now_ms - int(row.stream_id.split("-")[0])),
        "age_ms": max(0, round(now_ms - entry.arrived_ms)),
        "progress": instance.reported.progress.get(entry.id, ""),
    }


def is_read(stream_id: str, instance: InstanceView) -> bool:
    """Whether the worker had read this entry when it last beat."""
    return _order(stream_id) <= _order(instance.reported.cursor)


def _order(stream_id: str) -> tuple[int, int]:
    at_ms, _, sequence = stream_id.partition("-")
    return int(at_ms), int(sequence or 0)


def _print_all(queues: list[dict[str, Any]], parked: list[dict[str, Any]], limit: int) -> None:
    console = out()
    rows = [(escape(q["instance"]), f"{q['depth']:,}", f"{q['used']}/{q['slots']}", q["state"]) for q in queues[:limit]]
    console.print(table("queue of", ">depth", ">slots", "state", rows=rows) if rows else "no instance is registered")
    _print_rest(len(queues), limit)
    console.print()
    waiting = [
        (f"{p['parked']:,}", escape(p["shape"]), duration(p["first_waits_ms"]), escape(p["why"]))
        for p in parked[:limit]
    ]
    console.print(table(">parked", "shape", ">first waits", "why", rows=waiting) if waiting else "nothing is parked")
    _print_rest(len(parked), limit)


def _print_rest(count: int, limit: int) -> None:
    if count > limit:
        out().print(f"[dim]and {count - limit:,} more; --limit shows more of them[/]")


def _print_tasks(tasks: list[dict[str, Any]], name: str) -> None:
    if not tasks:
        out().print(f"the queue of {escape(name)} is empty")
        return
    rows = [
        (
            t["task"],
            "taken" if t["is_read"] else "waits",
            duration(t["queued_for_ms"]),
            duration(t["age_ms"]),
            f"{t['attempt']}/{t['max_attempts']}",
            escape(t["shape"]),
            escape(t["progress"]),
        )
        for t in tasks
    ]
    out().print(table("task", "", ">queued for", ">age", ">attempt", "shape", "progress", rows=rows))
