"""What the torn cases have in common: a state of a cell, and in it the call that is to fail.

A case builds its state and returns the call, with the reply by which one sees that it does what the case is for.
Nothing is left to chance: at most one instance of an open set fits.
"""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig, Place, Running
from tests.contract.faulty import FaultyConnection
from tests.contract.rig import UNENDING_MS, Rig, redis_rig


class Call(NamedTuple):
    """What is to fail. of(reply) is `reply` if nothing does. steps: in how many states it may stop half-way.

    Most calls take effect whole or not at all; the library says which go in steps.
    """

    run: Callable[[], Awaitable[Any]]
    reply: object
    of: Callable[[Any], object] = lambda reply: reply
    steps: int = 0


class FaultyRig(Rig):
    """A rig over the debug build."""

    def __init__(self, connection: FaultyConnection) -> None:
        made = redis_rig(connection)
        super().__init__(made.cell, made.view, made.let_pass)
        self.connection = connection


Case = Callable[[FaultyRig], Awaitable[Call]]
CONFIG = CellConfig(headroom_permille=0, retry_base_ms=0, retry_cap_ms=0, parked_age_ms=UNENDING_MS)
BIG, OF_B = "n|a|slots=2|", "n|b|slots=1|"
FAR_MS = 2**52


async def fill(rig: Rig, instance: str, *names: str, attempts: int = 3) -> None:
    """Put these tasks on an instance, which must have room for them."""
    entries = [rig.entry(name, attempts=attempts) for name in names]
    assert await rig.apply(*entries, to=[instance]) == "1" * len(names)


async def lapse(rig: Rig, instance: str) -> None:
    """Return once the lease of an instance has run out."""

    async def has_lapsed() -> bool:
        [view] = [view for view in await rig.view.instances() if view.id == instance]
        return view.lease_until_ms < (await rig.view.level()).now_ms

    await rig.until(has_lapsed, "the lease runs out")


async def evicted_last(connection: Connection, at_ms: int) -> None:
    """Say when a dispatcher last called evict. After a time away leases are spared, also if only the test was slow."""
    await connection.command("HSET", f"{connection.root}:meta", "evict_ms", at_ms)


async def overfill(rig: Rig, instance: str, slots: int, *names: str) -> None:
    """Register an instance, fill it, and leave the rest of the tasks parked."""
    await rig.register(instance, slots=slots)
    results = await rig.apply(*[rig.entry(name, deadline_ms=FAR_MS) for name in names], to=[instance])
    assert results == ("1" * slots).ljust(len(names), "p"), results


async def running(rig: Rig, task_id: str) -> Running:
    """What the worker that has the task would say of it."""
    place: Place = await rig.find(task_id)
    deliveries = await rig.view.queue(place.instance, count=100)
    entry = next(delivery.entry for delivery in deliveries if delivery.stream_id == place.at)
    return Running(task_id, place.at, place.attempt, entry)
