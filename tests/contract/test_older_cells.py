"""What an older build of the library has left in a cell is brought up to date by `open` (see test_headroom too)."""

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig
from tests.contract.rig import redis_rig


async def test_critical_heads_that_an_older_build_left_with_the_others_are_found_again(connection: Connection) -> None:
    rig, critical = redis_rig(connection), "c|a|slots=1|"
    await rig.cell.open(CellConfig(headroom_permille=500))
    await rig.cell.begin({})
    await rig.register("i", slots=2)
    await rig.apply(*[rig.entry(name, critical, key=n) for n, name in enumerate(("t1", "t2", "first"))], to=["i"])
    await connection.command("ZADD", f"{connection.root}:heads:a", 2, critical)
    await connection.command("SADD", f"{connection.root}:waiting", "a")
    await connection.command("DEL", f"{connection.root}:heads:c|a")
    await connection.command("SREM", f"{connection.root}:waiting", "c|a")
    await connection.command("HDEL", f"{connection.root}:meta", "by_lane")

    await rig.cell.open(CellConfig(headroom_permille=500))

    assert (await rig.finish("i", await rig.ending("t1"))).pulled == 1
    assert await rig.queued("i") == ["t2", "first"]
    assert await connection.command("EXISTS", f"{connection.root}:heads:a", f"{connection.root}:waiting") == 0
