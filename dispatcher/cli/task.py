"""`taskyard task`: where one task is, how it came there and what happened to it."""

import asyncio
from datetime import datetime
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from taskyard.dispatcher.cell.contract import Place
from taskyard.dispatcher.cli.flags import NONE, Common, settings_of
from taskyard.dispatcher.cli.overview import Reading, reading, why_parked
from taskyard.dispatcher.cli.queue import is_read
from taskyard.dispatcher.cli.terminal import duration, fail, out, print_json, table
from taskyard.dispatcher.core.receipt import Receipt, decode_receipt
from taskyard.dispatcher.core.snapshot import InstanceView, ShapeView
from taskyard.dispatcher.kafka.search import find_value
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.codec import codec_for, codec_of
from taskyard.schemas.entry import Entry
from taskyard.schemas.errors import DependencyError, SchemaError
from taskyard.schemas.limits import Limits
from taskyard.schemas.topics import topics

_VIA = {
    "1": "the plan's first choice",
    "2": "the plan's second choice: the first had no room any more",
    "3": "the plan's third choice: the first two had no room any more",
    "o": "any open instance that fits: none of the plan's choices had room any more",
    "u": "pulled from the park by a task that ended there",
    "g": "pulled from the park when the instance registered or was opened",
    "s": "pulled from the park by a settle",
    "d": "placed when its backoff was over",
    "e": "placed again after it was taken back from another instance",
    "r": "adopted again from the worker that ran it",
    "c": "restored from the topic of carried tasks after everything was lost",
    "m": "given its place back by the auditor",
}
# A record that intake has accepted is decoded, whatever its size: the dispatcher's bound may be set higher than ours.
_ANY_SIZE = Limits(payload_bytes=1 << 30)
# The cell's clock and the broker's may differ by so much.
_CLOCKS_MS = 60_000
_SEARCH_S = 15


def task(
    id: Annotated[str, Parameter(help="the task's id")],  # noqa: A002 - what it is called everywhere
    /,
    *,
    json: Annotated[bool, Parameter(help="one line of JSON")] = False,
    common: Common = NONE,
) -> int:
    """Show where a task is, the attempts that ended, and how its place was chosen.

    Exit code 1 if the cell does not know the task. The payload is not shown.
    """
    settings = settings_of(common)
    found = asyncio.run(_found(settings, id))
    if found is None:
        fail(
            f"the cell {settings.cell} does not know the task {id}: it is not published, or not applied yet "
            "(`taskyard status` shows the lag), or it ended longer ago than the cell remembers"
        )
        return 1
    if json:
        print_json(found)
    else:
        _print(found)
    return 0


async def _found(settings: Settings, task_id: str) -> dict[str, Any] | None:
    async with reading(settings) as at:
        place = await at.view.find(task_id)
        if place is None:
            return None
        now_ms = (await at.view.level()).now_ms
        found: dict[str, Any] = {
            "task": task_id,
            "state": place.state,
            "instance": place.instance,
            "attempt": place.attempt,
            "now_ms": now_ms,
            **await _whereabouts(at, place, task_id),
        }
    if place.entry is not None:
        found.update(_told(place.entry))
    elif place.state in ("finished", "dead"):
        found.update(await _ended(settings, task_id, since_ms=found["ended_ms"] - _CLOCKS_MS))
    return found


async def _ended(settings: Settings, task_id: str, *, since_ms: int) -> dict[str, Any]:
    """What the results topic tells of a task that has ended."""
    try:
        async with asyncio.timeout(_SEARCH_S):
            names = topics(settings.prefix)
            value = await find_value(settings.kafka, names.results, task_id.encode(), since_ms=since_ms)
    except (DependencyError, TimeoutError) as error:
        return {"outcome": None, "outcome_missing": str(error) or f"not found within {_SEARCH_S} s"}
    if value is None:
        return {"outcome": None, "outcome_missing": "not published yet, or no longer kept"}
    outcome = codec_of(value).decode_outcome(value)
    return {
        "type": outcome.type,
        "priority": outcome.priority,
        "tenant": outcome.tenant,
        "session": outcome.session,
        "causes": [cause._asdict() for cause in outcome.causes],
        "receipt": _receipt(outcome.receipt),
        "outcome": {
            name: getattr(outcome, name)
            for name in ("status", "cause", "arrived_ms", "placed_ms", "started_ms", "finished_ms")
        },
    }


def _receipt(data: bytes) -> dict[str, Any] | None:
    receipt = decode_receipt(data)
    return None if receipt is None else {name: getattr(receipt, name) for name in receipt.__struct_fields__}


async def _whereabouts(at: Reading, place: Place, task_id: str) -> dict[str, Any]:
    """What the place means, by its kind."""
    if place.state in ("finished", "dead"):
        return {"ended_ms": int(float(place.at))}
    if place.state == "later":
        return {"due_ms": int(float(place.at))}
    instances = await at.view.instances()
    if place.state == "parked":
        shape = ShapeView(place.shape, 0, 0, 0, 0)
        return {"key_ms": float(place.at), "why": why_parked(shape, instances)}
    return {
        "queued_ms": int(place.at.split("-")[0]),
        "via": place.via,
        **_on_instance(place, task_id, next((i for i in instances if i.id == place.instance), None)),
    }


def _on_instance(place: Place, task_id: str, instance: InstanceView | None) -> dict[str, Any]:
    if instance is None:
        return {"is_read": False, "progress": ""}
    return {"is_read": is_read(place.at, instance), "progress": instance.reported.progress.get(task_id, "")}


def _told(entry: Entry) -> dict[str, Any]:
    """What the entry itself tells."""
    found: dict[str, Any] = {
        "shape": entry.shape,
        "max_attempts": entry.max_attempts,
        "evictions": entry.evictions,
        "arrived_ms": int(entry.arrived_ms),
        "key_ms": entry.key_ms,
        "deadline_ms": int(entry.deadline_ms),
        "record_bytes": len(entry.wire),
        "causes": [cause._asdict() for cause in entry.causes],
        "receipt": _receipt(entry.receipt),
    }
    try:
        task = codec_for(entry.headers).decode_task(entry.wire, _ANY_SIZE)
    except SchemaError:
        return found
    return {**found, "type": task.type, "priority": task.priority, "tenant": task.tenant, "session": task.session}


def _print(found: dict[str, Any]) -> None:
    rows = [("task", escape(found["task"])), ("state", _state(found))]
    if found.get("progress"):
        rows.append(("progress", escape(found["progress"])))
    if found.get("type"):
        extra = "".join(f", {name} {escape(found[name])}" for name in ("tenant", "session") if found[name])
        rows.append(("what", f"{escape(found['type'])}, priority {found['priority']}{extra}"))
    if "shape" in found:
        rows += [
            ("shape", escape(found["shape"])),
            ("attempt", f"{found['attempt']} of {found['max_attempts']}"),
            ("arrived", _ago(found["arrived_ms"], found["now_ms"])),
        ]
        if found["deadline_ms"]:
            rows.append(("deadline", _ago(found["deadline_ms"], found["now_ms"])))
    rows += _outcome_rows(found)
    if found.get("via"):
        rows.append(("placed", _VIA.get(str(found["via"]), "")))
    if found.get("receipt"):
        rows.append(("receipt", escape(receipt_text(Receipt(**found["receipt"])))))
    console = out()
    for name, text in rows:
        console.print(f"[bold]{name:<9}[/] {text}", soft_wrap=True)
    if found.get("causes"):
        ended = [
            (f"{c['attempt']}", escape(c["instance"]), _ago(c["at_ms"], found["now_ms"]), escape(c["reason"]))
            for c in found["causes"]
        ]
        console.print()
        console.print(table(">attempt", "on", "ended", "cause", rows=ended))


def _outcome_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What is told of a task that has ended."""
    if "outcome" not in found:
        return []
    outcome, rows = found["outcome"], list[tuple[str, str]]()
    if outcome is None:
        return [("outcome", f"[yellow]{escape(found['outcome_missing'])}[/]")]
    rows.append(("arrived", _ago(outcome["arrived_ms"], found["now_ms"])))
    if outcome["started_ms"]:
        waited = duration(outcome["started_ms"] - outcome["arrived_ms"])
        rows.append(("ran", f"for {duration(outcome['finished_ms'] - outcome['started_ms'])} after a wait of {waited}"))
    if outcome["cause"]:
        rows.append(("cause", f"[red]{escape(outcome['cause'])}[/]"))
    return rows


def _state(found: dict[str, Any]) -> str:
    now_ms, where = found["now_ms"], escape(found["instance"])
    match found["state"]:
        case "queued":
            since = duration(now_ms - found["queued_ms"])
            doing = "its worker has it" if found["is_read"] else "its worker has not read it yet"
            return f"on the queue of [bold]{where}[/] for {since}; {doing}"
        case "parked":
            return f"[yellow]parked[/]: {escape(found['why'])}"
        case "later":
            return f"[yellow]waits[/] for its next attempt, due in {duration(max(0, found['due_ms'] - now_ms))}"
        case "finished":
            return f"[green]finished[/] on {where}, {_ago(found['ended_ms'], now_ms)}, in attempt {found['attempt']}"
        case _:
            last = f", last on {where}" if where else ""
            return f"[red]dead[/], {_ago(found['ended_ms'], now_ms)}{last}; the dead-letter topic has the whole task"


def receipt_text(receipt: Receipt) -> str:
    """Say how a place was chosen."""
    seen = f"view {receipt.view_age_ms} ms old, seed {receipt.seed}, index {receipt.index}"
    if receipt.reason:
        return f"{receipt.policy} found no instance: {receipt.reason} ({seen})"
    text = f"{receipt.policy} chose {receipt.chosen}, load {receipt.load:.3f}, of {receipt.candidates} candidates"
    if receipt.runner_up:
        text += f"; next {receipt.runner_up}, load {receipt.runner_up_load:.3f}"
    return f"{text} ({seen})"


def _ago(at_ms: int, now_ms: int) -> str:
    told = datetime.fromtimestamp(at_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    distance = duration(abs(now_ms - at_ms))
    return f"{told} ({distance} ago)" if at_ms <= now_ms else f"{told} (in {distance})"
