"""The state of a cell without what must differ between two of them: times, stream ids, the generation."""

from collections import Counter
from typing import Any

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import Delivery, Outgoing, Place
from taskyard.schemas.entry import Entry, decode_entry
from tests.contract.rig import Rig


async def snapshot(rig: Rig) -> dict[str, Any]:
    """Read everything that the contract lets one see."""
    view, state = rig.view, dict[str, Any]()
    state["level"] = (await view.level())[:-1]
    state["unfinished"] = await view.unfinished()
    state["resources"] = await view.resources()
    state["vectors"] = await view.vectors()
    state["shapes"] = sorted(await view.shapes())
    for shape in state["shapes"]:
        state[f"park {shape.shape}"] = [_timeless(entry) for entry in await view.parked(shape.shape, count=100)]
    for seen in await view.instances():
        state[f"instance {seen.id}"] = seen._replace(
            reported=seen.reported._replace(cursor=""), reported_ms=0, lease_until_ms=0, registered_ms=0
        )
        state[f"queue {seen.id}"] = [_delivered(delivery) for delivery in await view.queue(seen.id, count=100)]
        state[f"audit {seen.id}"] = await view.audit(seen.id)
    for task_id in sorted(rig.task_ids):
        state[f"task {task_id}"] = _placed(await view.find(task_id))
    state["outbox"] = Counter([_outgoing(outgoing) for outgoing in await rig.cell.outbox(count=1000)])
    return state


async def heads_told_too_late(connection: Connection) -> list[bytes]:
    """List the parks whose heads are missing, or stored with later keys than their first tasks have."""
    found: list[bytes] = []
    for park in await connection.command("KEYS", f"{connection.root}:park:*"):
        shape = park.decode().removeprefix(f"{connection.root}:park:")
        lane, agent_type, *_ = shape.split("|")
        index = f"c|{agent_type}" if lane == "c" else agent_type
        told = await connection.command("ZSCORE", f"{connection.root}:heads:{index}", shape)
        [_, first] = await connection.command("ZRANGE", park, 0, 0, "WITHSCORES")
        if told is None or float(told) > float(first):
            found.append(park)
    return found


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Say what is not the same."""
    names = sorted(one.keys() | other.keys())
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _timeless(entry: Entry) -> tuple[Entry, tuple[tuple[int, str, str], ...]]:
    causes = tuple((cause.attempt, cause.instance, cause.reason) for cause in entry.causes)
    return entry._replace(causes=()), causes


def _delivered(delivery: Delivery) -> Any:
    return _timeless(decode_entry(delivery.entry))


def _placed(place: Place | None) -> Any:
    if place is None:
        return None
    entry = _timeless(place.entry) if place.entry else None
    return place._replace(entry=None, at=place.at if place.state == "parked" else ""), entry


def _outgoing(outgoing: Outgoing) -> Any:
    body = _timeless(decode_entry(outgoing.body)) if outgoing.kind == "dead" else outgoing.body
    return outgoing.kind, body, outgoing.reason, outgoing.cause, outgoing.instance
