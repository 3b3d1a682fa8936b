"""The front of the heads, which the server keeps in its memory between calls: a pull takes the tasks in their order
whatever has become of it. Other contract tests cover what a pull takes; here the front is lost, or is not all there is.
"""

import itertools
import random

import pytest

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig, Ending
from taskyard.schemas.errors import DependencyError
from tests.contract.faulty import FaultyConnection
from tests.contract.rig import Rig, redis_rig
from tests.contract.snapshot import heads_told_too_late

ONE, OTHER = "n|a|slots=1|", "n|a|slots=1,gpu=1|"
FITTING = [f"n|a|slots=1,gpu={n}|" for n in range(120)]
"""More shapes than are read at once."""
OTHERS = [f"n|a|slots=1|zone={n}" for n in range(10)]
"""Fewer than a pull looks at."""


async def opened(connection: Connection) -> Rig:
    rig = redis_rig(connection)
    await rig.cell.open(CellConfig(headroom_permille=0))
    await rig.cell.begin({})
    return rig


async def faulty_rig(redis_url: str, cell: str) -> tuple[FaultyConnection, Rig]:
    connection = FaultyConnection(redis_url, cell)
    await connection.load()
    return connection, await opened(connection)


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
    await begin(rig, ("t1", ONE, 1), ("t2", OTHER, 2), ("t3", OTHER, 3), ("t4", ONE, 4))

    order = [await pulled(rig)]
    await forget(connection)
    assert await connection.command("ZSCORE", f"{connection.root}:heads:a", ONE) == b"1", "not earlier than it is"
    order += [await pulled(rig) for _ in range(3)]

    assert order == ["t1", "t2", "t3", "t4"]
    await rig.check()


async def test_a_task_that_comes_among_those_known_is_pulled_in_its_turn(connection: Connection) -> None:
    rig = await opened(connection)
    await begin(rig, *[(f"t{key}", ONE, key) for key in (1, 2, 5, 7)], ("t4", OTHER, 4), ("t6", OTHER, 6))

    order = [await pulled(rig)]
    await rig.apply(rig.entry("t3", ONE, key=3))
    order += [await pulled(rig) for _ in range(6)]

    assert order == [f"t{key}" for key in range(1, 8)]
    await rig.check()


async def test_a_task_that_is_dead_by_then_is_not_waited_for(connection: Connection) -> None:
    rig = await opened(connection)
    await begin(rig, ("t1", ONE, 1))
    await rig.apply(rig.entry("late", ONE, key=2, deadline_ms=1, arrived_ms=0))
    for task_id, shape, key in (("t3", OTHER, 3), ("t4", ONE, 4)):
        await rig.apply(rig.entry(task_id, shape, key=key))

    order = [await pulled(rig)]
    await rig.cell.expire(limit=9)
    order += [await pulled(rig) for _ in range(2)]

    assert order == ["t1", "t3", "t4"]
    await rig.check()


async def test_what_a_failed_call_has_taken_back_is_pulled_in_its_turn(connection: Connection) -> None:
    rig = await opened(connection)
    await begin(rig, ("t1", ONE, 1), ("t2", OTHER, 2), ("t3", ONE, 3), ("t4", OTHER, 4))
    ending = await rig.ending("first")

    await connection.command("SET", f"{connection.root}:done0", "no hash")
    with pytest.raises(DependencyError, match="WRONGTYPE"):
        await rig.finish("i1", ending)
    await connection.command("DEL", f"{connection.root}:done0")

    assert [await pulled(rig) for _ in range(4)] == ["t1", "t2", "t3", "t4"]
    await rig.check()


async def test_what_is_parked_in_data_that_went_back_is_pulled(redis_url: str, cell: str) -> None:
    connection, rig = await faulty_rig(redis_url, cell)
    await begin(rig, ("t1", ONE, 1), ("t2", OTHER, 2), ("t3", ONE, 3))
    await connection.keep()
    assert [await pulled(rig) for _ in range(3)] == ["t1", "t2", "t3"]

    await connection.restore()

    assert [await pulled(rig) for _ in range(3)] == ["t1", "t2", "t3"]
    await rig.check()
    await connection.close()


async def test_an_earlier_task_does_not_hide_the_one_that_was_first(connection: Connection) -> None:
    rig = await opened(connection)
    await begin(rig, *[(f"t{k}", ONE, k) for k in (1, 5, 6, 7, 8)], ("x", OTHER, 5.5))
    order = [await pulled(rig)]
    await rig.apply(rig.entry("t2", ONE, key=2))
    order += [await pulled(rig) for _ in range(4)]
    assert order == ["t1", "t2", "t5", "x", "t6"]


async def test_a_task_beyond_what_was_read_waits_for_those_between(connection: Connection) -> None:
    rig = await opened(connection)
    await begin(rig, *[(f"t{n}", FITTING[n], n) for n in range(100)])
    assert await pulled(rig) == "t0"
    await rig.apply(rig.entry("last", FITTING[110], key=1000))
    assert [await pulled(rig) for _ in range(100)] == [*(f"t{n}" for n in range(1, 100)), "last"]


async def test_what_mend_lists_again_is_pulled(connection: Connection) -> None:
    rig = await opened(connection)
    await begin(rig, ("t1", ONE, 1), ("t3", ONE, 3), ("t4", ONE, 4), ("t2", OTHER, 2))
    await connection.command("ZREM", f"{connection.root}:heads:a", OTHER)
    await forget(connection)
    assert await pulled(rig) == "t1"
    assert await connection.call("mend", "shape", OTHER, "")
    assert [await pulled(rig) for _ in range(3)] == ["t2", "t3", "t4"]


async def test_what_open_moves_to_another_index_is_pulled(connection: Connection) -> None:
    rig = await opened(connection)
    critical, misfit = "c|a|slots=1|", "c|a|slots=2|"
    await begin(rig, ("k1", critical, 1), ("k2", critical, 2), ("m", misfit, 9), ("t3", ONE, 3), ("t4", ONE, 4))
    heads = f"{connection.root}:heads"
    await connection.command("ZREM", f"{heads}:c|a", critical)
    await forget(connection)
    # From now on the fronts of both indexes are kept, that of the critical ones without this shape.
    assert await pulled(rig) == "t3"
    await connection.command("ZADD", f"{heads}:a", 1, critical)
    await connection.command("HDEL", f"{connection.root}:meta", "by_lane")
    await rig.cell.open(CellConfig(headroom_permille=0))
    assert [await pulled(rig) for _ in range(3)] == ["k1", "k2", "t4"]


@pytest.mark.timeout(20)
async def test_many_heads_that_are_stored_as_too_early_leave_in_order(connection: Connection) -> None:
    rig = await opened(connection)
    await begin(rig, *[(f"t{n}", FITTING[n], 100 + n) for n in range(100)])
    rows = [part for n in range(100) for part in (0, FITTING[n])]
    await connection.command("ZADD", f"{connection.root}:heads:a", *rows)  # as if each had been first once
    await forget(connection)
    assert [await pulled(rig) for _ in range(100)] == [f"t{n}" for n in range(100)]


async def test_a_call_that_fails_beside_heads_stored_as_too_early_has_lost_nothing(redis_url: str, cell: str) -> None:
    connection, rig = await faulty_rig(redis_url, cell)
    await begin(rig, ("t1", ONE, 1), ("t2", ONE, 500))
    assert await pulled(rig) == "t1"
    for n in range(80):
        await rig.apply(rig.entry(f"o{n}", FITTING[n + 1], key=10 + n))
    await forget(connection)
    ending = await rig.ending("t1")
    before = await connection.raw()
    await connection.keep()
    await connection.arm(0)
    await rig.finish("i1", ending)
    calls = await connection.arm(0)
    wrong: list[int] = []
    for k in range(1, calls + 1):
        await connection.restore()
        await connection.arm(k)
        with pytest.raises(DependencyError):
            await rig.finish("i1", ending)
        await connection.arm(0)
        if await connection.raw() != before:
            wrong.append(k)
    await connection.close()
    assert wrong == []


async def test_a_count_that_comes_again_is_no_count_of_this_front(redis_url: str, cell: str) -> None:
    connection, rig = await faulty_rig(redis_url, cell)
    await begin(rig, ("t1", ONE, 1), ("t2", OTHER, 2), ("t3", ONE, 3), ("t4", OTHER, 4), ("t5", ONE, 5))
    await forget(connection)
    assert await pulled(rig) == "t1"
    await connection.keep()
    assert [await pulled(rig) for _ in range(2)] == ["t2", "t3"]
    await forget(connection)
    assert await pulled(rig) == "t4"
    await connection.restore()
    assert [await pulled(rig) for _ in range(4)] == ["t2", "t3", "t4", "t5"]
    await connection.close()


@pytest.mark.timeout(20)
async def test_a_head_in_a_wrong_index_does_not_hang_the_server(connection: Connection) -> None:
    rig = await opened(connection)
    await begin(rig, ("t1", ONE, 5))
    await connection.command("ZADD", f"{connection.root}:heads:a", 1, "c|a|slots=1|")
    assert await pulled(rig) == "t1"


async def test_what_is_read_again_has_been_written_as_it_is(connection: Connection) -> None:
    rig = await opened(connection)
    moved = "n|a|slots=1|zone=2"
    await rig.register("i2", slots=1, labels={"zone": "2"})
    await rig.apply(rig.entry("other"), to=["i2"])
    await begin(rig, ("m0", moved, 0), ("m1", moved, 40.5), *[(f"o{n}", FITTING[n], n) for n in range(1, 110)])
    await rig.finish("i2", await rig.ending("other"))
    assert await rig.queued("i2") == ["m0"]
    assert await connection.command("ZSCORE", f"{connection.root}:heads:a", moved) == b"0"  # it is at 40.5 in the front
    for n in range(1, 70):
        assert await pulled(rig) == f"o{n}"
    assert await connection.command("ZSCORE", f"{connection.root}:heads:a", moved) == b"40.5"


async def test_of_shapes_with_equal_keys_the_first_by_text_goes_first(connection: Connection) -> None:
    rig = await opened(connection)
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("first"), to=["i1"])
    texts = [f"n|a|gpu=0,slots=1,x{z}=0|" for z in "dbac"]
    for z, text in zip("dbac", texts, strict=True):
        await rig.apply(rig.entry(f"{z}1", text, key=1))
    assert (await pulled(rig))[0] == "a"  # the front is kept from now on
    for z, text in zip("dbac", texts, strict=True):
        await rig.apply(rig.entry(f"{z}2", text, key=1))
    assert [(await pulled(rig))[0] for _ in range(7)] == list("abbccdd")


async def test_a_shape_that_left_the_window_and_comes_again_is_listed(connection: Connection) -> None:
    rig = await opened(connection)
    gone = FITTING[119]
    await begin(rig, ("g0", gone, 0), ("g1", gone, 500), *[(f"o{n}", FITTING[n], n) for n in range(1, 80)])
    assert await pulled(rig) == "g0"  # its head is beyond what was read
    place = await rig.find("g1")
    await rig.finish("i1", Ending("g1", "5-5", place.attempt, "succeeded", b"late", 0))  # ended elsewhere
    await rig.apply(rig.entry("g2", gone, key=600))
    assert await connection.command("ZSCORE", f"{connection.root}:heads:a", gone) == b"600"
    assert [await pulled(rig) for _ in range(80)] == [*(f"o{n}" for n in range(1, 80)), "g2"]


async def test_a_task_is_seen_behind_many_that_do_not_fit_and_are_stored_as_too_early(connection: Connection) -> None:
    rig = await opened(connection)
    for n in (1, 2):
        await rig.register(f"i{n}", slots=1, gpu=99, labels={"zone": str(n)})
        await rig.apply(rig.entry(f"f{n}", f"n|a|slots=1|zone={n}"), to=[f"i{n}"])
    for n in range(40):
        for key in (1 + n, 1000 + n):
            await rig.apply(rig.entry(f"t{key}", f"n|a|gpu={n + 1},slots=1|zone=2", key=key))
    await rig.apply(rig.entry("mine", "n|a|slots=1|zone=1", key=500))
    for _ in range(40):
        [running] = await rig.queued("i2")
        await rig.finish("i2", await rig.ending(running))

    await forget(connection)

    assert await pulled(rig) == "mine"
    await rig.check()


async def test_a_task_that_is_too_old_is_found_behind_heads_stored_as_too_early(connection: Connection) -> None:
    rig = await opened(connection)
    await begin(rig)
    keys = itertools.count(1)
    for n in range(90):
        await rig.apply(rig.entry(f"0-{n}", FITTING[n], key=next(keys)))
    await rig.apply(rig.entry("old", "n|a|slots=1|zone=none", key=90.5, arrived_ms=0))
    for lap in range(1, 3):
        for n in range(90):
            await rig.apply(rig.entry(f"{lap}-{n}", FITTING[n], key=next(keys)))
            await pulled(rig)

    assert await rig.cell.expire(limit=9) == 1

    assert (await rig.find("old")).state == "dead"
    await rig.check()


@pytest.mark.parametrize("value", ["x", 2**63 - 1])
async def test_a_counter_that_is_damaged_stops_nothing(connection: Connection, value: str | int) -> None:
    rig = await opened(connection)
    await connection.command("SET", f"{connection.root}:front", value)

    await begin(rig, ("t1", ONE, 1))

    assert await pulled(rig) == "t1"
    await rig.check()


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
            assert await heads_told_too_late(connection) == []
    await rig.check()
