"""The front of the heads, which the server keeps in its memory between calls: a pull takes the tasks in their order
whatever has become of it. Other contract tests cover what a pull takes; here the front is lost, or is not all there is.
"""

import random

import pytest

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig
from taskyard.schemas.errors import DependencyError
from tests.contract.faulty import FaultyConnection
from tests.contract.rig import Rig, redis_rig

BOTH = ["n|a|slots=1|", "n|a|slots=1,gpu=1|"]
FITTING = [f"n|a|slots=1,gpu={n}|" for n in range(120)]
"""More shapes than are read at once."""
OTHERS = [f"n|a|slots=1|zone={n}" for n in range(10)]
"""Fewer than a pull looks at."""


async def opened(connection: Connection) -> Rig:
    rig = redis_rig(connection)
    await rig.cell.open(CellConfig(headroom_permille=0))
    await rig.cell.begin({})
    return rig


async def forget(connection: Connection) -> None:
    """Let the server find that others have changed what is parked."""
    await connection.command("DEL", f"{connection.root}:front")


async def pulled(rig: Rig) -> str:
    """End the task that runs on `i1`; return the one that came in its place."""
    [running] = await rig.queued("i1")
    await rig.finish("i1", await rig.ending(running))
    [came] = await rig.queued("i1")
    return came


async def begin(rig: Rig, *parked: tuple[str, str, float]) -> None:
    """Fill `i1`, which has one slot, and park these tasks: id, shape, key."""
    await rig.register("i1", slots=1, gpu=120)
    await rig.apply(rig.entry("first"), to=["i1"])
    for task_id, shape, key in parked:
        await rig.apply(rig.entry(task_id, shape, key=key))


async def test_a_task_that_is_not_its_shapes_first_any_more_waits_for_its_turn(connection: Connection) -> None:
    rig = await opened(connection)
    one, other = BOTH
    await begin(rig, ("t1", one, 1), ("t2", other, 2), ("t3", other, 3), ("t4", one, 4))

    order = [await pulled(rig)]
    await forget(connection)
    assert await connection.command("ZSCORE", f"{connection.root}:heads:a", one) == b"1", "not earlier than it is"
    order += [await pulled(rig) for _ in range(3)]

    assert order == ["t1", "t2", "t3", "t4"]
    await rig.check()


async def test_a_task_that_comes_among_those_known_is_pulled_in_its_turn(connection: Connection) -> None:
    rig = await opened(connection)
    one, other = BOTH
    await begin(rig, *[(f"t{key}", one, key) for key in (1, 2, 5, 7)], ("t4", other, 4), ("t6", other, 6))

    order = [await pulled(rig)]
    await rig.apply(rig.entry("t3", one, key=3))
    order += [await pulled(rig) for _ in range(6)]

    assert order == [f"t{key}" for key in range(1, 8)]
    await rig.check()


async def test_a_task_that_is_dead_by_then_is_not_waited_for(connection: Connection) -> None:
    rig = await opened(connection)
    one, other = BOTH
    await begin(rig, ("t1", one, 1))
    await rig.apply(rig.entry("late", one, key=2, deadline_ms=1, arrived_ms=0))
    for task_id, shape, key in (("t3", other, 3), ("t4", one, 4)):
        await rig.apply(rig.entry(task_id, shape, key=key))

    order = [await pulled(rig)]
    await rig.cell.expire(limit=9)
    order += [await pulled(rig) for _ in range(2)]

    assert order == ["t1", "t3", "t4"]
    await rig.check()


async def test_what_a_failed_call_has_taken_back_is_pulled_in_its_turn(connection: Connection) -> None:
    rig = await opened(connection)
    one, other = BOTH
    await begin(rig, ("t1", one, 1), ("t2", other, 2), ("t3", one, 3), ("t4", other, 4))
    ending = await rig.ending("first")

    await connection.command("SET", f"{connection.root}:done0", "no hash")
    with pytest.raises(DependencyError, match="WRONGTYPE"):
        await rig.finish("i1", ending)
    await connection.command("DEL", f"{connection.root}:done0")

    assert [await pulled(rig) for _ in range(4)] == ["t1", "t2", "t3", "t4"]
    await rig.check()


async def test_what_is_parked_in_data_that_went_back_is_pulled(redis_url: str, cell: str) -> None:
    connection = FaultyConnection(redis_url, cell)
    await connection.load()
    rig = await opened(connection)
    one, other = BOTH
    await begin(rig, ("t1", one, 1), ("t2", other, 2), ("t3", one, 3))
    await connection.keep()
    assert [await pulled(rig) for _ in range(3)] == ["t1", "t2", "t3"]

    await connection.restore()

    assert [await pulled(rig) for _ in range(3)] == ["t1", "t2", "t3"]
    await rig.check()
    await connection.close()


@pytest.mark.parametrize("seed", range(4))
async def test_many_shapes_leave_in_order_while_others_come(connection: Connection, seed: int) -> None:
    rig, chance = await opened(connection), random.Random(seed)
    await begin(rig, *[(f"other-{n}", shape, chance.randrange(50)) for n, shape in enumerate(OTHERS)])
    waiting: dict[str, int] = {}
    for n in range(400):
        if n < 200 or chance.random() < 0.4:
            name, key = f"t{n}", chance.randrange(50)
            await rig.apply(rig.entry(name, chance.choice(FITTING), key=key))
            waiting[name] = key
        if n >= 200 and waiting:
            first = min(waiting.values())
            assert waiting.pop(await pulled(rig)) == first
        if chance.random() < 0.1:
            await forget(connection)
    await rig.check()
