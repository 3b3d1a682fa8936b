"""The connection to the cell's server: cancelled and cut calls leave it as it was."""

import asyncio
import random

import pytest

from taskyard.dispatcher.cell.connection import Connection
from taskyard.schemas.errors import DependencyError


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


async def test_a_library_that_the_server_lost_is_loaded_again(redis_url: str, cell: str) -> None:
    connection = Connection(redis_url, cell)
    await connection.load()
    await connection.command("FUNCTION", "DELETE", "taskyard_v1")

    assert await connection.call("due", 10) == 0

    await connection.close()
