"""A cell under test: either implementation, a way to let its time pass, and what must hold after every test."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import (
    Applied,
    Batch,
    Delivery,
    DispatcherCell,
    Ending,
    Finished,
    FleetView,
    Place,
    Planned,
    Range,
    Registered,
    Registration,
    WorkerCell,
)
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.cell.twin import TwinCell
from taskyard.dispatcher.cell.view import RedisView
from taskyard.schemas.entry import FIXED, Entry, decode_entry, encode_entry, encode_headers

_WAIT_S = 10.0
PARTITION = "topic:0"
UNENDING_MS = 3_600_000
SOON_MS = 150
_LENGTHS_BYTES = 8  # of id, shape, causes and receipt; that of the headers comes with them


class Cell(WorkerCell, DispatcherCell, Protocol):
    """What both implementations offer besides the view."""


class Rig:
    """One cell and what the tests say to it. Tasks made here are followed by `check`."""

    def __init__(self, cell: Cell, view: FleetView, let_pass: Callable[[int], Awaitable[None]]) -> None:
        self.cell = cell
        self.view = view
        self.let_pass = let_pass
        """Return once the cell's clock has moved on by more than so many ms."""
        self.epochs: dict[str, str] = {}
        self.task_ids: set[str] = set()
        self.offset = 0

    def entry(
        self,
        task_id: str,
        shape: str = "n|a|slots=1|",
        *,
        key: float | None = None,
        deadline_ms: float = 0,
        attempts: int = 3,
        arrived_ms: float | None = None,
    ) -> bytes:
        """Encode a task. It has arrived just now, whatever its key; without one it is behind all made before it."""
        self.task_ids.add(task_id)
        return encode_entry(
            task_id=task_id.encode(),
            shape=shape.encode(),
            max_attempts=attempts,
            key_ms=1000 + len(self.task_ids) if key is None else key,
            deadline_ms=deadline_ms,
            arrived_ms=time.time() * 1000 if arrived_ms is None else arrived_ms,
            receipt=b"receipt",
            headers=encode_headers((("trace", b"\x00\xff"),)),
            wire=b'{"id":"' + task_id.encode() + b'"}',
        )

    async def register(
        self,
        instance: str,
        *types: str,
        lease_ms: int = UNENDING_MS,
        labels: dict[str, str] | None = None,
        epoch: str = "",
        **capacity: int,
    ) -> Registered:
        """Register an instance that must be registered at once; without an epoch, with a new one."""
        epoch = epoch or f"{len(self.epochs):04d}-{instance}"
        self.epochs[instance] = epoch
        offer = Registration(types or ("a",), {"slots": 2, **capacity}, labels or {}, lease_ms)
        registered = await self.cell.register(instance, epoch, offer)
        assert isinstance(registered, Registered)
        return registered

    async def resume(self, instance: str, **capacity: int) -> None:
        """Register an instance, under the epoch that is noted, that runs tasks already."""
        offer = Registration(("a",), capacity, {}, UNENDING_MS)
        registered = await self.cell.register(instance, self.epochs[instance], offer, is_resuming=True)
        assert isinstance(registered, Registered)

    def batch(self, entries: Sequence[bytes], to: Sequence[str] = (), **changes: Any) -> Batch:
        """Make a batch that starts where the last one ended, with the same candidates for every task."""
        shapes = list(dict.fromkeys(decode_entry(entry).shape for entry in entries))
        tasks = [Planned(shapes.index(decode_entry(e).shape), tuple(range(len(to))), e) for e in entries]
        instances = [(name, self.epochs.get(name, "none")[:4]) for name in to]
        batch = Batch([Range(PARTITION, self.offset, self.offset + len(entries))], instances, shapes, tasks)
        return batch._replace(**changes)

    async def apply(self, *entries: bytes, to: Sequence[str] = (), **changes: Any) -> str:
        """Apply a batch that must take effect; return its results."""
        applied = await self.cell.apply(self.batch(entries, to, **changes))
        assert isinstance(applied, Applied), applied
        self.offset += len(entries)
        return applied.results

    async def find(self, task_id: str) -> Place:
        """Find a task that the cell must know."""
        place = await self.view.find(task_id)
        assert place is not None, task_id
        return place

    async def ending(
        self, task_id: str, how: str = "succeeded", detail: bytes = b"outcome", delay_ms: int = 0
    ) -> Ending:
        """End a queued task's current attempt."""
        place = await self.find(task_id)
        return Ending(task_id, place.at, place.attempt, how, detail, delay_ms)  # pyright: ignore[reportArgumentType]

    async def finish(self, instance: str, *endings: Ending) -> Finished:
        """Finish attempts on an instance whose epoch is current."""
        finished = await self.cell.finish(instance, self.epochs[instance], endings)
        assert isinstance(finished, Finished), finished
        return finished

    async def queued(self, instance: str) -> list[str]:
        """List the tasks on an instance's queue, oldest first."""
        return ids(await self.view.queue(instance, count=10_000))

    async def parked(self, shape: str = "n|a|slots=1|") -> list[str]:
        """List the parked tasks of a shape, in order."""
        return [entry.id for entry in await self.view.parked(shape, count=10_000)]

    async def free(self, instance: str) -> dict[str, int]:
        """Read what is free of an instance."""
        return next(view.free for view in await self.view.instances() if view.id == instance)

    async def park_beside_a_free_slot(self, instance: str, task_id: str, *, key: float, deadline_ms: float = 0) -> None:
        """Leave a task parked although an instance has one slot free: what is left when a hold ends unused."""
        big = "n|a|slots=2|"
        await self.register(instance, slots=2)
        await self.apply(self.entry("filler"), self.entry("big", big, key=2, deadline_ms=await self.soon()))
        assert await self.cell.hold(big, instance)
        await self.apply(self.entry(task_id, key=key, deadline_ms=deadline_ms))
        await self.let_pass(SOON_MS)
        assert await self.cell.expire(limit=1) == 1
        assert (await self.view.vectors())[instance].state == "open"
        assert await self.parked() == [task_id]

    async def soon(self) -> int:
        """A deadline that has not passed yet, and will have after `let_pass(SOON_MS)`."""
        return (await self.view.level()).now_ms + SOON_MS

    async def until(self, is_met: Callable[[], Awaitable[object]], what: str) -> None:
        """Wait for a condition of the cell, letting its time pass; fail after 10 s."""
        give_up_s = time.monotonic() + _WAIT_S
        while not await is_met():
            assert time.monotonic() < give_up_s, f"never came to pass: {what}"
            await self.let_pass(2)

    async def check(self) -> None:
        """Check invariants 2 and 3 of the design and the counters."""
        await self._check_capacity()
        on_queues = [name for view in await self.view.instances() for name in await self.queued(view.id)]
        in_park = [e for s in await self.view.shapes() for e in await self.view.parked(s.shape, count=10_000)]
        places = {name: await self.view.find(name) for name in self.task_ids}

        by_state: dict[str, list[str]] = {"queued": [], "parked": [], "later": [], "finished": [], "dead": []}
        for name, place in places.items():
            if place:
                by_state[place.state].append(name)
                assert (place.entry is None) == (place.state in ("finished", "dead")), (name, place)
                assert place.entry is None or place.entry.attempt == place.attempt, (name, place)
        level = await self.view.level()
        assert sorted(on_queues) == sorted(by_state["queued"])
        assert sorted(entry.id for entry in in_park) == sorted(by_state["parked"])
        assert level.parked == len(in_park)
        assert level.parked_bytes == sum(map(encoded_size, in_park))
        assert level.later == len(by_state["later"])

    async def _check_capacity(self) -> None:
        views = await self.view.instances()
        assert (await self.view.level()).instances == len(views)
        for view in views:
            drift = await self.view.audit(view.id)
            assert drift.misplaced == 0, drift
            assert not any(drift.used.values()), drift
            assert all(0 <= view.free[name] <= view.capacity[name] for name in view.capacity), view


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    """Read whose entries these are."""
    return [decode_entry(delivery.entry).id for delivery in deliveries]


def encoded_size(entry: Entry) -> int:
    """Return how many bytes an entry has on the wire."""
    causes = sum(len(f"{c.attempt}\t{c.instance}\t{c.at_ms}\t{c.reason}\n".encode()) for c in entry.causes)
    return (
        FIXED.size
        + _LENGTHS_BYTES
        + len(entry.id.encode())
        + len(entry.shape.encode())
        + causes
        + len(entry.receipt)
        + len(encode_headers(entry.headers))
        + len(entry.wire)
    )


async def pass_real_time(now: Callable[[], Awaitable[int]], ms: int) -> None:
    """Return once a real clock has moved on by more than ms: waits for the time it tells, not for so long."""
    until_ms = await now() + ms
    give_up_s = time.monotonic() + _WAIT_S
    while await now() <= until_ms:
        assert time.monotonic() < give_up_s, "the server's clock stands still"
        await asyncio.sleep(0.001)


def twin_rig() -> Rig:
    """Make a rig over the twin, on a clock that only `let_pass` moves."""
    now_ms = int(time.time() * 1000)

    async def let_pass(ms: int) -> None:
        nonlocal now_ms
        now_ms += ms + 1

    twin = TwinCell(random.Random(1), lambda: now_ms)
    return Rig(twin, twin, let_pass)


def redis_rig(connection: Connection) -> Rig:
    """Make a rig over Redis, where time passes by itself."""
    view = RedisView(connection)

    async def now() -> int:
        return (await view.level()).now_ms

    return Rig(RedisCell(connection), view, lambda ms: pass_real_time(now, ms))
