"""finish: an attempt ends once, gives back just its vector, and what was freed takes the best parked task."""

import pytest

from taskyard.dispatcher.cell.contract import Ending, Finished, Refused
from taskyard.schemas.entry import decode_entry
from tests.contract.rig import SOON_MS, Rig

SHAPE = "n|a|slots=1|"


async def test_a_success_goes_to_the_outbox_and_frees_exactly_its_vector(rig: Rig) -> None:
    await rig.register("i1", slots=4, cpu_milli=1000)
    await rig.apply(rig.entry("t1", "n|a|cpu_milli=300,slots=2|"), rig.entry("t2"), to=["i1"])

    assert await rig.finish("i1", await rig.ending("t1")) == ((True,), 0)

    assert await rig.free("i1") == {"slots": 3, "cpu_milli": 1000}
    assert [(out.kind, out.body) for out in await rig.cell.outbox(count=9)] == [("outcome", b"outcome")]
    place = await rig.find("t1")
    assert (place.state, place.attempt, place.instance) == ("finished", 1, "i1")
    assert abs(int(place.at) - (await rig.view.level()).now_ms) < 60_000


async def test_only_the_first_finish_of_an_attempt_counts(rig: Rig) -> None:
    await rig.register("i1")
    await rig.apply(rig.entry("t1"), to=["i1"])
    ending = await rig.ending("t1")

    assert (await rig.finish("i1", ending, ending)).accepted == (True, False)
    assert (await rig.finish("i1", ending)).accepted == (False,)

    assert await rig.free("i1") == {"slots": 2}
    assert len(await rig.cell.outbox(count=9)) == 1


async def test_a_finish_of_nothing_is_nothing(rig: Rig) -> None:
    await rig.register("i1")

    assert await rig.cell.finish("i1", rig.epochs["i1"], []) == Finished((), 0)


async def test_an_ending_that_is_not_of_the_current_attempt_or_placement_does_not_count(rig: Rig) -> None:
    await rig.register("i1")
    await rig.register("i2")
    await rig.apply(rig.entry("t1"), to=["i1"])
    ending = await rig.ending("t1")

    others = await rig.finish("i2", ending._replace(attempt=2), ending._replace(how="retry"))
    wrong = await rig.finish("i1", ending._replace(attempt=2), ending._replace(stream_id="1-1", how="gave_up"))

    assert (others.accepted, wrong.accepted) == ((False, False), (False, False))
    assert await rig.queued("i1") == ["t1"]


async def test_a_stream_id_that_is_none_does_not_count_even_if_it_reads_like_a_part_of_the_place(rig: Rig) -> None:
    await rig.register("i1")
    await rig.apply(rig.entry("t1"), to=["i1"])
    ending, via = await rig.ending("t1", "retry"), (await rig.find("t1")).via

    assert (await rig.finish("i1", ending._replace(stream_id=f"{via}|{ending.stream_id}"))).accepted == (False,)
    assert await rig.queued("i1") == ["t1"]


async def test_the_first_success_of_the_current_attempt_counts_wherever_the_cell_has_the_entry(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("queued"), rig.entry("parked"), to=["i1"])
    queued = await rig.ending("queued")
    await rig.register("i2", "other")
    parked, unknown = (queued._replace(task_id=name, stream_id="1-1") for name in ("parked", "unknown"))

    assert (await rig.finish("i2", queued, parked, unknown)).accepted == (True, True, True)

    assert (await rig.finish("i1", queued, parked, unknown)).accepted == (False, False, False)
    assert await rig.free("i1") == {"slots": 1}
    assert len(await rig.cell.outbox(count=9)) == 3
    assert await rig.apply(rig.entry("unknown")) == "k"
    assert await rig.view.unfinished() == {}


async def test_a_late_success_of_a_task_that_waits_for_its_retry_counts_no_more(rig: Rig) -> None:
    await rig.register("i1")
    await rig.apply(rig.entry("t1"), to=["i1"])
    success = await rig.ending("t1")
    await rig.finish("i1", await rig.ending("t1", "retry", delay_ms=60_000))

    assert (await rig.finish("i1", success)).accepted == (False,)
    assert (await rig.finish("i1", success._replace(attempt=2))).accepted == (True,)
    assert (await rig.view.level()).later == 0


async def test_a_zombie_finishes_nothing(rig: Rig) -> None:
    await rig.register("i1")
    await rig.apply(rig.entry("t1"), to=["i1"])
    ending, zombie = await rig.ending("t1"), rig.epochs["i1"]
    await rig.register("i1")

    assert await rig.cell.finish("i1", zombie, [ending]) == Refused("stale")
    assert await rig.cell.outbox(count=9) == []


async def test_a_retry_at_once_counts_the_attempt_and_keeps_the_cause(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("t1"), to=["i1"])
    first = await rig.ending("t1", "retry", b"broke\tin\ntwo")

    assert await rig.finish("i1", first) == ((True,), 1)

    place = await rig.find("t1")
    assert (place.state, place.attempt, place.via, place.instance) == ("queued", 2, "u", "i1")
    assert place.entry is not None
    assert [(c.attempt, c.instance, c.reason) for c in place.entry.causes] == [(1, "i1", "broke in two")]
    assert (place.entry.receipt, place.entry.headers) == (b"receipt", (("trace", b"\x00\xff"),))
    assert place.entry.wire == b'{"id":"t1"}'
    assert (await rig.finish("i1", first)).accepted == (False,)


async def test_a_retry_with_a_delay_waits_outside_the_queues(rig: Rig) -> None:
    await rig.register("i1")
    await rig.apply(rig.entry("t1"), to=["i1"])

    await rig.finish("i1", await rig.ending("t1", "retry", b"busy", delay_ms=50_000))

    place, level = await rig.find("t1"), await rig.view.level()
    assert (place.state, place.attempt, level.later) == ("later", 2, 1)
    assert 40_000 < int(place.at) - level.now_ms <= 50_000
    assert await rig.free("i1") == {"slots": 2}
    assert await rig.cell.due(limit=10) == 0


async def test_a_retry_without_a_delay_backs_off_within_the_cap(rig: Rig) -> None:
    await rig.register("i1")
    await rig.apply(rig.entry("t1"), to=["i1"])
    before_ms = (await rig.view.level()).now_ms

    await rig.finish("i1", await rig.ending("t1", "retry", b"busy", delay_ms=-1))

    place, level = await rig.find("t1"), await rig.view.level()
    assert place.state == "later"
    assert before_ms <= int(place.at) <= level.now_ms + 20


async def test_a_retry_after_the_last_attempt_is_dead(rig: Rig) -> None:
    await rig.register("i1")
    await rig.apply(rig.entry("t1", attempts=1), to=["i1"])

    await rig.finish("i1", await rig.ending("t1", "retry", b"broken", delay_ms=-1))

    [out] = await rig.cell.outbox(count=9)
    assert (out.kind, out.reason, out.cause, out.instance) == ("dead", "attempts", "broken", "i1")
    assert [c.reason for c in decode_entry(out.body).causes] == ["broken"]
    assert (await rig.find("t1")).state == "dead"


async def test_a_task_that_is_given_up_is_dead_whatever_attempts_it_has_left(rig: Rig) -> None:
    await rig.register("i1")
    await rig.apply(rig.entry("t1"), to=["i1"])

    await rig.finish("i1", await rig.ending("t1", "gave_up", "schön schlecht".encode()))

    [out] = await rig.cell.outbox(count=9)
    assert (out.reason, out.cause, out.instance) == ("gave_up", "schön schlecht", "i1")
    entry = decode_entry(out.body)
    assert (entry.attempt, [c.reason for c in entry.causes]) == (1, ["schön schlecht"])


async def test_a_task_that_is_given_back_unstarted_loses_no_attempt(rig: Rig) -> None:
    await rig.register("i1")
    await rig.register("i2", "b", "a")
    await rig.apply(rig.entry("t1"), to=["i1"])
    await rig.cell.cordon("i1", "draining")

    await rig.finish("i1", await rig.ending("t1", "unstarted", b""))

    place = await rig.find("t1")
    assert (place.instance, place.attempt, place.via) == ("i2", 1, "e")
    assert place.entry is not None
    assert (place.entry.evictions, place.entry.causes) == (0, ())


async def test_a_task_that_is_given_back_does_not_pass_a_parked_one_with_the_same_key(rig: Rig) -> None:
    await rig.park_beside_a_free_slot("i1", "first", key=1001)
    filler = await rig.find("filler")
    assert filler.entry is not None
    assert filler.entry.key_ms == 1001

    assert (await rig.finish("i1", await rig.ending("filler", "unstarted"))).pulled == 2
    assert (await rig.find("filler")).via == "u"


async def test_old_causes_make_room_for_new_ones(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("t1", attempts=9), to=["i1"])

    for n in range(1, 8):
        await rig.finish("i1", await rig.ending("t1", "retry", str(n).encode() * 1000))

    entry = (await rig.find("t1")).entry
    assert entry is not None
    assert [(c.attempt, c.reason) for c in entry.causes] == [(n, str(n) * 400) for n in range(4, 8)]


async def test_a_freed_slot_takes_the_earliest_task_among_all_types_of_the_instance(rig: Rig) -> None:
    await rig.register("i1", "a", "b", slots=1)
    await rig.apply(rig.entry("t0"), to=["i1"])
    await rig.apply(rig.entry("b2", "n|b|slots=1|", key=2), rig.entry("a3", key=3), rig.entry("c1", "n|c|slots=1|"))

    assert (await rig.finish("i1", await rig.ending("t0"))).pulled == 1
    assert await rig.queued("i1") == ["b2"]
    assert (await rig.find("b2")).via == "u"
    await rig.finish("i1", await rig.ending("b2"))
    assert await rig.queued("i1") == ["a3"]


async def test_a_task_that_does_not_fit_is_passed_by_a_later_one_that_does(rig: Rig) -> None:
    await rig.register("i1", slots=2, labels={"zone": "z1"})
    await rig.apply(rig.entry("t0"), rig.entry("t1"), to=["i1"])
    big, elsewhere = "n|a|slots=2|", "n|a|slots=1|zone=z2"
    await rig.apply(rig.entry("big", big, key=1), rig.entry("far", elsewhere, key=2), rig.entry("ok", key=3))

    assert (await rig.finish("i1", await rig.ending("t0"))).pulled == 1
    assert await rig.queued("i1") == ["t1", "ok"]


async def test_a_finish_may_pull_more_than_it_ended(rig: Rig) -> None:
    await rig.register("i1", slots=3)
    await rig.apply(rig.entry("big", "n|a|slots=3|"), to=["i1"])
    await rig.apply(*[rig.entry(f"t{n}", key=n) for n in range(4)])

    assert (await rig.finish("i1", await rig.ending("big"))).pulled == 3
    assert await rig.queued("i1") == ["t0", "t1", "t2"]


async def test_a_parked_task_whose_deadline_has_passed_is_not_pulled(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("t0"), to=["i1"])
    await rig.apply(rig.entry("late", key=1, deadline_ms=await rig.soon()), rig.entry("good", key=2))
    await rig.let_pass(SOON_MS)

    assert (await rig.finish("i1", await rig.ending("t0"))).pulled == 1

    assert await rig.queued("i1") == ["good"]
    assert [(out.kind, out.reason) for out in await rig.cell.outbox(count=9)] == [("outcome", ""), ("dead", "deadline")]
    assert await rig.cell.expire(limit=9) == 0


@pytest.mark.parametrize("how", ["succeeded", "retry", "gave_up", "unstarted"])
async def test_however_it_ends_an_attempt_leaves_the_queue_it_was_on(rig: Rig, how: str) -> None:
    await rig.register("i1")
    await rig.apply(rig.entry("t1"), to=["i1"])
    before: Ending = await rig.ending("t1", how)

    await rig.finish("i1", before)

    assert before.stream_id not in [d.stream_id for d in await rig.view.queue("i1", count=9)]


async def test_a_worker_reads_what_is_behind_its_cursor(rig: Rig) -> None:
    await rig.register("i1")
    await rig.register("i2")
    first, second = rig.entry("t1"), rig.entry("t2")
    await rig.apply(first, second, to=["i1"])

    both = await rig.cell.read({"i1": "0-0", "i2": "0-0"}, count=9, block_ms=100)
    one = await rig.cell.read({"i1": "0-0"}, count=1, block_ms=100)
    rest = await rig.cell.read({"i1": both[0].stream_id}, count=9, block_ms=100)

    assert [(d.instance, d.entry) for d in both] == [("i1", first), ("i1", second)]
    assert (one, rest) == (both[:1], both[1:])
    assert await rig.cell.read({"i1": both[1].stream_id}, count=9, block_ms=1) == []
    assert await rig.cell.read({"i1": both[1].stream_id}, count=9, block_ms=0) == []
    assert await rig.cell.read({}, count=9, block_ms=1) == []
