"""What the fuzzer has found in the function library."""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig, Registration
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.cell.view import RedisView
from taskyard.schemas.errors import DependencyError
from tests.contract.rig import pass_real_time

_pack = msgspec.msgpack.encode


class _Opened:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.cell = RedisCell(connection)
        self.view = RedisView(connection)

    async def level_of_outbox(self) -> int:
        return (await self.view.level()).outbox

    async def now_ms(self) -> int:
        return (await self.view.level()).now_ms


@pytest.fixture
async def opened(redis_url: str, cell: str) -> AsyncGenerator[_Opened]:
    connection = Connection(redis_url, cell)
    made = _Opened(connection)
    await made.cell.open(CellConfig())
    await made.cell.begin({})
    await made.cell.register("i", "abcdefgh", Registration(("a",), {"slots": 2}, {}))
    yield made
    await connection.close()


async def test_a_finish_with_an_ending_that_is_none_changes_nothing(opened: _Opened) -> None:
    endings = _pack([("one", "1-1", 1, "succeeded", 0), ("two", "1-1", 1, "succeeded", 0)])

    with pytest.raises(DependencyError):
        await opened.connection.call("finish", "i", "abcdefgh", endings, "the detail of the first alone")

    assert await opened.level_of_outbox() == 0
    assert await opened.view.find("one") is None


async def test_an_instance_whose_id_is_no_text_is_refused_or_can_be_evicted(opened: _Opened) -> None:
    offer: Any = ("abcdefgh", ("a",), {"slots": 1}, {}, 1, {})
    try:
        await opened.connection.call("register", b"i\xff", _pack(offer), 0)
    except DependencyError:
        return  # refused
    await pass_real_time(opened.now_ms, 2)

    evicted = await opened.cell.evict(limit=10)

    assert evicted is not None


async def test_a_success_whose_attempt_is_no_number_is_refused_or_can_be_found(opened: _Opened) -> None:
    endings = _pack([("one", "1-1", "|1|", "succeeded", 0)])
    try:
        await opened.connection.call("finish", "i", "abcdefgh", endings, "outcome")
    except DependencyError:
        return  # refused

    found = await opened.view.find("one")

    assert found is None or found.state == "finished"


async def test_a_resource_whose_name_is_no_text_can_be_looked_at(opened: _Opened) -> None:
    # MessagePack's form of text, which need not be any: abcdefgh, [a], {slots: 1, \xff: 2}, {}, 60_000, {}.
    offer = b"\x96\xa8abcdefgh\x91\xa1a\x82\xa5slots\x01\xa1\xff\x02\x80\xcd\xea\x60\x80"

    await opened.connection.call("register", "odd", offer, 0)

    assert not any((await opened.view.audit("odd")).used.values())
