"""What the library leaves behind in Redis: nothing of a task that has ended but the memory of its id."""

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig, Evicting
from tests.contract.rig import Rig, redis_rig

FOR_GOOD = {"meta", "applied", "out", "done0", "front"}


async def suffixes(connection: Connection) -> set[str]:
    """List the cell's keys without their root."""
    root = f"{connection.root}:"
    return {key.decode().removeprefix(root) for key in await connection.command("KEYS", f"{root}*")}


async def live_a_life(rig: Rig) -> None:
    """Lead tasks through every place: queue, park, hold, retry, recall, dead letter, success."""
    far = 2**52
    await rig.cell.open(CellConfig(headroom_permille=0))
    await rig.cell.begin({})
    await rig.register("i1", "a", "b", slots=1)
    await rig.apply(*[rig.entry(f"t{n}", deadline_ms=far) for n in range(3)], to=["i1"])
    await rig.apply(rig.entry("other", "n|b|slots=1|", deadline_ms=far))
    await rig.cell.hold("n|b|slots=1|", "i1")
    await rig.finish("i1", await rig.ending("t0", "retry", b"busy", delay_ms=1))
    for name in ("other", "t1", "t2"):
        await rig.finish("i1", await rig.ending(name, "gave_up" if name == "t1" else "succeeded"))
    await rig.let_pass(2)
    await rig.cell.due(limit=9)
    await rig.finish("i1", await rig.ending("t0"))
    assert await rig.cell.leave("i1", rig.epochs["i1"]) == Evicting(0)
    await rig.check()


async def test_nothing_is_left_of_tasks_that_have_ended_and_instances_that_have_left(redis_url: str, cell: str) -> None:
    connection = Connection(redis_url, cell)

    await live_a_life(redis_rig(connection))

    assert await suffixes(connection) == FOR_GOOD
    await connection.close()
