"""A cell without a history, and what is counted of its unfinished tasks."""

from collections.abc import AsyncGenerator

import pytest

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig, Fenced, Full, Range, Recovering, Resynced, Running
from taskyard.dispatcher.cell.recovery import BUCKET_MS
from tests.contract.rig import PARTITION, Rig, redis_rig, twin_rig


@pytest.fixture(params=["redis", "twin"])
async def new(request: pytest.FixtureRequest) -> AsyncGenerator[Rig]:
    """A cell that has not begun."""
    if request.param == "twin":
        yield twin_rig()
        return
    connection = Connection(request.getfixturevalue("redis_url"), request.getfixturevalue("cell"))
    yield redis_rig(connection)
    await connection.close()


async def test_a_cell_that_has_not_begun_takes_no_batch(new: Rig) -> None:
    assert not (await new.cell.open(CellConfig())).is_begun

    assert await new.cell.apply(new.batch([new.entry("t1")])) == Recovering()
    assert await new.cell.applied([PARTITION]) == {}


async def test_it_begins_once_from_the_offsets_that_are_told(new: Rig) -> None:
    await new.cell.open(CellConfig())

    assert await new.cell.begin({PARTITION: 7})
    assert not await new.cell.begin({PARTITION: 9})

    assert (await new.cell.open(CellConfig())).is_begun
    assert await new.cell.apply(new.batch([new.entry("t1")])) == Fenced({PARTITION: 7})
    assert await new.apply(new.entry("t2"), ranges=[Range(PARTITION, 7, 8)]) == "p"


async def test_what_has_ended_is_remembered_before_it_begins_and_then_skipped(new: Rig) -> None:
    await new.cell.open(CellConfig())
    await new.register("i1")
    held = Running("held", "1-1", 1, new.entry("held"))
    await new.cell.resync("i1", new.epochs["i1"], [held])

    assert await new.cell.remember(["ended", "ended", "held"]) == 2
    await new.cell.begin({})

    assert await new.free("i1") == {"slots": 2}
    assert await new.cell.remember(["other"]) == 0
    assert await new.apply(new.entry("ended"), new.entry("held"), new.entry("other"), to=["i1"]) == "kk1"
    await new.check()


async def test_it_begins_only_in_the_history_that_is_told(new: Rig) -> None:
    generation = (await new.cell.open(CellConfig())).generation

    assert not await new.cell.begin({}, generation="another")
    assert await new.cell.begin({}, generation=generation)


async def test_what_was_remembered_is_not_forgotten_before_the_replay_is_over(new: Rig) -> None:
    await new.cell.open(CellConfig(done_limit=2, headroom_permille=0))
    await new.register("i1", slots=9)
    await new.cell.remember(["a", "b", "c"])
    for _ in range(3):
        await new.cell.expire(limit=1)
    await new.cell.begin({PARTITION: 0}, until={PARTITION: 3})
    for _ in range(3):
        await new.cell.expire(limit=1)

    assert (await new.cell.open(CellConfig(done_limit=2, headroom_permille=0))).replaying == {PARTITION: 3}
    assert await new.apply(*map(new.entry, "abx"), to=["i1"]) == "kk1"

    await new.cell.expire(limit=1)
    assert not (await new.cell.open(CellConfig(done_limit=2, headroom_permille=0))).replaying
    await new.finish("i1", await new.ending("x"))
    await new.cell.expire(limit=1)
    assert await new.view.find("a") is None
    new.task_ids.clear()


async def test_a_range_that_ends_before_its_start_moves_the_partition_back(rig: Rig) -> None:
    await rig.apply(*map(rig.entry, "abc"))

    await rig.apply(ranges=[Range(PARTITION, 3, 1)])

    assert await rig.cell.applied([PARTITION]) == {PARTITION: 1}
    rig.offset = 1
    assert await rig.apply(rig.entry("b"), rig.entry("d")) == "kp"


async def test_unfinished_tasks_are_counted_by_their_arrival(rig: Rig) -> None:
    await rig.register("i1", slots=2)
    old, new = rig.entry("old", arrived_ms=BUCKET_MS * 7 + 1), rig.entry("new", arrived_ms=BUCKET_MS * 8)
    late = rig.entry("late", arrived_ms=BUCKET_MS * 9, deadline_ms=1)
    await rig.apply(old, new, late, rig.entry("parked", arrived_ms=BUCKET_MS * 8), to=["i1"])
    assert await rig.view.unfinished() == {BUCKET_MS * 7: 1, BUCKET_MS * 8: 2}

    await rig.finish("i1", await rig.ending("old"), await rig.ending("new", "retry", delay_ms=60_000))
    assert await rig.view.unfinished() == {BUCKET_MS * 8: 2}

    await rig.finish("i1", await rig.ending("parked", "gave_up"))
    assert await rig.view.unfinished() == {BUCKET_MS * 8: 1}


async def test_an_instance_that_resumes_is_closed_until_it_has_told_all_that_it_runs(rig: Rig) -> None:
    parked, first, second = (rig.entry(name) for name in ("parked", "first", "second"))
    await rig.apply(parked)
    epoch = "again"
    rig.epochs["i1"] = epoch
    await rig.resume("i1", slots=2)
    assert (await rig.view.instances())[0].reason == "resuming"

    one = await rig.cell.resync("i1", epoch, [Running("first", "1-1", 1, first)], is_last=False)
    assert await rig.parked() == ["parked"]
    two = await rig.cell.resync("i1", epoch, [Running("second", "1-2", 1, second)])

    assert isinstance(one, Resynced)
    assert isinstance(two, Resynced)
    assert all((*one.stream_ids, *two.stream_ids))
    assert await rig.queued("i1") == ["first", "second"]
    assert (await rig.view.instances())[0].state == "open"
    await rig.finish("i1", await rig.ending("first"))
    assert await rig.queued("i1") == ["second", "parked"]


async def test_one_that_holds_nothing_is_open_after_an_empty_page(rig: Rig) -> None:
    await rig.apply(rig.entry("parked"))
    rig.epochs["i1"] = "again"
    await rig.resume("i1", slots=1)

    await rig.cell.resync("i1", "again", [])

    assert await rig.queued("i1") == ["parked"]


async def test_settings_hold_whether_they_come_before_it_begins_or_after(new: Rig) -> None:
    await new.cell.open(CellConfig(parked_limit=1))
    await new.cell.begin({})
    assert await new.apply(new.entry("t1")) == "p"
    assert isinstance(await new.cell.apply(new.batch([new.entry("t2")])), Full)

    await new.cell.open(CellConfig(parked_limit=2))

    assert await new.apply(new.entry("t2")) == "p"
    assert isinstance(await new.cell.apply(new.batch([new.entry("t3")])), Full)


async def test_settings_that_an_older_build_stored_hold_before_and_after_the_next_opening(
    connection: Connection,
) -> None:
    rig, config = redis_rig(connection), CellConfig(parked_limit=1)
    await rig.cell.open(config)
    await rig.cell.begin({})
    await rig.apply(rig.entry("t1"))
    told = await connection.command("HGET", f"{connection.root}:applied", "begun")
    await connection.command("HSET", f"{connection.root}:applied", "begun", 1)

    assert isinstance(await rig.cell.apply(rig.batch([rig.entry("t2")])), Full)
    await rig.cell.open(config)

    assert await connection.command("HGET", f"{connection.root}:applied", "begun") == told
    assert b"parked_limit=1," in told
    assert isinstance(await rig.cell.apply(rig.batch([rig.entry("t2")])), Full)
