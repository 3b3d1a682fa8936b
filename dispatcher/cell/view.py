"""Reading the cell on Redis or Valkey: for the dispatcher's view of the fleet, and for a person who asks."""

import contextlib
import struct
from collections.abc import Iterator, Mapping

import msgspec

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import (
    Delivery,
    Drift,
    InstanceView,
    Level,
    Place,
    Report,
    ShapeView,
    Vector,
)
from taskyard.dispatcher.cell.recovery import BUCKET_MS
from taskyard.dispatcher.core.snapshot import State
from taskyard.schemas.entry import Entry, decode_entry

_F64 = struct.Struct("<d")
_HEAD = struct.Struct("<4sBH")
_STATES: tuple[State, ...] = ("open", "cordoned", "held")
_MAX_SHAPES = 1_000
_TIES = 1000  # entries of one key that are looked through, as in the library


class _Offered(msgspec.Struct, array_like=True):
    epoch: str
    types: tuple[str, ...]
    capacity: dict[str, int]
    labels: dict[str, str]
    lease_ms: int
    profile: dict[str, str]


_decode_offered = msgspec.msgpack.Decoder(_Offered).decode
_decode_report = msgspec.msgpack.Decoder(Report).decode


class RedisView:
    """The contract's FleetView. Reads are not of one moment, except each single value; nothing here writes."""

    def __init__(self, connection: Connection) -> None:
        self._call = connection.call
        self._command = connection.command
        self._root = connection.root

    async def level(self) -> Level:
        """Read how full the cell is."""
        parked, parked_bytes, later = await self._command(
            "HMGET", f"{self._root}:stats", "parked", "parked_bytes", "later"
        )
        outbox = await self._command("XLEN", f"{self._root}:out")
        instances = await self._command("HLEN", f"{self._root}:inst")
        seconds, micros = await self._command("TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        return Level(int(parked or 0), int(parked_bytes or 0), int(later or 0), outbox, instances, now_ms)

    async def unfinished(self) -> dict[int, int]:
        """Count the unfinished tasks by the arrival of their records."""
        buckets = await self._hash("unfinished")
        return {int(bucket) * BUCKET_MS: int(count) for bucket, count in buckets.items()}

    async def resources(self) -> tuple[str, ...]:
        """Read the names of the resources, in the order of the vectors."""
        found = await self._hash("res")
        return tuple(sorted(found, key=lambda name: int(found[name]))) or ("slots",)

    async def vectors(self) -> dict[str, Vector]:
        """Read the free vectors of all instances."""
        return {name: _vector(packed) for name, packed in (await self._hash("free")).items()}

    async def instances(self) -> list[InstanceView]:
        """Read all instances. Cost: about 10 us an instance, here and there."""
        resources = await self.resources()
        offered, free = await self._hash("inst"), await self._hash("free")
        reports, closed = await self._hash("report"), await self._hash("closed")
        leases = await self._leases()
        found: list[InstanceView] = []
        for name, packed in offered.items():
            # One that is not of our form, made by a worker of another make, is nothing to plan with.
            with contextlib.suppress(msgspec.MsgspecError, ValueError):
                report, reason, lease_ms = reports.get(name), closed.get(name, b""), leases.get(name, 0)
                if name in free:
                    found.append(_instance(name, packed, free[name], report, reason, lease_ms, resources))
        return found

    async def shapes(self) -> list[ShapeView]:
        """Read the shapes that have parked tasks, at most 1,000, of each agent type those with the earliest tasks."""
        reply = await self._call("shapes", _MAX_SHAPES)
        return [
            ShapeView(shape.decode(), parked, float(key), float(arrived), serving)
            for shape, parked, key, arrived, serving in zip(*[iter(reply)] * 5, strict=True)
        ]

    async def find(self, task_id: str) -> Place | None:
        """Find where a task is; None if the cell does not know it (any more)."""
        where = await self._command("HGET", f"{self._root}:where", task_id)
        if where is not None:
            return await self._placed(task_id, where.decode(errors="replace"))
        for half in ("done0", "done1"):
            done = await self._command("HGET", f"{self._root}:{half}", task_id)
            if done is not None:
                kind, instance, attempt, at = done.decode(errors="replace").split("|")
                return Place("finished" if kind == "s" else "dead", at, int(attempt), instance, "", "", None)
        return None

    async def _placed(self, task_id: str, where: str) -> Place:
        kind, rest = where.split("|", 1)
        if kind == "q":
            _, via, at, attempt, instance, shape = rest.split("|", 5)
            rows = await self._command("XRANGE", f"{self._root}:q:{instance}", at, at)
            entry = decode_entry(rows[0][1][1]) if rows else None
            return Place("queued", at, int(attempt), instance, shape, via, entry)
        _, at, attempt, shape = rest.split("|", 3)
        suffix = f"park:{shape}" if kind == "p" else "later"
        rows = await self._command("ZRANGEBYSCORE", f"{self._root}:{suffix}", at, at, "LIMIT", 0, _TIES)
        entry = next((entry for entry in map(decode_entry, rows) if entry.id == task_id), None)
        return Place("parked" if kind == "p" else "later", at, int(attempt), "", shape, "", entry)

    async def queue(self, instance: str, *, count: int) -> list[Delivery]:
        """Read the oldest entries of an instance's queue."""
        rows = await self._command("XRANGE", f"{self._root}:q:{instance}", "-", "+", "COUNT", count)
        return [Delivery(instance, stream_id.decode(), fields[1]) for stream_id, fields in rows]

    async def parked(self, shape: str, *, count: int) -> list[Entry]:
        """Read the first parked tasks of a shape."""
        rows = await self._command("ZRANGE", f"{self._root}:park:{shape}", 0, count - 1)
        return [decode_entry(row) for row in rows]

    async def audit(self, instance: str) -> Drift:
        """Compare an instance's ledger with its vector and the places. An unknown instance has no drift."""
        misplaced, *rest = await self._call("audit", instance) or (0,)
        used = {name.decode(errors="replace"): units for name, units in zip(rest[::2], rest[1::2], strict=True)}
        return Drift(instance, used, misplaced)

    async def _hash(self, suffix: str) -> dict[str, bytes]:
        return {
            name.decode(errors="replace"): value
            for name, value in _paired(await self._command("HGETALL", f"{self._root}:{suffix}"))
        }

    async def _leases(self) -> dict[str, int]:
        rows = await self._command("ZRANGE", f"{self._root}:lease", 0, -1, "WITHSCORES")
        return {name.decode(errors="replace"): int(float(score)) for name, score in _paired(rows)}


def _paired(flat: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _vector(packed: bytes) -> Vector:
    tag, flag, headroom = _HEAD.unpack_from(packed)
    free = struct.unpack_from(f"<{(len(packed) - _HEAD.size) // 4}i", packed, _HEAD.size)
    return Vector(tag.decode(errors="replace"), _STATES[flag], headroom, free)


def _report(packed: bytes | None) -> Report:
    try:
        return _decode_report(packed[8:]) if packed else Report("0-0")
    except (msgspec.MsgspecError, ValueError):
        return Report("0-0")  # of another make; its instance is as good as one that says nothing


def _instance(
    name: str, packed: bytes, free: bytes, report: bytes | None, closed: bytes | None, lease_until_ms: int,
    resources: tuple[str, ...],
) -> InstanceView:  # fmt: skip
    offered, vector = _decode_offered(packed[8:]), _vector(free)
    units: Mapping[str, int] = dict(zip(resources, vector.free, strict=False))
    return InstanceView(
        id=name,
        tag=vector.tag,
        epoch=offered.epoch,
        types=offered.types,
        capacity=offered.capacity,
        free={resource: units.get(resource, 0) for resource in offered.capacity},
        labels=offered.labels,
        profile=offered.profile,
        state=vector.state,
        reason=closed.decode(errors="replace") if closed else "",
        headroom=vector.headroom,
        reported=_report(report),
        reported_ms=int(_F64.unpack_from(report)[0]) if report else 0,
        lease_until_ms=lease_until_ms,
        registered_ms=int(_F64.unpack_from(packed)[0]),
    )
