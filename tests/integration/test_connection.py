"""The connection to the cell's server: cancelled and cut calls leave it as it was."""

import asyncio
import random
import socket
from typing import Any

import pytest
import uvloop
from msgspec import msgpack

from taskyard.dispatcher.cell import connection as connection_module
from taskyard.dispatcher.cell.connection import Connection, Library
from taskyard.dispatcher.cell.contract import Registration
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.cell.view import RedisView
from taskyard.dispatcher.core.snapshot import Report
from taskyard.schemas.errors import DependencyError
from tests.integration.yard import until


async def test_cancelled_calls_leave_no_reply_behind_for_the_next_one(redis_url: str, cell: str) -> None:
    connection, chance = Connection(redis_url, cell), random.Random(1)
    for n in range(300):
        call = asyncio.create_task(connection.command("ECHO", f"cancelled {n}"))
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])

        assert await connection.command("ECHO", f"kept {n}") == f"kept {n}".encode()

    await connection.close()


async def test_calls_that_are_cancelled_while_they_connect_leave_no_reply_behind(redis_url: str, cell: str) -> None:
    for turns in range(40):
        connection = Connection(redis_url, cell)
        call = asyncio.create_task(connection.command("ECHO", "cancelled"))
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])

        assert await connection.command("ECHO", f"kept {turns}") == f"kept {turns}".encode()

        await connection.close()


async def test_calls_beyond_the_connections_wait_for_one(redis_url: str, cell: str) -> None:
    connection = Connection(redis_url, cell)

    replies = await asyncio.gather(*[connection.command("ECHO", str(n)) for n in range(100)])

    assert replies == [str(n).encode() for n in range(100)]
    await connection.close()


async def test_a_cancellation_that_comes_with_the_reply_is_not_swallowed(redis_url: str, cell: str) -> None:
    connection = Connection(redis_url, cell)
    await connection.command("PING")
    survived: list[int] = []
    for turns in range(12):
        call = asyncio.create_task(connection.command("PING"))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not call.done() and call.cancel():
            await asyncio.wait([call])
            if not call.cancelled():
                survived.append(turns)

    assert survived == []
    await connection.close()


async def test_a_server_that_is_not_there_is_a_dependency_error_that_names_the_call(cell: str) -> None:
    connection = Connection("redis://127.0.0.1:1/0", cell)

    with pytest.raises(DependencyError, match="Redis did not answer ty1_apply"):
        await connection.call("apply")

    await connection.close()


async def test_a_server_that_keeps_silent_is_a_dependency_error_that_says_so(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_CALL_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = Connection(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", cell)

        with pytest.raises(DependencyError, match="Redis did not answer PING: TimeoutError; is it up"):
            await connection.command("PING")

        await connection.close()


async def test_a_library_that_is_there_is_not_written_again(redis_url: str, cell: str) -> None:
    connection = Connection(redis_url, cell)
    await connection.load()
    await connection.command("CONFIG", "RESETSTAT")

    await connection.load()

    stats = (await connection.command("INFO", "commandstats")).decode()
    assert "cmdstat_function|list" in stats
    assert "cmdstat_function|load" not in stats
    await connection.close()


async def test_a_worker_of_another_make_cannot_store_a_report_or_an_offer_that_stops_the_dispatchers(
    redis_url: str, cell: str
) -> None:
    connection = Connection(redis_url, cell)
    live, view = RedisCell(connection), RedisView(connection)
    await live.register("i", "abcdefgh", Registration(("a",), {"slots": 1}, {}, 1))
    none: dict[str, str] = {}
    offers: list[object] = [
        7,
        ("abcdefgh", "a", {"slots": 1}, none, 1, none),
        ("abcdefgh", ["a"], {"slots": 1}, None, 1, none),
        ("abcdefgh", ["a"], {"slots": 1}, none, 1, {"gpus": 8}),
    ]

    for report in (b"", b"\xc4\x01a", msgpack.encode(7), msgpack.encode([7])):
        with pytest.raises(DependencyError, match="Redis refused ty1_beat"):
            await connection.call("beat", "i", "abcdefgh", report)
    for offer in map(msgpack.encode, offers):
        with pytest.raises(DependencyError, match="Redis refused ty1_register"):
            await connection.call("register", "other", offer)
    await connection.call("beat", "i", "abcdefgh", msgpack.encode(["0-0", "much"]))

    (seen,) = await view.instances()
    assert seen.reported == Report("0-0")
    assert await live.recall(["i"], min_age_ms=1, limit=9) == 0
    await until(lambda: live.evict(limit=9), what="its lease has run out, and it goes")
    assert await view.vectors() == {}
    await connection.close()


def test_a_call_on_a_connection_that_was_closed_a_moment_ago_is_no_crash_under_uvloop(
    redis_url: str, cell: str
) -> None:
    async def call_after_the_end() -> None:
        connection = Connection(redis_url, cell)
        maker: Any = connection._pool._maker  # pyright: ignore[reportPrivateUsage]
        ensure_connection = maker.ensure_connection

        async def ensure_and_lose(found: Any) -> None:
            await ensure_connection(found)
            found._writer.transport.abort()  # the network fails just now
            await asyncio.sleep(0)  # the loop closes it in its next turn
            await asyncio.sleep(0)

        maker.ensure_connection = ensure_and_lose
        with pytest.raises(DependencyError):
            await connection.command("PING")

        maker.ensure_connection = ensure_connection
        assert await connection.command("PING") == b"PONG"
        await connection.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(call_after_the_end())


async def test_of_two_builds_of_the_library_the_newer_one_stays(redis_url: str, cell: str) -> None:
    text = "redis.register_function('tyx_who', function() return '%s' end)"
    builds = [Library("taskyard_builds", "tyx", n, text % f"build {n}") for n in (1, 2)]
    old, new = (Connection(redis_url, cell, functions=build) for build in builds)

    await old.load()
    assert await old.call("who") == b"build 1"
    await new.load()
    await old.load()  # as its tick does from time to time

    assert await old.call("who") == await new.call("who") == b"build 2"
    assert (await old.loaded()) == (2, builds[1].text)
    await new.command("FUNCTION", "DELETE", "taskyard_builds")
    for connection in (old, new):
        await connection.close()


async def test_a_library_that_the_server_lost_is_loaded_again(redis_url: str, cell: str) -> None:
    connection = Connection(redis_url, cell)
    await connection.load()
    await connection.command("FUNCTION", "DELETE", "taskyard_v1")

    assert await connection.call("due", 10) == 0

    await connection.close()
