"""settle, due, expire, hold, lease, open: what a dispatcher does from time to time."""

from taskyard.dispatcher.cell.contract import Beaten, CellConfig, Report
from taskyard.dispatcher.cell.twin_tick import AWAY_MS
from tests.contract.rig import SOON_MS, Rig

SHAPE = "n|a|slots=1|"
BIG = "n|a|slots=2|"
UNSERVED = "n|x|slots=1|"
FOREVER = CellConfig(parked_age_ms=2**50, unknown_type_age_ms=SOON_MS)
"""Tasks may be parked for ever if an instance serves their type."""


async def test_settle_places_what_was_parked_beside_free_capacity(rig: Rig) -> None:
    await rig.park_beside_a_free_slot("i1", "t1", key=5)

    assert await rig.cell.settle([], limit=10) == 0
    assert await rig.cell.settle([("unknown", SHAPE), ("i1", SHAPE)], limit=10) == 1

    assert (await rig.find("t1")).via == "s"


async def test_settle_finds_a_shape_behind_many_that_do_not_fit(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("filler"), to=["i1"])
    for n in range(40):
        await rig.apply(rig.entry(f"wide-{n}", f"n|a|slots={n + 2}|", key=1))
    await rig.apply(rig.entry("fits", key=5))

    # The pull of the finish looks at 32 heads and sees none that fits.
    assert (await rig.finish("i1", await rig.ending("filler"))).pulled == 0
    assert await rig.cell.settle([("i1", SHAPE)], limit=10) == 1

    assert await rig.queued("i1") == ["fits"]


async def test_settle_counts_only_what_it_placed(rig: Rig) -> None:
    deadline_ms = await rig.soon() + 3 * SOON_MS
    await rig.park_beside_a_free_slot("i1", "late", key=5, deadline_ms=deadline_ms)
    await rig.apply(rig.entry("t1", key=6), rig.entry("t2", key=7))
    await rig.let_pass(deadline_ms - (await rig.view.level()).now_ms)

    assert await rig.cell.settle([("i1", SHAPE)], limit=0) == 0
    assert await rig.cell.settle([("i1", SHAPE)], limit=1) == 1
    assert (await rig.find("late")).state == "dead"
    assert (await rig.find("t1")).state == "queued"
    assert await rig.parked() == ["t2"]


async def test_a_task_whose_backoff_is_over_is_placed_or_parked(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    for name in ("t1", "t2"):
        await rig.apply(rig.entry(name), to=["i1"])
        await rig.finish("i1", await rig.ending(name, "retry", b"busy", delay_ms=3))
    await rig.let_pass(5)

    assert await rig.cell.due(limit=1) == 1
    assert await rig.cell.due(limit=10) == 1

    assert (await rig.find("t1")).via == "d"
    assert (await rig.find("t2")).state == "parked"
    assert (await rig.view.level()).later == 0


async def test_a_task_that_is_due_after_its_deadline_is_dead(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("t1", deadline_ms=await rig.soon()), to=["i1"])
    await rig.finish("i1", await rig.ending("t1", "retry", b"busy", delay_ms=1))
    await rig.let_pass(SOON_MS)

    assert await rig.cell.due(limit=10) == 1
    assert [out.reason for out in await rig.cell.outbox(count=9)] == ["deadline"]


async def test_a_parked_task_past_its_deadline_expires(rig: Rig) -> None:
    now_ms = (await rig.view.level()).now_ms
    await rig.apply(rig.entry("t1", deadline_ms=now_ms + 20), rig.entry("t2", deadline_ms=now_ms + 600_000))
    assert await rig.cell.expire(limit=10) == 0
    await rig.let_pass(25)

    assert await rig.cell.expire(limit=10) == 1

    [out] = await rig.cell.outbox(count=9)
    assert (out.reason, out.cause, out.instance) == ("deadline", "its deadline passed while it was parked", "")
    assert ((await rig.find("t1")).state, await rig.parked()) == ("dead", ["t2"])


async def test_expire_ends_at_most_its_limit(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    soon_ms = await rig.soon()
    late = [rig.entry(f"t{n}", BIG, deadline_ms=soon_ms) for n in range(3)]
    await rig.apply(*late, *[rig.entry(f"u{n}", BIG, arrived_ms=0) for n in range(3)])
    await rig.let_pass(SOON_MS)

    assert [await rig.cell.expire(limit=4), await rig.cell.expire(limit=4)] == [4, 2]


async def test_thousands_of_tasks_with_one_deadline_all_expire(rig: Rig) -> None:
    soon_ms = await rig.soon()
    late = [rig.entry(f"t{n}", key=soon_ms, deadline_ms=soon_ms) for n in range(1_500)]
    assert await rig.apply(*late) == "p" * len(late)
    await rig.let_pass(SOON_MS)

    ended = [await rig.cell.expire(limit=200) for _ in range(12)]

    assert sum(ended) == len(late)
    assert max(ended) <= 200
    assert await rig.parked() == []


async def test_a_parked_task_that_no_instance_had_room_for_expires_by_its_age(rig: Rig) -> None:
    await rig.cell.open(CellConfig(parked_age_ms=50_000))
    now_ms = (await rig.view.level()).now_ms
    await rig.register("i1", slots=1)
    await rig.apply(
        *[rig.entry(f"t-{age}", BIG, arrived_ms=now_ms - age) for age in (60_000, 20_000)],
        rig.entry("unserved", UNSERVED, arrived_ms=now_ms - 20_000),
    )

    assert await rig.cell.expire(limit=10) == 1

    [out] = await rig.cell.outbox(count=9)
    assert (out.reason, out.cause) == ("age", "no instance had room for it in time")
    assert (await rig.parked(BIG), await rig.parked(UNSERVED)) == (["t-20000"], ["unserved"])


async def test_a_task_expires_once_no_instance_has_served_its_type_for_long(rig: Rig) -> None:
    await rig.cell.open(FOREVER)
    now_ms = (await rig.view.level()).now_ms
    await rig.apply(*[rig.entry(name, UNSERVED, arrived_ms=ms) for name, ms in (("old", 1), ("young", now_ms))])
    assert await rig.cell.expire(limit=10) == 0, "it may be that its instances are only restarting"
    await rig.let_pass(SOON_MS)
    await rig.apply(rig.entry("new", UNSERVED, arrived_ms=(await rig.view.level()).now_ms))

    assert await rig.cell.expire(limit=10) == 2

    causes = {(out.reason, out.cause) for out in await rig.cell.outbox(count=9)}
    assert causes == {("age", "no instance serves the agent type x")}
    assert await rig.parked(UNSERVED) == ["new"]


async def test_a_task_of_a_type_that_nobody_serves_is_not_parked_for_longer_than_others(rig: Rig) -> None:
    await rig.cell.open(CellConfig(parked_age_ms=50_000))
    now_ms = (await rig.view.level()).now_ms
    await rig.apply(*[rig.entry(f"t-{age}", UNSERVED, arrived_ms=now_ms - age) for age in (60_000, 20_000)])

    assert await rig.cell.expire(limit=10) == 1

    assert await rig.parked(UNSERVED) == ["t-20000"]


async def test_the_time_without_an_instance_begins_anew_with_one_that_registered(rig: Rig) -> None:
    await rig.cell.open(FOREVER)
    await rig.apply(rig.entry("t1", UNSERVED, key=1), rig.entry("t2", UNSERVED, key=2, arrived_ms=1))
    assert await rig.cell.expire(limit=10) == 0
    await rig.let_pass(SOON_MS)

    await rig.register("i1", "x", slots=1)
    assert await rig.queued("i1") == ["t1"]
    await rig.cell.leave("i1", rig.epochs["i1"])

    assert await rig.cell.expire(limit=10) == 0


async def test_the_time_without_an_instance_begins_anew_when_nothing_waits(rig: Rig) -> None:
    await rig.cell.open(FOREVER)
    await rig.apply(rig.entry("late", UNSERVED, deadline_ms=await rig.soon()))
    assert await rig.cell.expire(limit=10) == 0
    await rig.let_pass(2 * SOON_MS)
    assert await rig.cell.expire(limit=10) == 1

    await rig.apply(rig.entry("t1", UNSERVED, arrived_ms=1))

    assert await rig.cell.expire(limit=10) == 0


async def test_the_time_without_an_instance_begins_anew_after_one_without_dispatchers(rig: Rig) -> None:
    await rig.cell.open(FOREVER)
    await rig.cell.evict(limit=1)
    await rig.apply(rig.entry("t1", UNSERVED, arrived_ms=1))
    assert await rig.cell.expire(limit=10) == 0
    await rig.let_pass(AWAY_MS)

    await rig.cell.evict(limit=1)

    assert await rig.cell.expire(limit=10) == 0


async def test_a_held_instance_takes_only_the_shape_that_it_is_held_for(rig: Rig) -> None:
    await rig.register("i1", slots=2)
    await rig.apply(rig.entry("t1", key=1), to=["i1"])
    await rig.apply(rig.entry("big", BIG, key=5))

    assert await rig.cell.hold(BIG, "i1")
    assert await rig.apply(rig.entry("small", key=2), to=["i1"]) == "p"
    assert (await rig.view.vectors())["i1"].state == "held"
    assert (await rig.finish("i1", await rig.ending("t1"))).pulled == 1

    assert await rig.queued("i1") == ["big"]
    assert (await rig.view.vectors())["i1"].state == "open"
    assert (await rig.finish("i1", await rig.ending("big"))).pulled == 1
    assert await rig.queued("i1") == ["small"]


async def test_a_hold_of_an_instance_with_room_is_served_at_once(rig: Rig) -> None:
    await rig.park_beside_a_free_slot("i1", "t1", key=5)

    assert await rig.cell.hold(SHAPE, "i1")

    assert await rig.queued("i1") == ["filler", "t1"]
    assert (await rig.view.vectors())["i1"].state == "open"


async def test_a_hold_gives_the_headroom_too_or_a_task_of_an_instances_size_would_wait_for_ever(rig: Rig) -> None:
    await rig.cell.open(CellConfig(headroom_permille=500))
    await rig.register("i1", slots=4)
    whole = "n|a|slots=4|"
    await rig.apply(rig.entry("small"), rig.entry("whole", whole), to=["i1"])

    assert await rig.cell.hold(whole, "i1")
    await rig.finish("i1", await rig.ending("small"))

    assert await rig.queued("i1") == ["whole"]


async def test_there_is_one_hold_for_a_shape_and_for_an_instance(rig: Rig) -> None:
    for name in ("i1", "i2"):
        await rig.register(name, slots=2)
        await rig.apply(rig.entry(f"filler-{name}"), to=[name])
    await rig.register("i3", "b", slots=2)
    await rig.cell.cordon("i3", "closed")
    await rig.apply(rig.entry("big", BIG), rig.entry("huge", "n|a|slots=3|"), rig.entry("other", "n|b|slots=2|"))

    assert not await rig.cell.hold("n|a|slots=4|", "i1")
    assert not await rig.cell.hold("n|a|slots=3|", "i1"), "it is larger than the instance"
    assert not await rig.cell.hold("n|b|slots=2|", "i1"), "the instance does not serve the type"
    assert not await rig.cell.hold(BIG, "i3")
    assert not await rig.cell.hold(BIG, "unknown")
    assert await rig.cell.hold(BIG, "i1")
    assert not await rig.cell.hold(BIG, "i2")


async def test_a_hold_ends_when_its_instance_closes_or_goes(rig: Rig) -> None:
    for name in ("i1", "i2"):
        await rig.register(name, slots=2)
        await rig.apply(rig.entry(f"filler-{name}"), to=[name])
    await rig.apply(rig.entry("big", BIG))

    assert await rig.cell.hold(BIG, "i1")
    await rig.cell.cordon("i1", "closed")
    assert await rig.cell.hold(BIG, "i2")
    await rig.cell.leave("i2", rig.epochs["i2"])
    await rig.cell.cordon("i1", "")

    assert (await rig.view.vectors())["i1"].state == "open"
    assert await rig.cell.hold(BIG, "i1")


async def test_a_lease_belongs_to_one_owner_until_it_runs_out_or_is_given_back(rig: Rig) -> None:
    assert await rig.cell.lease("tick", "d1", ttl_ms=60_000)
    assert await rig.cell.lease("tick", "d1", ttl_ms=60_000)
    assert not await rig.cell.lease("tick", "d2", ttl_ms=60_000)
    assert not await rig.cell.lease("tick", "d2", ttl_ms=0)
    assert await rig.cell.lease("relay", "d2", ttl_ms=5)
    assert not await rig.cell.lease("tick", "d1", ttl_ms=0)
    assert await rig.cell.lease("tick", "d2", ttl_ms=60_000)

    await rig.until(lambda: rig.cell.lease("relay", "d1", ttl_ms=60_000), "the lease runs out")


async def test_a_cell_keeps_its_generation_while_its_history_is_one(rig: Rig) -> None:
    generation = (await rig.cell.open(CellConfig())).generation

    assert generation
    assert (await rig.cell.open(CellConfig(parked_limit=1))).generation == generation
    assert (await rig.register("i1")).generation == generation
    beaten = await rig.cell.beat("i1", rig.epochs["i1"], Report("0-0"))
    assert isinstance(beaten, Beaten)
    assert beaten.generation == generation


async def test_finished_ids_are_forgotten_when_the_memory_is_full(rig: Rig) -> None:
    await rig.cell.open(CellConfig(done_limit=2))
    await rig.register("i1", slots=1)
    for n in range(3):
        await rig.apply(rig.entry(f"t{n}"), to=["i1"])
        await rig.finish("i1", await rig.ending(f"t{n}"))
        await rig.cell.expire(limit=1)

    assert [await rig.view.find(f"t{n}") is None for n in range(3)] == [True, True, False]


async def test_finished_ids_are_forgotten_when_they_are_old(rig: Rig) -> None:
    await rig.cell.open(CellConfig(done_age_ms=5))
    await rig.register("i1", slots=1)
    for n in range(3):
        await rig.apply(rig.entry(f"t{n}"), to=["i1"])
        await rig.finish("i1", await rig.ending(f"t{n}"))
        await rig.cell.expire(limit=1)
        await rig.let_pass(6)

    assert await rig.view.find("t0") is None
    assert await rig.view.find("t2") is not None
