"""Past `maxmemory` the cell takes nothing more in, and everything that frees memory or decides on running work goes on.

The server is told a limit below what it has: it then refuses every function without the flag `allow-oom`. The library
is there already, as in a cell that has filled up.
"""

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from taskyard.compose.valkey import Valkey
from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import (
    Applied,
    Beaten,
    Evicting,
    Registered,
    Registration,
    Report,
    Resynced,
    Running,
)
from taskyard.schemas.errors import DependencyError
from tests.contract.conftest import CONFIG
from tests.contract.rig import PARTITION, SOON_MS, UNENDING_MS, Rig, redis_rig
from tests.contract.snapshot import difference, snapshot
from tests.contract.torn_cases import BIG, FAR_MS, evicted_last, fill, lapse

PAYLOAD_BYTES = 20_000
REFUSAL = "not allowed when used memory"


@pytest.fixture(scope="module")
def own_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A Valkey of this module's own, whose memory it may limit."""
    server = Valkey(Path(tmp_path_factory.mktemp("valkey")))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
async def connection(own_url: str) -> AsyncGenerator[Connection]:
    """An empty server without a limit."""
    connection = Connection(own_url, "memory")
    await connection.command("CONFIG", "SET", "maxmemory", 0, "maxmemory-policy", "noeviction")
    await connection.command("FLUSHALL")
    yield connection
    await connection.close()


@pytest.fixture
async def rig(connection: Connection) -> AsyncGenerator[Rig]:
    """An open cell on it."""
    rig = redis_rig(connection)
    await rig.cell.open(CONFIG)
    await rig.cell.begin({})
    yield rig
    await rig.check()


async def fill_up(connection: Connection) -> None:
    """Set the limit below what is in use, whatever is freed."""
    await connection.command("CONFIG", "SET", "maxmemory", 1)


async def used_bytes(connection: Connection) -> int:
    """Read what the cell's keys take."""
    keys = await connection.command("KEYS", f"{connection.root}:*")
    return sum([await connection.command("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys])


async def server_bytes(connection: Connection) -> int:
    """Read what the server counts against its limit."""
    info: bytes = await connection.command("INFO", "memory")
    return int(next(line[12:] for line in info.split(b"\r\n") if line.startswith(b"used_memory:")))


def large(rig: Rig, *names: str, shape: str = "n|a|slots=1|") -> list[bytes]:
    """Make tasks with a payload that one can see in the server's memory."""
    return [rig.entry(name, shape) + b" " * PAYLOAD_BYTES for name in names]


async def test_a_batch_is_refused_and_has_changed_nothing(connection: Connection, rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await fill(rig, "i1", "t1")
    batch = rig.batch([rig.entry("t2"), rig.entry("t3")], refused=[b"poison"])
    before = await snapshot(rig)
    await fill_up(connection)

    with pytest.raises(DependencyError, match=REFUSAL):
        await rig.cell.apply(batch)

    assert difference(before, await snapshot(rig)) == {}
    assert await rig.cell.applied([PARTITION]) == {PARTITION: 1}


async def test_endings_count_and_free_memory(connection: Connection, rig: Rig) -> None:
    await rig.register("i1", slots=4)
    names = ["ok", "gives-up", "again", "unstarted"]
    await rig.apply(*large(rig, *names, "waits"), to=["i1"])
    endings = [await rig.ending(name) for name in names]
    kinds = ("succeeded", "gave_up", "retry", "unstarted")
    said = [ending._replace(how=how) for ending, how in zip(endings, kinds, strict=True)]
    await fill_up(connection)
    before = await used_bytes(connection)

    finished = await rig.finish("i1", *said)

    assert finished.accepted == (True,) * 4
    await rig.finish("i1", *[await rig.ending(name) for name in ("again", "unstarted", "waits")])
    assert await rig.cell.trim([outgoing.stream_id for outgoing in await rig.cell.outbox(count=9)]) == 5
    assert before - await used_bytes(connection) > 4 * PAYLOAD_BYTES


async def test_instances_beat_close_open_and_leave(connection: Connection, rig: Rig) -> None:
    await rig.register("i1", slots=2)
    await fill(rig, "i1", "t1")
    await fill_up(connection)

    beaten = await rig.cell.beat("i1", rig.epochs["i1"], Report((await rig.find("t1")).at))

    assert isinstance(beaten, Beaten)
    assert await rig.cell.cordon("i1", "maintenance")
    assert await rig.cell.cordon("i1", "")
    assert await rig.cell.close_instance("i1", rig.epochs["i1"], "draining")
    assert await rig.cell.leave("i1", rig.epochs["i1"]) == Evicting(0)
    assert await rig.parked() == ["t1"]


async def test_an_instance_whose_lease_ran_out_is_evicted(connection: Connection, rig: Rig) -> None:
    await evicted_last(connection, FAR_MS)
    await rig.register("i1", slots=2, lease_ms=0)
    await fill(rig, "i1", "t1", "t2")
    await lapse(rig, "i1")
    await fill_up(connection)

    assert await rig.cell.evict(limit=1) == ("i1", 1)
    assert await rig.cell.evict(limit=1) == ("i1", 0)

    assert await rig.parked() == ["t1", "t2"]


async def test_what_is_not_read_is_recalled(connection: Connection, rig: Rig) -> None:
    await rig.register("i1", slots=2)
    await fill(rig, "i1", "t1", "t2")
    await rig.let_pass(0)
    await rig.cell.beat("i1", rig.epochs["i1"], Report("0-0"))
    await rig.register("i2", slots=1)
    await fill_up(connection)

    assert await rig.cell.recall(["i1"], min_age_ms=0, limit=9) == 2

    assert (await rig.queued("i2"), await rig.parked()) == (["t1"], ["t2"])


async def test_parked_tasks_are_settled_held_for_and_expired(connection: Connection, rig: Rig) -> None:
    await rig.park_beside_a_free_slot("i1", "waits", key=5)
    await rig.register("i2", "b", slots=2)
    await rig.apply(rig.entry("b1", "n|b|slots=1|"), to=["i2"])
    big = "n|b|slots=2|"
    await rig.apply(rig.entry("b2", big), rig.entry("late", BIG, deadline_ms=await rig.soon()))
    await rig.let_pass(SOON_MS)
    await fill_up(connection)

    assert await rig.cell.settle([("i1", "n|a|slots=1|")], limit=9) == 1
    assert await rig.cell.hold(big, "i2")
    assert await rig.cell.expire(limit=9) == 1

    assert (await rig.queued("i1"), await rig.parked(BIG)) == (["filler", "waits"], [])


async def test_retries_come_when_they_are_due(connection: Connection, rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await fill(rig, "i1", "t1")
    await fill_up(connection)
    await rig.finish("i1", await rig.ending("t1", "retry", b"busy", delay_ms=1))
    await rig.let_pass(2)

    assert await rig.cell.due(limit=9) == 1

    assert await rig.queued("i1") == ["t1"]


async def test_dispatchers_come_and_share_their_duties(connection: Connection, own_url: str, rig: Rig) -> None:
    await fill_up(connection)
    other = Connection(own_url, "memory")

    opening = await redis_rig(other).cell.open(CONFIG._replace(parked_limit=7))

    assert opening.is_begun
    assert await rig.cell.lease("tick", "d1", ttl_ms=UNENDING_MS)
    assert await rig.cell.lease("tick", "d1", ttl_ms=0) is False
    await other.close()


async def test_workers_that_start_anew_are_registered_and_keep_what_they_run(connection: Connection, rig: Rig) -> None:
    """They are those who free memory: shut out, they would have to stop their tasks, and the cell could not recover."""
    await rig.register("i1", slots=2)
    await fill(rig, "i1", "t1")
    place = await rig.find("t1")
    running = Running("t1", place.at, 1, (await rig.view.queue("i1", count=1))[0].entry)
    lost = Running("lost", "5-5", 1, rig.entry("lost"))
    await fill_up(connection)

    offer = Registration(("a",), {"slots": 3}, {})
    registered = await rig.cell.register("i1", rig.epochs["i1"], offer)
    resynced = await rig.cell.resync("i1", rig.epochs["i1"], [running, lost])
    fresh = await rig.cell.register("i2", "0002-i2", offer, is_resuming=True)

    assert isinstance(registered, Registered)
    assert isinstance(fresh, Registered)
    assert isinstance(resynced, Resynced)
    assert [bool(stream_id) for stream_id in resynced.stream_ids] == [True, True]
    assert await rig.queued("i1") == ["t1", "lost"]


async def test_batches_go_on_once_memory_is_freed_and_nothing_is_lost_or_doubled(
    connection: Connection, rig: Rig
) -> None:
    await rig.register("i1", slots=100)
    names = [f"t{n}" for n in range(100)]
    await rig.apply(*large(rig, *names), to=["i1"])
    limit = await server_bytes(connection) - 50 * PAYLOAD_BYTES
    await connection.command("CONFIG", "SET", "maxmemory", limit)
    batch = rig.batch([rig.entry("next")], ["i1"])
    with pytest.raises(DependencyError, match=REFUSAL):
        await rig.cell.apply(batch)

    refused, applied = 0, None
    for name in names:
        await rig.finish("i1", await rig.ending(name))
        try:
            applied = await rig.cell.apply(batch)
            break
        except DependencyError:
            refused += 1

    assert isinstance(applied, Applied)
    assert applied.results == "1"
    assert 40 < refused < 100
    assert await rig.cell.applied([PARTITION]) == {PARTITION: 101}
    left = names[refused + 1 :]
    assert await rig.queued("i1") == [*left, "next"]
    outcomes = await rig.cell.outbox(count=1000)
    assert [outgoing.kind for outgoing in outcomes] == ["outcome"] * (refused + 1)
