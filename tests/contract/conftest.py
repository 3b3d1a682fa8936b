"""Every contract test runs over both implementations of the cell, and leaves a state in which the invariants hold."""

from collections.abc import AsyncGenerator

import pytest

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig
from tests.contract.rig import Rig, redis_rig, twin_rig

CONFIG = CellConfig(headroom_permille=0, retry_base_ms=20, retry_cap_ms=40)


@pytest.fixture
async def connection(redis_url: str, cell: str) -> AsyncGenerator[Connection]:
    """A connection to the cell of a test that is about the real one only."""
    opened = Connection(redis_url, cell)
    yield opened
    await opened.close()


@pytest.fixture(params=["redis", "twin"])
async def rig(request: pytest.FixtureRequest) -> AsyncGenerator[Rig]:
    """An open cell without headroom, of each implementation in turn."""
    if request.param == "twin":
        rig = twin_rig()
        await rig.cell.open(CONFIG)
        await rig.cell.begin({})
        yield rig
        await rig.check()
        return
    connection = Connection(request.getfixturevalue("redis_url"), request.getfixturevalue("cell"))
    rig = redis_rig(connection)
    await rig.cell.open(CONFIG)
    await rig.cell.begin({})
    yield rig
    await rig.check()
    await connection.close()
