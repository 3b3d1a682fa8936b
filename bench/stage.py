"""The stage: a cell that is set up with the calls of dispatchers and workers, none of which runs.

Library and settings are the real ones. Fleets are registered with leases that outlast any run; tasks are parked or
placed by `apply`, as entries of the dispatcher's form.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from bench import backlog
from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import (
    MAX_BATCH,
    Applied,
    Batch,
    Evicting,
    Planned,
    Range,
    Registered,
    Registration,
)
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.cell.view import RedisView
from taskyard.dispatcher.core.receipt import Receipt, encode_receipt
from taskyard.dispatcher.core.shapes import shape_text
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.codec import JSON
from taskyard.schemas.entry import NO_HEADERS, encode_entry
from taskyard.schemas.task import AgentType, Task, TaskId

PARTITION = "bench:0"
"""Of no topic: what is put on the stage is counted apart from what a dispatcher reads."""

LEASE_MS = 3_600_000
_REGISTER_AT_ONCE = 100
# Of entries in one call, as a dispatcher's batches by default.
_BATCH_BYTES = 4 << 20
# Far beyond what any run parks.
_PARKED_LIMIT = 10_000_000
_PARKED_BYTES_LIMIT = 64 << 30
_ARRIVALS_PER_MS = 100
_RECEIPT = encode_receipt(
    Receipt("least-agent-load", view_age_ms=25, seed=1 << 31, index=500, reason="all instances that fit are full")
)


class Kind(NamedTuple):
    """Tasks of one shape: agent type and requirements."""

    type: str
    needs: Mapping[str, int]


class Placeholder(NamedTuple):
    """A registered instance behind which there is no worker."""

    id: str
    epoch: str


class Entries:
    """Makes entries of these kinds in turn, each with an id of its own, with no Kafka in between."""

    def __init__(self, kinds: Sequence[Kind], payload_bytes: int = backlog.PAYLOAD_BYTES, *, name: str) -> None:
        """Make entries whose ids begin with `name`."""
        payload = msgspec.Raw(JSON.encode_payload(backlog.payload_of(payload_bytes)))
        tasks = [Task(type=AgentType(kind.type), payload=payload, requirements=dict(kind.needs)) for kind in kinds]
        self._likes = [(task, shape_text(task)) for task in tasks]
        self._name = name
        self._slack_ms = Settings().slack_ms()["normal"]
        self._began_ms = int(time.time() * 1000)
        self.shapes = [shape for _, shape in self._likes]
        self.made = 0
        self.bytes = 0

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield the index of the shape and the entry, for ever; each a little later than the one before."""
        while True:
            at = self.made % len(self._likes)
            like, shape = self._likes[at]
            task_id = f"{self._name}{self.made:0{32 - len(self._name)}x}"
            arrived_ms = self._began_ms + self.made // _ARRIVALS_PER_MS
            entry = encode_entry(
                task_id=task_id.encode(),
                shape=shape.encode(),
                max_attempts=like.max_attempts,
                key_ms=arrived_ms + self._slack_ms,
                deadline_ms=0,
                arrived_ms=arrived_ms,
                receipt=_RECEIPT,
                headers=NO_HEADERS,
                wire=JSON.encode_task(msgspec.structs.replace(like, id=TaskId(task_id))),
            )
            self.made += 1
            self.bytes += len(entry)
            yield at, entry


class Stage:
    """One cell. Owned by one run."""

    def __init__(self, connection: Connection) -> None:
        self.cell = RedisCell(connection)
        self.view = RedisView(connection)
        self._offset = 0

    async def register(
        self, count: int, types: Sequence[str], capacity: Mapping[str, int], *, name: str = "instance"
    ) -> list[Placeholder]:
        """Register a fleet. Each instance pulls what is parked for it."""
        offer = Registration(tuple(types), capacity, {}, LEASE_MS)
        fleet = [Placeholder(f"{name}-{number}", f"{number:08x}") for number in range(count)]
        for first in range(0, count, _REGISTER_AT_ONCE):
            page = fleet[first : first + _REGISTER_AT_ONCE]
            for reply in await asyncio.gather(*[self.cell.register(i.id, i.epoch, offer) for i in page]):
                match reply:
                    case Evicting(left):
                        raise RuntimeError(f"the cell is not new: {left} tasks of an earlier fleet are left")
                    case Registered():
                        pass
        return fleet

    async def park(self, entries: Entries, count: int) -> None:
        """Park tasks for which there must be no room."""
        tasks = iter(entries)
        for size in _pages(count, entries):
            batch = [Planned(shape, (), entry) for shape, entry in islice(tasks, size)]
            await self._apply(entries, (), batch, "p")

    async def place(self, entries: Entries, fleet: Sequence[Placeholder], each: int) -> None:
        """Place so many tasks on each instance, for which there must be room."""
        tasks = iter(entries)
        targets = [at for at in range(len(fleet)) for _ in range(each)]
        first = 0
        for size in _pages(len(targets), entries):
            page = targets[first : first + size]
            batch = [Planned(shape, (at,), entry) for at, (shape, entry) in zip(page, tasks, strict=False)]
            await self._apply(entries, fleet, batch, "1")
            first += size

    async def _apply(self, entries: Entries, fleet: Sequence[Placeholder], tasks: list[Planned], result: str) -> None:
        ranges = [Range(PARTITION, self._offset, self._offset + len(tasks))]
        instances = [(instance.id, instance.epoch[:4]) for instance in fleet]
        applied = await self.cell.apply(Batch(ranges, instances, entries.shapes, tasks))
        if not isinstance(applied, Applied) or set(applied.results) != {result}:
            raise RuntimeError(f"wanted {result} for each of {len(tasks)} tasks, got {applied}")
        self._offset += len(tasks)


def _pages(count: int, entries: Entries) -> Iterator[int]:
    """Part a count into batches, bounded in tasks and, going by the first entry, in bytes."""
    size = 1
    while count > 0:
        size = min(size, count)
        yield size
        count -= size
        size = max(1, min(MAX_BATCH, _BATCH_BYTES * entries.made // entries.bytes))


@contextlib.asynccontextmanager
async def staged(redis_url: str, cell_name: str, *, is_begun: bool = True) -> AsyncGenerator[Stage]:
    """Open a cell with room for any park; is_begun: it takes batches at once. The cell stays when the block is left."""
    connection = Connection(redis_url, cell_name)
    stage = Stage(connection)
    config = Settings().cell_config()
    try:
        await stage.cell.open(config._replace(parked_limit=_PARKED_LIMIT, parked_bytes_limit=_PARKED_BYTES_LIMIT))
        if is_begun:
            await stage.cell.begin({})
        yield stage
    finally:
        await stage.cell.close()


def kinds(types: Sequence[str], shapes_per_type: int) -> list[Kind]:
    """Shapes that differ in their need of processor time, from 0.1 cores up in steps of as much; types in turn."""
    return [Kind(name, {"cpu_milli": 100 * step}) for step in range(1, shapes_per_type + 1) for name in types]
