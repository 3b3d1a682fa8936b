"""The cell at a glance: what `taskyard status` shows, read from the cell and Kafka."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import Level
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.cell.view import RedisView
from taskyard.dispatcher.core.shapes import parse_shape, why_none
from taskyard.dispatcher.core.snapshot import InstanceView, ShapeView
from taskyard.dispatcher.kafka import topics as kafka
from taskyard.dispatcher.lane import PARKED_PERMILLE
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.errors import ConfigError, DependencyError
from taskyard.schemas.topics import topics

_LAG_TIMEOUT_S = 5.0


class Reading(NamedTuple):
    """The two ways to read a cell; closed by `reading`."""

    connection: Connection
    view: RedisView

    async def generation(self) -> str:
        """The cell's generation; empty if no dispatcher has opened it on this server."""
        found = await self.connection.command("HGET", f"{self.connection.root}:meta", "generation")
        return found.decode() if found else ""

    async def is_begun(self) -> bool:
        """Whether the cell takes batches. One that does not is new, or has lost its history."""
        return bool(await self.connection.command("HEXISTS", f"{self.connection.root}:applied", "begun"))

    async def bounds(self) -> tuple[int, int, int]:
        """Bounds of the park (tasks, bytes) and the outbox, as the last dispatcher has set them; 0: none has yet."""
        names = ("parked_limit", "parked_bytes_limit", "outbox_limit")
        tasks, size_bytes, outbox = await self.connection.command("HMGET", f"{self.connection.root}:meta", *names)
        return int(tasks or 0), int(size_bytes or 0), int(outbox or 0)


def paused(level: Level, bounds: tuple[int, int, int]) -> tuple[str, ...]:
    """The priorities whose intake waits: the park is filled to their share of its bounds, or the outbox is full."""
    tasks, size_bytes, outbox = bounds
    if not outbox:
        return ()
    filled = max(level.parked / tasks, level.parked_bytes / size_bytes) * 1000
    return tuple(p for p, share in PARKED_PERMILLE.items() if filled >= share or level.outbox >= outbox)


class Overview(NamedTuple):
    """A cell at one moment, more or less. lag: records by priority, None if Kafka did not answer; why says so."""

    cell: str
    generation: str
    level: Level
    instances: list[InstanceView]
    parked: list[ShapeView]
    lag: dict[str, int] | None
    lag_fault: str
    paused: tuple[str, ...]
    is_begun: bool

    @property
    def slots(self) -> tuple[int, int]:
        """Used and all slots of the fleet."""
        total = sum(instance.capacity["slots"] for instance in self.instances)
        return total - sum(instance.free["slots"] for instance in self.instances), total

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        used, total = self.slots
        return {
            "cell": self.cell,
            "now_ms": self.level.now_ms,
            "generation": self.generation,
            "begun": self.is_begun,
            "instances": dict(Counter(instance.state for instance in self.instances)),
            "slots": {"used": used, "capacity": total},
            "parked": self.level.parked,
            "parked_bytes": self.level.parked_bytes,
            "later": self.level.later,
            "outbox": self.level.outbox,
            "lag": self.lag,
            "paused": list(self.paused),
            "fleet": [instance_json(instance) for instance in self.instances],
            "shapes": [{**shape._asdict(), "reason": why_parked(shape, self.instances)} for shape in self.parked],
        }


@contextlib.asynccontextmanager
async def reading(settings: Settings) -> AsyncGenerator[Reading]:
    """Read the cell; nothing is written."""
    connection = Connection(settings.redis, settings.cell)
    try:
        yield Reading(connection, RedisView(connection))
    finally:
        await connection.close()


async def overview(settings: Settings, at: Reading) -> Overview:
    """Read all of it. Kafka that does not answer costs only the lag; raises DependencyError if Redis does not."""
    (lag, lag_fault), generation, bounds, level, instances, parked = await asyncio.gather(
        _lag(settings, at), at.generation(), at.bounds(), at.view.level(), at.view.instances(), at.view.shapes()
    )
    why, is_begun = paused(level, bounds), await at.is_begun()
    return Overview(settings.cell, generation, level, instances, parked, lag, lag_fault, why, is_begun)


def used(instance: InstanceView) -> dict[str, int]:
    """Units that tasks hold on an instance, by resource."""
    return {name: units - instance.free.get(name, 0) for name, units in instance.capacity.items()}


def instance_json(instance: InstanceView) -> dict[str, Any]:
    """An instance as `--json` prints it; without its epoch, which is its owner's."""
    found = instance._asdict()
    del found["epoch"], found["tag"]
    return {**found, "reported": instance.reported._asdict(), "used": used(instance)}


def why_parked(shape: ShapeView, instances: list[InstanceView]) -> str:
    """Say why tasks of the shape wait."""
    return why_none(parse_shape(shape.shape), [(i.types, i.capacity, i.labels) for i in instances])


async def _lag(settings: Settings, at: Reading) -> tuple[dict[str, int] | None, str]:
    names = topics(settings.prefix).tasks
    applied = RedisCell(at.connection).applied
    try:
        found = await asyncio.wait_for(kafka.lag(settings.kafka, list(names.values()), applied), _LAG_TIMEOUT_S)
    except TimeoutError:
        return None, f"Kafka at {settings.kafka} did not answer within {_LAG_TIMEOUT_S:.0f} s"
    except DependencyError as error:
        return None, str(error)
    return {priority: found[topic] for priority, topic in names.items()}, ""


def never_opened(settings: Settings) -> ConfigError:
    """The error for a cell that no dispatcher has opened on this server: most often a name or an address is wrong."""
    return ConfigError(
        f"no dispatcher has opened the cell {settings.cell} on this server: "
        "are --cell and --redis right, and has a dispatcher been started?"
    )
