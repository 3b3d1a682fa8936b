"""The cell on Redis or Valkey: typed calls of the function library."""

import secrets
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import (
    MAX_BATCH,
    Applied,
    Batch,
    Beaten,
    CellConfig,
    Delivery,
    Ending,
    Evicting,
    Fenced,
    Finished,
    Full,
    OnSent,
    Outgoing,
    Recovering,
    Refused,
    Registered,
    Registration,
    Report,
    Resynced,
    Running,
)
from taskyard.dispatcher.cell.recovery import BUCKET_MS, Incarnation, OldTasks, Opening

_pack = msgspec.msgpack.Encoder().encode
# Shape and three candidates of a task, numbered from 1.
_pack_choice = struct.Struct("<4H").pack
_NOBODY = (0,) * 3

_PAGE = 1_000  # ids in one call
_RESTORED = 100  # entries in one call


class RedisCell:
    """The contract's WorkerCell and DispatcherCell, for any number of asyncio tasks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._call = connection.call
        self._command = connection.command
        self._root = connection.root
        # The run id of the server that has had the library from here.
        self._loaded = ""
        # One connection for each waiting time, so that its timeout fits.
        self._readers: dict[int, Callable[..., Awaitable[Any]]] = {}

    # What workers need.

    async def register(
        self, instance: str, epoch: str, registration: Registration, *, is_resuming: bool = False
    ) -> Registered | Evicting:
        """Offer an instance's capacity. Evicting: an earlier registration is still being taken back; call again."""
        types, capacity, labels, lease_ms, profile = registration
        offered = _pack((epoch, types, capacity, labels, lease_ms, profile))
        kind, *reply = await self._call("register", instance, offered, int(is_resuming))
        if kind == b"evicting":
            return Evicting(reply[0])
        generation, now_ms, cursor = reply
        return Registered(generation.decode(), now_ms, cursor.decode())

    async def beat(self, instance: str, epoch: str, report: Report) -> Beaten | Refused:
        """Renew the lease and tell the report."""
        kind, *reply = await self._call("beat", instance, epoch, _pack(report))
        if kind != b"ok":
            return _refused(kind)
        generation, now_ms, reason, recalled = reply
        return Beaten(generation.decode(), now_ms, reason.decode(), recalled.decode())

    async def read(self, cursors: Mapping[str, str], *, count: int, block_ms: int) -> list[Delivery]:
        """Read entries behind the cursors, at most `count` an instance; without any, wait for up to block_ms.

        0 does not wait. One read at a time for one cell object.
        """
        if not cursors:
            return []
        if block_ms not in self._readers:
            self._readers[block_ms] = self._connection.reader(block_ms=block_ms)
        prefix = f"{self._root}:q:"
        names = [prefix + instance for instance in cursors]
        wait = ("BLOCK", block_ms) if block_ms else ()  # BLOCK 0 would wait for ever
        reply = await self._readers[block_ms]("XREAD", "COUNT", count, *wait, "STREAMS", *names, *cursors.values())
        skip = len(prefix)
        return [
            Delivery(name[skip:].decode(), stream_id.decode(), fields[1])
            for name, rows in reply or ()
            for stream_id, fields in rows
        ]

    async def finish(self, instance: str, epoch: str, endings: Sequence[Ending]) -> Finished | Refused:
        """End attempts. Repeating it is harmless: an ending that has counted does not count again."""
        heads = _pack([part for e in endings for part in (e.task_id, e.stream_id, e.attempt, e.how, e.delay_ms)])
        kind, *reply = await self._call("finish", instance, epoch, heads, *[e.detail for e in endings])
        if kind != b"ok":
            return _refused(kind)
        return Finished(tuple(byte == ord("1") for byte in reply[0]), reply[1])

    async def resync(
        self, instance: str, epoch: str, running: Sequence[Running], *, is_last: bool = True
    ) -> Resynced | Refused:
        """Tell a cell that may have gone back in time what this instance runs."""
        heads = _pack([(r.task_id, r.stream_id, r.attempt) for r in running])
        kind, *reply = await self._call("resync", instance, epoch, heads, int(is_last), *[r.entry for r in running])
        if kind != b"ok":
            return _refused(kind)
        generation, *stream_ids = (value.decode() for value in reply)
        return Resynced(generation, tuple(stream_id or None for stream_id in stream_ids))

    async def close_instance(self, instance: str, epoch: str, reason: str) -> bool:
        """Quiet: nothing more is placed on it."""
        return bool(await self._call("cordon", instance, reason, epoch))

    async def leave(self, instance: str, epoch: str) -> Evicting | Refused:
        """Unregister, a page at a time; Evicting(0) means gone."""
        kind, *reply = await self._call("leave", instance, epoch)
        return Evicting(reply[0]) if kind == b"evicting" else _refused(kind)

    # What the dispatcher's loops need.

    async def open(self, config: CellConfig) -> Opening:
        """Load the library, store the config, return the generation."""
        info: bytes = await self._command("INFO", "server")
        run_id = next((line[7:] for line in info.decode().split("\r\n") if line.startswith("run_id:")), "")
        if run_id != self._loaded:  # to compare it is to read 80 KB; a server that has lost it says so
            await self._connection.load()
            self._loaded = run_id
        settings = [str(part) for pair in config._asdict().items() for part in pair]
        generation, is_begun, ends = await self._call("open", run_id, secrets.token_hex(8), *settings)
        replaying = {name.decode(): int(end) for name, end in zip(ends[::2], ends[1::2], strict=True)}
        return Opening(generation.decode(), bool(is_begun), replaying)

    async def remember(self, task_ids: Sequence[str]) -> int:
        """Note tasks that have ended, in a cell that has not begun."""
        pages = [task_ids[first : first + _PAGE] for first in range(0, len(task_ids), _PAGE)]
        return sum([int(await self._call("remember", *page)) for page in pages])

    async def restore(self, entries: Sequence[bytes]) -> int:
        """Place or park carried tasks again, in a cell that has not begun."""
        pages = [entries[first : first + _RESTORED] for first in range(0, len(entries), _RESTORED)]
        return sum([int(await self._call("restore", *page)) for page in pages])

    async def old(self, cursor: str, *, before_ms: int) -> OldTasks:
        """Scan for old unfinished tasks that are not carried."""
        following, *found = await self._call("old", cursor or 0, before_ms // BUCKET_MS, _PAGE)
        return OldTasks("" if following == b"0" else following.decode(), tuple([name.decode() for name in found]))

    async def copies(self, task_ids: Sequence[str]) -> list[bytes]:
        """Read the entries of these tasks as they are now."""
        return list(await self._call("copies", *task_ids))

    async def carry(self, task_ids: Sequence[str]) -> tuple[bool, ...]:
        """Note that copies of these tasks are safe elsewhere."""
        return tuple([byte == ord("1") for byte in await self._call("carry", *task_ids)])

    async def begin(
        self, applied: Mapping[Incarnation, int], *, until: Mapping[Incarnation, int] = {}, generation: str = ""
    ) -> bool:
        """Let the cell take batches, each partition from this offset on."""
        pairs = (len(applied), *chain.from_iterable(applied.items()), *chain.from_iterable(until.items()))
        return bool(await self._call("begin", generation, *pairs))

    async def applied(self, partitions: Sequence[Incarnation]) -> dict[Incarnation, int]:
        """Read up to which offset each partition has been applied; one that never was is absent."""
        if not partitions:
            return {}
        offsets = await self._command("HMGET", f"{self._root}:applied", *partitions)
        return {name: int(offset) for name, offset in zip(partitions, offsets, strict=True) if offset is not None}

    async def apply(self, batch: Batch, *, on_sent: OnSent | None = None) -> Applied | Fenced | Full | Recovering:
        """Make a batch take effect, exactly once. Raises ValueError above MAX_BATCH tasks (a caller's bug)."""
        if len(batch.tasks) > MAX_BATCH:
            raise ValueError(f"{len(batch.tasks)} tasks in one batch; at most {MAX_BATCH}")
        instances = list(chain.from_iterable(batch.instances))
        header = _pack((batch.ranges, instances, batch.shapes, batch.parked_permille))
        choices = [
            _pack_choice(t.shape + 1, *[at + 1 for at in t.candidates], *_NOBODY[len(t.candidates) :])
            for t in batch.tasks
        ]
        entries = [task.entry for task in batch.tasks]
        words = (header, b"".join(choices), len(entries), *entries, *batch.refused)
        kind, *reply = await self._call("apply", *words, on_sent=on_sent)
        if kind == b"ok":
            results, parked, outbox, now_ms = reply
            return Applied(results.decode(), parked, outbox, now_ms)
        if kind == b"full":
            return Full(*reply)
        if kind == b"recovering":
            return Recovering()
        offsets = dict(zip(reply[::2], reply[1::2], strict=True))
        return Fenced({name.decode(): int(offset) for name, offset in offsets.items() if offset is not None})

    async def evict(self, *, limit: int) -> tuple[str, int] | None:
        """Take back a page of one instance whose lease has run out."""
        reply = await self._call("evict", limit)
        return (reply[0].decode(errors="replace"), reply[1]) if reply else None

    async def recall(self, instances: Sequence[str], *, min_age_ms: int, limit: int) -> int:
        """Take back what these instances have not read for min_age_ms."""
        return int(await self._call("recall", min_age_ms, limit, *instances)) if instances else 0

    async def settle(self, matches: Sequence[tuple[str, str]], *, limit: int) -> int:
        """Let these instances take what is parked: (instance, shape)."""
        return int(await self._call("settle", limit, *chain.from_iterable(matches))) if matches else 0

    async def due(self, *, limit: int) -> int:
        """Place or park tasks whose backoff is over."""
        return int(await self._call("due", limit))

    async def expire(self, *, limit: int) -> int:
        """Dead-letter parked tasks that waited too long."""
        return int(await self._call("expire", limit))

    async def hold(self, shape: str, instance: str) -> bool:
        """Keep the instance for the first task of the shape."""
        return bool(await self._call("hold", shape, instance))

    async def cordon(self, instance: str, reason: str) -> bool:
        """Close the instance for a reason, or with an empty one open it."""
        return bool(await self._call("cordon", instance, reason, ""))

    async def lease(self, name: str, owner: str, *, ttl_ms: int) -> bool:
        """Take, renew or give back a lease."""
        return bool(await self._call("lease", name, owner, ttl_ms))

    async def outbox(self, *, count: int) -> list[Outgoing]:
        """Read the oldest entries of the outbox."""
        rows = await self._command("XRANGE", f"{self._root}:out", "-", "+", "COUNT", count)
        return [_outgoing(stream_id.decode(), fields) for stream_id, fields in rows]

    async def newest_outgoing(self) -> str:
        """Return the stream id of the newest entry of the outbox."""
        rows = await self._command("XREVRANGE", f"{self._root}:out", "+", "-", "COUNT", 1)
        return rows[0][0].decode() if rows else ""

    async def trim(self, stream_ids: Sequence[str]) -> int:
        """Remove entries from the outbox."""
        return int(await self._command("XDEL", f"{self._root}:out", *stream_ids)) if stream_ids else 0

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()


def _refused(kind: bytes) -> Refused:
    return Refused("stale" if kind == b"stale" else "unknown")


def _outgoing(stream_id: str, fields: Sequence[bytes]) -> Outgoing:
    first = fields[0]
    if first == b"x":
        return Outgoing(stream_id, "uncarried", fields[1])
    if first == b"r":
        return Outgoing(stream_id, "outcome", fields[1])
    if first == b"p":
        return Outgoing(stream_id, "refused", fields[1])
    _, reason, _, cause, _, instance, _, entry = fields
    return Outgoing(stream_id, "dead", entry, reason.decode(), cause.decode(errors="replace"), instance.decode())
