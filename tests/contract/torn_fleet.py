"""register, beat, cordon, leave, evict and recall, in states that make them do all their kinds of work."""

from operator import attrgetter

from taskyard.dispatcher.cell.contract import Evicting, Registered, Registration, Report
from tests.contract.faulty import SMALL_PAGE
from tests.contract.rig import UNENDING_MS, Rig
from tests.contract.torn_cases import BIG, FAR_MS, OF_B, Call, Case, FaultyRig, evicted_last, fill, lapse, overfill

NEVER_READ = Report("0-0")


def registering(
    rig: Rig, instance: str, epoch: str, *, is_resuming: bool = False, steps: int = 0, **capacity: int
) -> Call:
    """Make a call that registers at once."""
    offer = Registration(("a", "b"), capacity, {"zone": "1"}, UNENDING_MS, {"model": "m"})
    return Call(
        lambda: rig.cell.register(instance, epoch, offer, is_resuming=is_resuming),
        Registered,
        of=type,
        steps=steps,
    )


def beating(rig: Rig, instance: str, cursor: str, reason: str) -> Call:
    """Make a call that beats and is told this reason."""
    report = Report(cursor, 1, 2, 3)
    return Call(lambda: rig.cell.beat(instance, rig.epochs[instance], report), reason, of=attrgetter("reason"))


async def an_instance_that_pulls(rig: Rig) -> Call:
    await rig.register("i0", slots=1, memory_mib=8)
    await rig.cell.cordon("i0", "closed")
    await rig.apply(rig.entry("t1"), rig.entry("b1", OF_B), rig.entry("big", BIG), rig.entry("t2"))
    return registering(rig, "i1", "0001-i1", slots=3, gpu=1, cpu_milli=5)


async def one_that_resumes(rig: Rig) -> Call:
    await rig.apply(rig.entry("t1"))
    assert await rig.cell.expire(limit=9) == 0, "it is noted that nobody serves the type"
    return registering(rig, "i1", "0001-i1", is_resuming=True, slots=3)


async def one_that_is_registered(rig: Rig) -> Call:
    await rig.register("i1", slots=2)
    return registering(rig, "i1", rig.epochs["i1"], slots=2)


async def one_over_an_older_registration(rig: Rig) -> Call:
    await overfill(rig, "i1", 2, "t1", "t2", "waits")
    await rig.cell.beat("i1", rig.epochs["i1"], Report((await rig.find("t1")).at))
    return registering(rig, "i1", "0002-i1", steps=2, slots=4)


async def a_page_of_an_older_registration(rig: Rig) -> Call:
    names = [f"t{n}" for n in range(SMALL_PAGE + 1)]
    await overfill(rig, "i1", len(names), *names)
    offer = Registration(("a",), {"slots": 2}, {})
    return Call(lambda: rig.cell.register("i1", "0002-i1", offer), Evicting(1))


async def a_beat(rig: Rig) -> Call:
    await rig.register("i1")
    await rig.cell.beat("i1", rig.epochs["i1"], NEVER_READ)
    return beating(rig, "i1", "1-1", "")


async def unread(rig: Rig, instance: str, *names: str) -> None:
    """Fill an instance that then beats without having read; what it has may be recalled."""
    await fill(rig, instance, *names)
    await rig.let_pass(0)
    await rig.cell.beat(instance, rig.epochs[instance], NEVER_READ)


async def a_beat_that_opens_what_a_recall_closed(rig: Rig) -> Call:
    await rig.register("i1", slots=2)
    await unread(rig, "i1", "t1", "t2")
    assert await rig.cell.recall(["i1"], min_age_ms=0, limit=9) == 2
    return beating(rig, "i1", "99999999999999-0", "")


async def a_closing_that_ends_a_hold(rig: Rig) -> Call:
    await rig.register("i1", slots=2)
    await fill(rig, "i1", "filler")
    await rig.apply(rig.entry("big", BIG))
    assert await rig.cell.hold(BIG, "i1")
    return Call(lambda: rig.cell.cordon("i1", "closed"), reply=True)


async def a_closing_by_its_worker(rig: Rig) -> Call:
    await rig.register("i1", slots=2)
    return Call(lambda: rig.cell.close_instance("i1", rig.epochs["i1"], "draining"), reply=True)


async def an_opening_that_pulls(rig: Rig) -> Call:
    await rig.register("i1", "a", "b", slots=3)
    await rig.cell.cordon("i1", "closed")
    await rig.apply(rig.entry("t1"), rig.entry("b1", OF_B), rig.entry("big", BIG))
    return Call(lambda: rig.cell.cordon("i1", ""), reply=True)


async def leaving(rig: Rig) -> None:
    """Fill an instance with a page and one more; the second may go to another instance, the last is worn out."""
    names = [f"t{n}" for n in range(SMALL_PAGE)]
    await rig.register("i1", slots=SMALL_PAGE + 1)
    await fill(rig, "i1", *names)
    await fill(rig, "i1", "worn", attempts=1)
    await rig.register("i2", slots=1)
    await rig.cell.beat("i1", rig.epochs["i1"], Report("99999999999999-0"))


async def a_first_page_of_one_that_leaves(rig: Rig) -> Call:
    await leaving(rig)
    return Call(lambda: rig.cell.leave("i1", rig.epochs["i1"]), Evicting(1))


async def a_last_page_of_one_that_leaves(rig: Rig) -> Call:
    await leaving(rig)
    assert await rig.cell.leave("i1", rig.epochs["i1"]) == Evicting(1)
    return Call(lambda: rig.cell.leave("i1", rig.epochs["i1"]), Evicting(0), steps=1)


async def lapsed(rig: FaultyRig) -> None:
    """Leave an instance of two types, one of which another serves too, with a lease that ran out and four tasks."""
    await evicted_last(rig.connection, FAR_MS)
    await rig.register("i1", "a", "b", slots=4, lease_ms=0)
    await fill(rig, "i1", "t1", "t2", "t3", "t4")
    await rig.cell.beat("i1", rig.epochs["i1"], Report((await rig.find("t1")).at))
    await rig.register("i2", slots=1)
    await lapse(rig, "i1")


async def leases_that_are_spared(rig: FaultyRig) -> Call:
    for name in ("i1", "i2"):
        await rig.register(name, lease_ms=0)
        await lapse(rig, name)
    await rig.apply(rig.entry("strange", "n|x|slots=1|"))
    assert await rig.cell.expire(limit=9) == 0
    await evicted_last(rig.connection, 1)
    return Call(lambda: rig.cell.evict(limit=3), None)


async def a_first_page_of_one_whose_lease_ran_out(rig: FaultyRig) -> Call:
    await lapsed(rig)
    return Call(lambda: rig.cell.evict(limit=3), ("i1", 1))


async def a_last_page_of_one_whose_lease_ran_out(rig: FaultyRig) -> Call:
    await lapsed(rig)
    assert await rig.cell.evict(limit=3) == ("i1", 1)
    return Call(lambda: rig.cell.evict(limit=3), ("i1", 0), steps=1)


async def an_eviction_of_one_that_is_held(rig: FaultyRig) -> Call:
    await evicted_last(rig.connection, FAR_MS)
    await rig.register("i1", slots=2, lease_ms=0)
    await fill(rig, "i1", "t1")
    await rig.apply(rig.entry("big", BIG))
    assert await rig.cell.hold(BIG, "i1")
    await lapse(rig, "i1")
    return Call(lambda: rig.cell.evict(limit=3), ("i1", 0), steps=1)


async def a_recall_of_two_instances(rig: Rig) -> Call:
    """What the first gives back goes to the third, then to the park."""
    await rig.register("i1", slots=2)
    await unread(rig, "i1", "t1", "t2")
    await rig.register("i2", "z", slots=2)
    await unread(rig, "i2", "t3", "t4")
    await rig.register("i3", slots=1)
    return Call(lambda: rig.cell.recall(["i1", "none", "i2"], min_age_ms=0, limit=9), 4, steps=1)


async def a_recall_with_a_cursor_that_is_none(rig: Rig) -> Call:
    await rig.register("i1", slots=2)
    await fill(rig, "i1", "t1")
    await rig.let_pass(0)
    await rig.cell.beat("i1", rig.epochs["i1"], Report("nonsense"))
    return Call(lambda: rig.cell.recall(["i1"], min_age_ms=0, limit=3), 1)


REGISTER: tuple[Case, ...] = (
    an_instance_that_pulls,
    one_that_resumes,
    one_that_is_registered,
    one_over_an_older_registration,
    a_page_of_an_older_registration,
)
BEAT: tuple[Case, ...] = (a_beat, a_beat_that_opens_what_a_recall_closed)
CORDON: tuple[Case, ...] = (a_closing_that_ends_a_hold, a_closing_by_its_worker, an_opening_that_pulls)
LEAVE: tuple[Case, ...] = (a_first_page_of_one_that_leaves, a_last_page_of_one_that_leaves)
EVICT: tuple[Case, ...] = (
    leases_that_are_spared,
    a_first_page_of_one_whose_lease_ran_out,
    a_last_page_of_one_whose_lease_ran_out,
    an_eviction_of_one_that_is_held,
)
RECALL: tuple[Case, ...] = (a_recall_of_two_instances, a_recall_with_a_cursor_that_is_none)
