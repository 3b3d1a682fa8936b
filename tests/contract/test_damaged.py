"""A cell with a part missing still works: one loss must not become another. A twin cannot be damaged."""

import pytest

from taskyard.dispatcher.cell.audit import RedisAudit
from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig
from taskyard.dispatcher.inspection import Inspection
from tests.contract.rig import Rig, redis_rig


@pytest.fixture
async def rig(connection: Connection) -> Rig:
    rig = redis_rig(connection)
    await rig.cell.open(CellConfig(headroom_permille=0))
    await rig.cell.begin({})
    return rig


async def test_the_end_of_a_task_whose_entry_was_lost_gives_back_no_more_than_was_taken(
    rig: Rig, connection: Connection
) -> None:
    await rig.register("i1", slots=2)
    await rig.apply(rig.entry("lost"), rig.entry("there"), to=["i1"])
    ending = await rig.ending("lost")
    await connection.command("XDEL", f"{connection.root}:q:i1", ending.stream_id)
    auditor = Inspection(RedisAudit(connection), is_mending=True)
    while await auditor.step():
        pass
    assert {found.finding.kind: found.is_mended for found in auditor.found} == {"used": True, "lost": False}

    assert (await rig.finish("i1", ending)).accepted == (True,)

    assert await rig.free("i1") == {"slots": 1}
    assert (await rig.view.audit("i1")).used == {"slots": 0}


async def test_a_lease_of_nobody_does_not_stop_evict(rig: Rig, connection: Connection) -> None:
    await connection.command("ZADD", f"{connection.root}:lease", 1, "nobody")

    assert await rig.cell.evict(limit=9) == ("nobody", 0)
    assert await rig.cell.evict(limit=9) is None


async def test_a_member_of_an_open_set_that_is_not_registered_gets_no_task(rig: Rig, connection: Connection) -> None:
    await rig.register("i1", slots=1)
    await connection.command("HDEL", f"{connection.root}:inst", "i1")

    assert await rig.apply(rig.entry("t1")) == "p"
