"""An audit of a cell that is large, or moves meanwhile, sees what is wrong and nothing else."""

import asyncio
import os
import random
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from taskyard.dispatcher.cell.audit import RedisAudit
from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig, Ending, Registration
from taskyard.dispatcher.cell.twin import TwinCell
from taskyard.dispatcher.inspection import Found, Inspection
from taskyard.schemas.entry import decode_entry
from tests.contract.damage import Keys
from tests.contract.rig import Rig, redis_rig
from tests.contract.test_same_commands import SameCommands

LONG = 1_000
"""Tasks on one queue: more than one call reads."""
MANY = 2_500
"""Places: more than one call counts."""
OLD_MS = 1_700_000_000_000
ONE = (1).to_bytes(4, "little")
"""Of the slots, in a packed vector; one less or more than is free."""


@pytest.fixture
async def rig(connection: Connection) -> Rig:
    """An open cell without headroom."""
    rig = redis_rig(connection)
    await rig.cell.open(
        CellConfig(headroom_permille=0, retry_base_ms=0, parked_age_ms=2**50, unknown_type_age_ms=2**50)
    )
    await rig.cell.begin({})
    return rig


async def audited(connection: Connection, *, is_mending: bool = False, instance: str | None = None) -> list[Found]:
    """Do one whole round."""
    inspection = Inspection(RedisAudit(connection), is_mending=is_mending, instance=instance)
    while await inspection.step():
        pass
    return inspection.found


def seen(found: list[Found]) -> list[tuple[str, bool]]:
    """Kinds, and whether each was mended."""
    return sorted((row.finding.kind, row.is_mended) for row in found)


async def fill(rig: Rig, prefix: str, count: int, shape: str = "n|a|slots=1|") -> None:
    """Apply many tasks that arrived long ago."""
    for first in range(0, count, 500):
        names = [f"{prefix}{n}" for n in range(first, min(first + 500, count))]
        await rig.apply(*[rig.entry(name, shape, arrived_ms=OLD_MS) for name in names])


async def test_a_queue_longer_than_a_page_is_added_up_whole(rig: Rig, connection: Connection) -> None:
    await rig.register("i1", slots=LONG + 10)
    await fill(rig, "t", LONG)
    assert await audited(connection) == []
    packed: bytes = await Keys(connection)("HGET", "free", "i1")

    await Keys(connection)("HSET", "free", "i1", packed[:7] + ONE)

    assert seen(await audited(connection)) == [("used", False)]
    assert seen(await audited(connection, is_mending=True)) == [("used", True)]
    assert await Keys(connection)("HGET", "free", "i1") == packed


async def test_what_has_moved_since_it_was_found_is_not_mended(rig: Rig, connection: Connection) -> None:
    await rig.register("i1", slots=4)
    await rig.apply(rig.entry("t1"), rig.entry("t2"), to=["i1"])
    packed: bytes = await Keys(connection)("HGET", "free", "i1")
    await Keys(connection)("HSET", "free", "i1", packed[:7] + ONE)
    [found] = await audited(connection)

    await rig.finish("i1", await rig.ending("t1"))

    assert await RedisAudit(connection).mend(found.finding) == ()
    assert await rig.free("i1") == {"slots": 2}
    assert seen(await audited(connection, is_mending=True)) == [("used", True)]


async def test_only_one_instance_is_looked_at_if_one_is_named(rig: Rig, connection: Connection) -> None:
    for name in ("i1", "i2"):
        await rig.register(name, slots=3)
        packed: bytes = await Keys(connection)("HGET", "free", name)
        await Keys(connection)("HSET", "free", name, packed[:7] + ONE)

    [found] = await audited(connection, instance="i2")

    assert (found.finding.kind, found.finding.subject) == ("used", "i2")


async def test_many_unfinished_tasks_are_counted_in_pages_and_twice(rig: Rig, connection: Connection) -> None:
    await fill(rig, "t", MANY)
    assert await audited(connection) == []
    [bucket] = await Keys(connection)("HKEYS", "unfinished")

    await Keys(connection)("HINCRBY", "unfinished", bucket, -1)

    assert seen(await audited(connection)) == [("unfinished", False)]
    assert seen(await audited(connection, is_mending=True)) == [("unfinished", True)]
    assert await Keys(connection)("HGET", "unfinished", bucket) == str(MANY).encode()


async def test_many_damaged_entries_are_all_mended(rig: Rig, connection: Connection) -> None:
    await rig.register("i1", slots=LONG)
    await fill(rig, "t", LONG)
    await fill(rig, "p", 300)
    await Keys(connection)("DEL", "where")

    found = await audited(connection, is_mending=True)

    assert seen(found) == [("unplaced", True)] * (LONG + 300)
    assert await audited(connection) == []
    await rig.check()


class Load:
    """Clients of a cell that never rest."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._chance = random.Random(7)
        self.is_over = False
        self.calls = 0

    async def workers(self, names: list[str]) -> None:
        """Finish in every way what is on the queues."""
        while not self.is_over:
            name = self._chance.choice(names)
            rows = await self._rig.view.queue(name, count=20)
            endings: list[Ending] = []
            for row in self._chance.sample(rows, min(len(rows), 5)):
                entry = decode_entry(row.entry)
                how = self._chance.choice(["succeeded", "retry", "retry", "unstarted"])
                delay_ms = self._chance.choice([0, 5])
                endings.append(Ending(entry.id, row.stream_id, entry.attempt, how, b"", delay_ms))  # pyright: ignore[reportArgumentType]
            await self._rig.cell.finish(name, self._rig.epochs[name], endings)
            self.calls += 1

    async def intake(self) -> None:
        """Apply what comes in, of several shapes."""
        n = 0
        while not self.is_over:
            shapes = [self._chance.choice(["n|a|slots=1|", "n|a|slots=2|", "n|b|slots=1|"]) for _ in range(10)]
            await self._rig.apply(*[self._rig.entry(f"new{n}-{i}", shape) for i, shape in enumerate(shapes)])
            n += 1

    async def fleet(self) -> None:
        """Come and go, close and open, settle and hold."""
        n = 0
        while not self.is_over:
            name = f"guest{n % 3}"
            await self._rig.register(name, "a", "b", slots=3)
            for reason in ("cordoned", ""):
                await self._rig.cell.cordon(name, reason)
            await self._rig.cell.hold("n|a|slots=2|", name)
            await self._rig.cell.due(limit=10)
            await self._rig.cell.settle([(name, "n|a|slots=1|")], limit=10)
            await self._rig.cell.leave(name, self._rig.epochs[name])
            n += 1


async def test_nothing_is_seen_in_a_cell_that_only_moves(rig: Rig, connection: Connection) -> None:
    names = ["i1", "i2", "large"]
    for name in names:
        await rig.register(name, "a", "b", slots=LONG if name == "large" else 20)
    await fill(rig, "old", MANY)
    load = Load(rig)

    async with asyncio.TaskGroup() as group:
        for doing in (load.workers(names), load.intake(), load.fleet()):
            group.create_task(doing)
        rounds = [await audited(connection, is_mending=mending) for mending in (False, True, False)]
        load.is_over = True

    assert rounds == [[], [], []]
    assert load.calls > 20
    await rig.check()


class Audited(SameCommands):
    """After each command the cell is audited."""

    reached: ClassVar[int] = 0

    def _compare(self) -> None:
        assert self._runner.run(audited(self._connection)) == []
        type(self).reached += 1


def test_nothing_is_seen_in_any_state_that_commands_lead_to(redis_url: str, cell: str) -> None:
    # As in test_same_commands.
    explore = int(os.environ.get("TASKYARD_EXPLORE", "0"))

    class Here(Audited):
        address = redis_url, cell

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=explore or 10,
            stateful_step_count=30,
            derandomize=not explore,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
            phases=(Phase.generate, Phase.shrink) if explore else (Phase.generate,),
        ),
    )
    assert Here.reached > 100


async def test_a_twin_that_is_wrong_is_told_and_not_mended() -> None:
    twin = TwinCell(random.Random(1), lambda: OLD_MS)
    await twin.open(CellConfig())
    await twin.register("i1", "epoch", Registration(("a",), {"slots": 3}, {}))
    assert await inspected(twin) == []

    twin._state.instances["i1"].free["slots"] = 1  # pyright: ignore[reportPrivateUsage]

    assert seen(await inspected(twin)) == [("used", False)]
    twin._state.instances["i1"].headroom = 2  # pyright: ignore[reportPrivateUsage]
    assert seen(await inspected(twin)) == [("used", False), ("vector", False)]


async def inspected(twin: TwinCell) -> list[Found]:
    """Do one whole round over a twin."""
    inspection = Inspection(twin, is_mending=True)
    while await inspection.step():
        pass
    return inspection.found
