"""What dispatchers call from time to time, in states that make it do all its kinds of work."""

from operator import attrgetter

from tests.contract.rig import SOON_MS, UNENDING_MS, Rig
from tests.contract.torn_cases import BIG, CONFIG, FAR_MS, OF_B, Call, Case, fill


async def a_settling_of_matches(rig: Rig) -> Call:
    """One instance has room beside what waits, one none, one is not there."""
    await rig.park_beside_a_free_slot("i1", "t1", key=5, deadline_ms=FAR_MS)
    await rig.register("i2", "b", slots=1)
    await rig.apply(rig.entry("t2", key=8), rig.entry("b1", OF_B, key=9), rig.entry("b2", OF_B, key=10))
    matches = [("i2", OF_B), ("none", OF_B), ("i1", "n|a|slots=1|"), ("i1", OF_B)]
    return Call(lambda: rig.cell.settle(matches, limit=9), 1)


async def a_settling_of_a_shape_behind_many(rig: Rig) -> Call:
    """A pull looks at 32 shapes. The hold of the instance ends with the deadline of what it was held for."""
    soon_ms = await rig.soon()
    await rig.register("i1", slots=3)
    await fill(rig, "i1", "t1")
    huge = [rig.entry(f"huge-{n}", f"n|a|slots={4 + n}|", key=1) for n in range(32)]
    await rig.apply(rig.entry("holder", "n|a|slots=3|", key=1, deadline_ms=soon_ms), *huge)
    assert await rig.cell.hold("n|a|slots=3|", "i1")
    await rig.apply(rig.entry("t2", key=5), rig.entry("t3", key=5), rig.entry("t4", key=5))
    await rig.let_pass(SOON_MS)
    assert await rig.cell.expire(limit=1) == 1
    return Call(lambda: rig.cell.settle([("i1", "n|a|slots=1|")], limit=9), 2)


async def retries_that_are_due(rig: Rig) -> Call:
    """One is placed, one parked, one dead."""
    soon_ms = await rig.soon()
    await rig.register("i1", slots=3)
    entries = [rig.entry("t1"), rig.entry("t2", deadline_ms=FAR_MS), rig.entry("t3", deadline_ms=soon_ms)]
    await rig.apply(*entries, to=["i1"])
    await rig.cell.cordon("i1", "closed")
    await rig.finish("i1", *[await rig.ending(name, "retry", b"cause", 1) for name in ("t1", "t2", "t3")])
    await rig.register("i2", slots=1)
    await rig.let_pass(SOON_MS)
    return Call(lambda: rig.cell.due(limit=9), 3)


async def parked_tasks_that_are_too_late(rig: Rig) -> Call:
    """Past their deadline, too old, and of a type that nobody serves; one of them had a hold."""
    await rig.cell.open(CONFIG._replace(parked_age_ms=50_000, unknown_type_age_ms=SOON_MS))
    now_ms = (await rig.view.level()).now_ms
    strange = rig.entry("strange", "n|x|slots=1|", key=4, arrived_ms=now_ms - 20_000)
    await rig.apply(rig.entry("stays", "n|a|slots=7|", key=3), strange)
    assert await rig.cell.expire(limit=9) == 0
    soon_ms = await rig.soon()
    await rig.register("i1", slots=2)
    await fill(rig, "i1", "t1")
    await rig.apply(
        rig.entry("late-1", BIG, key=1, deadline_ms=soon_ms),
        rig.entry("late-2", BIG, key=1, deadline_ms=soon_ms),
        rig.entry("old", "n|a|slots=7|", key=2, deadline_ms=FAR_MS, arrived_ms=now_ms - 60_000),
    )
    assert await rig.cell.hold(BIG, "i1")
    await rig.let_pass(SOON_MS)
    return Call(lambda: rig.cell.expire(limit=9), 4)


async def a_look_at_types_that_nobody_serves(rig: Rig) -> Call:
    """One is noted; another is forgotten, since nothing of it waits any more."""
    await rig.cell.open(CONFIG)
    await rig.apply(rig.entry("late", "n|x|slots=1|", deadline_ms=await rig.soon()))
    assert await rig.cell.expire(limit=9) == 0
    await rig.let_pass(SOON_MS)
    await rig.apply(rig.entry("t1", "c|y|slots=1|"))
    return Call(lambda: rig.cell.expire(limit=9), 1)


async def a_memory_of_ended_ids_that_turns(rig: Rig) -> Call:
    await rig.cell.open(CONFIG._replace(done_limit=4))
    await rig.register("i1", slots=4)
    for names in (("t1", "t2"), ("t3", "t4")):
        await fill(rig, "i1", *names)
        await rig.finish("i1", *[await rig.ending(name) for name in names])
        if names[0] == "t1":
            await rig.cell.expire(limit=1)
    await rig.apply(rig.entry("old", "n|a|slots=7|", arrived_ms=1))
    return Call(lambda: rig.cell.expire(limit=9), 1, steps=2)


async def a_hold(rig: Rig) -> Call:
    await rig.register("i1", slots=2)
    await fill(rig, "i1", "t1")
    await rig.apply(rig.entry("big", BIG))
    return Call(lambda: rig.cell.hold(BIG, "i1"), reply=True)


async def a_hold_that_is_served_at_once(rig: Rig) -> Call:
    await rig.park_beside_a_free_slot("i1", "t1", key=5, deadline_ms=FAR_MS)
    return Call(lambda: rig.cell.hold("n|a|slots=1|", "i1"), reply=True)


async def an_opening_with_other_headroom(rig: Rig) -> Call:
    await rig.register("i1", slots=4)
    await rig.register("i2", "b", slots=8)
    await fill(rig, "i1", "t1")
    config = CONFIG._replace(headroom_permille=500, done_limit=9)
    return Call(lambda: rig.cell.open(config), reply=True, of=attrgetter("is_begun"))


async def a_lease_that_is_free(rig: Rig) -> Call:
    return Call(lambda: rig.cell.lease("tick", "d1", ttl_ms=UNENDING_MS), reply=True)


async def a_lease_that_is_renewed(rig: Rig) -> Call:
    await rig.cell.lease("tick", "d1", ttl_ms=UNENDING_MS)
    return Call(lambda: rig.cell.lease("tick", "d1", ttl_ms=UNENDING_MS), reply=True)


async def a_lease_that_is_given_back(rig: Rig) -> Call:
    await rig.cell.lease("tick", "d1", ttl_ms=UNENDING_MS)
    return Call(lambda: rig.cell.lease("tick", "d1", ttl_ms=0), reply=False)


SETTLE: tuple[Case, ...] = (a_settling_of_matches, a_settling_of_a_shape_behind_many)
DUE: tuple[Case, ...] = (retries_that_are_due,)
EXPIRE: tuple[Case, ...] = (
    parked_tasks_that_are_too_late,
    a_look_at_types_that_nobody_serves,
    a_memory_of_ended_ids_that_turns,
)
HOLD: tuple[Case, ...] = (a_hold, a_hold_that_is_served_at_once)
LEASE: tuple[Case, ...] = (a_lease_that_is_free, a_lease_that_is_renewed, a_lease_that_is_given_back)
OPEN: tuple[Case, ...] = (an_opening_with_other_headroom,)
