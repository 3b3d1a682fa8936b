"""apply, finish and resync, in states that make them do all their kinds of work."""

from operator import attrgetter
from typing import Any

from msgspec import structs

from taskyard.dispatcher.cell.contract import Ending, Range, Registration, Running
from tests.contract.rig import PARTITION, SOON_MS, UNENDING_MS, Rig
from tests.contract.torn_cases import BIG, FAR_MS, OF_B, Call, Case, fill, overfill, running

# apply


async def a_batch_that_does_everything(rig: Rig) -> Call:
    await rig.register("i1", slots=2)
    await rig.register("i2", "b", slots=1)
    await fill(rig, "i1", "known")
    entries = [
        rig.entry("placed", key=1, deadline_ms=FAR_MS),
        rig.entry("known", key=2),
        rig.entry("open", OF_B, key=3),
        rig.entry("parked", key=4, deadline_ms=FAR_MS),
        rig.entry("behind", key=5),
        rig.entry("dead", key=6, deadline_ms=1),
        rig.entry("unserved", "c|x|slots=1|", key=7),
    ]
    ranges = [Range(PARTITION, rig.offset, 9), Range("topic:1", 0, 9)]
    batch = rig.batch(entries, ["i1"], ranges=ranges, refused=[b"poison", b"venom"])

    return Call(lambda: rig.cell.apply(batch), "1koppxp", of=attrgetter("results"))


async def a_batch_behind_parked_tasks_that_its_candidate_pulls(rig: Rig) -> Call:
    await rig.park_beside_a_free_slot("i1", "waits", key=5, deadline_ms=FAR_MS)
    await rig.register("i2", "z", slots=2)
    batch = rig.batch([rig.entry("behind", key=6), rig.entry("z1", "n|z|slots=1|", key=7)], ["i1", "i2"])
    batch = batch._replace(tasks=[structs.replace(task, candidates=(n,)) for n, task in enumerate(batch.tasks)])

    return Call(lambda: rig.cell.apply(batch), "p1", of=attrgetter("results"))


async def a_batch_of_refused_records_alone(rig: Rig) -> Call:
    batch = rig.batch([], ranges=[Range(PARTITION, 0, 3), Range("topic:1", 0, 1)], refused=[b"poison"] * 3)

    return Call(lambda: rig.cell.apply(batch), "", of=attrgetter("results"))


# finish


async def endings_of_every_kind(rig: Rig) -> Call:
    """The instance is closed, so what comes again goes to the park or to the other one."""
    await rig.register("i1", slots=8)
    await rig.register("i2", slots=1)
    await fill(rig, "i1", "ok", "again", "parked", "later", "gives-up", "unstarted", "stale")
    await fill(rig, "i1", "worn", attempts=1)
    await rig.cell.cordon("i1", "closed")
    far = UNENDING_MS
    kinds = [
        ("ok", "succeeded", 0), ("again", "retry", 0), ("parked", "retry", 0), ("later", "retry", far),
        ("gives-up", "gave_up", 0), ("unstarted", "unstarted", 0), ("worn", "retry", 0),
    ]  # fmt: skip
    endings = [await rig.ending(name, how, b"detail", delay) for name, how, delay in kinds]
    endings += [endings[0], (await rig.ending("stale"))._replace(attempt=2)]
    accepted = tuple(n < len(kinds) for n in range(len(endings)))
    return Call(lambda: rig.cell.finish("i1", rig.epochs["i1"], endings), (accepted, 0), steps=1)


async def endings_whose_capacity_pulls(rig: Rig) -> Call:
    await rig.register("i1", "a", "b", slots=3)
    await fill(rig, "i1", "t1", "t2", "t3")
    soon_ms = await rig.soon()
    await rig.apply(
        rig.entry("late", key=1, deadline_ms=soon_ms),
        rig.entry("big", BIG, key=2, deadline_ms=FAR_MS),
        rig.entry("of-b", OF_B, key=3),
        rig.entry("left", key=4),
    )
    await rig.let_pass(SOON_MS)
    endings = [await rig.ending(name) for name in ("t1", "t2", "t3")]
    return Call(lambda: rig.cell.finish("i1", rig.epochs["i1"], endings), ((True,) * 3, 2))


async def an_ending_that_serves_a_hold(rig: Rig) -> Call:
    await rig.register("i1", slots=2)
    await fill(rig, "i1", "t1")
    await rig.apply(rig.entry("big", BIG, key=5))
    assert await rig.cell.hold(BIG, "i1")
    ending = await rig.ending("t1")
    return Call(lambda: rig.cell.finish("i1", rig.epochs["i1"], [ending]), ((True,), 1))


async def late_successes(rig: Rig) -> Call:
    """Of tasks that are parked, wait for their retry, are elsewhere by now, and are not known at all."""
    await rig.register("i1", slots=3)
    await fill(rig, "i1", "parked", "later", "elsewhere")
    parked, later, elsewhere = [await rig.ending(name) for name in ("parked", "later", "elsewhere")]
    await rig.cell.cordon("i1", "closed")
    await rig.register("i2", slots=1)
    await rig.finish("i1", elsewhere._replace(how="unstarted"), parked._replace(how="unstarted"))
    await rig.finish("i1", later._replace(how="retry", delay_ms=UNENDING_MS))
    assert (await rig.find("elsewhere")).instance == "i2"
    unknown = Ending("unknown", "5-5", 1, "succeeded", b"outcome")
    late = [later, parked, later._replace(attempt=2), elsewhere, unknown, unknown]
    accepted = (False, True, True, True, True, False)
    return Call(lambda: rig.cell.finish("i1", rig.epochs["i1"], late), (accepted, 0), steps=4)


# resync


def resyncing(rig: Rig, instance: str, holds: list[Running], *, adopted: str) -> Call:
    """Make a call that must adopt (or leave in place) those marked `y` and stop the others."""

    def of(reply: Any) -> object:
        return "".join("y" if stream_id else "n" for stream_id in reply.stream_ids)

    return Call(lambda: rig.cell.resync(instance, rig.epochs[instance], holds), adopted, of)


async def an_adoption_from_every_place(rig: Rig) -> Call:
    await rig.register("i1", slots=2)
    await fill(rig, "i1", "retried", "here")
    second = await running(rig, "retried")
    await rig.finish("i1", await rig.ending("retried", "retry", b"cause", UNENDING_MS))
    await fill(rig, "i1", "done")
    done = await running(rig, "done")
    await rig.finish("i1", await rig.ending("done"))
    parked = [rig.entry("other", BIG, key=3), rig.entry("parked", BIG, key=4, deadline_ms=FAR_MS)]
    assert await rig.apply(*parked) == "pp"
    await rig.cell.cordon("i1", "closed")
    await rig.register("i2", "z", slots=6)
    retried = second._replace(attempt=2, entry=second.entry[:1] + b"\x02" + second.entry[2:])
    holds = [
        Running("parked", "5-5", 1, parked[1]),
        Running("unknown", "5-6", 1, rig.entry("unknown")),
        Running("unknown", "5-6", 1, rig.entry("unknown")),
        done,
        retried,
        await running(rig, "here"),
        Running("too-big", "5-7", 1, rig.entry("too-big", "n|a|slots=9|")),
    ]
    return resyncing(rig, "i2", holds, adopted="yyynynn")


async def an_adoption_that_ends_a_hold_and_empties_a_park(rig: Rig) -> Call:
    await overfill(rig, "i1", 2, "t1", "t2")
    await rig.apply(rig.entry("big", BIG, key=5))
    assert await rig.cell.hold(BIG, "i1")
    await rig.register("i2", "z", slots=2)
    big = Running("big", "5-5", 1, rig.entry("big", BIG, key=5))
    return resyncing(rig, "i2", [big], adopted="y")


async def an_adoption_on_an_instance_that_is_held(rig: Rig) -> Call:
    await rig.register("i1", slots=2)
    await fill(rig, "i1", "filler")
    await rig.apply(rig.entry("big", BIG, key=5))
    assert await rig.cell.hold(BIG, "i1")
    return resyncing(rig, "i1", [Running("t1", "5-5", 1, rig.entry("t1"))], adopted="y")


async def a_last_page_of_one_that_resumes(rig: Rig) -> Call:
    """It opens and pulls, of the task that it still ran and of those that were parked meanwhile."""
    await rig.apply(rig.entry("waits-1"), rig.entry("waits-2"), rig.entry("waits-3"))
    rig.epochs["i1"] = "0001-i1"
    offer = Registration(("a",), {"slots": 3}, {})
    await rig.cell.register("i1", rig.epochs["i1"], offer, is_resuming=True)
    return resyncing(rig, "i1", [Running("t1", "5-5", 1, rig.entry("t1"))], adopted="y")


APPLY: tuple[Case, ...] = (
    a_batch_that_does_everything,
    a_batch_behind_parked_tasks_that_its_candidate_pulls,
    a_batch_of_refused_records_alone,
)
FINISH: tuple[Case, ...] = (
    endings_of_every_kind,
    endings_whose_capacity_pulls,
    an_ending_that_serves_a_hold,
    late_successes,
)
RESYNC: tuple[Case, ...] = (
    an_adoption_from_every_place,
    an_adoption_that_ends_a_hold_and_empties_a_park,
    an_adoption_on_an_instance_that_is_held,
    a_last_page_of_one_that_resumes,
)
