"""apply: a batch takes effect once, with its offsets."""

import pytest

from taskyard.dispatcher.cell.contract import MAX_BATCH, Applied, CellConfig, Fenced, Full, Range
from tests.contract.rig import PARTITION, Rig

BIG = "n|a|slots=2|"
SMALL = "n|a|slots=1|"
CRITICAL = "c|a|slots=1|"


async def test_a_batch_stores_the_offset_up_to_which_it_has_been_applied(rig: Rig) -> None:
    ranges = [Range(PARTITION, 0, 1), Range("topic:1", 0, 9)]

    await rig.apply(rig.entry("t1"), ranges=ranges)

    assert await rig.cell.applied([PARTITION, "topic:1", "topic:2"]) == {PARTITION: 1, "topic:1": 9}
    assert await rig.cell.applied([]) == {}


async def test_a_batch_that_starts_elsewhere_is_refused_and_changes_nothing(rig: Rig) -> None:
    await rig.apply(rig.entry("t1"))
    late = rig.batch([rig.entry("t2")], ranges=[Range(PARTITION, 5, 6), Range("topic:1", 0, 1)], refused=[b"poison"])

    refused = await rig.cell.apply(late)

    assert refused == Fenced({PARTITION: 1})
    assert await rig.view.find("t2") is None
    assert await rig.cell.outbox(count=10) == []
    assert await rig.cell.applied([PARTITION, "topic:1"]) == {PARTITION: 1}


async def test_a_batch_that_is_sent_again_is_refused(rig: Rig) -> None:
    batch = rig.batch([rig.entry("t1")])
    await rig.cell.apply(batch)

    assert await rig.cell.apply(batch) == Fenced({PARTITION: 1})
    assert await rig.parked() == ["t1"]


async def test_a_partition_that_was_never_applied_starts_at_its_beginning_or_where_that_is_told(rig: Rig) -> None:
    batch = rig.batch([rig.entry("t1")], ranges=[Range("topic:9", 70, 71)])
    assert await rig.cell.apply(batch) == Fenced({})

    assert await rig.apply(ranges=[Range("topic:9", 70, 70)]) == ""
    assert await rig.cell.apply(batch._replace(ranges=[Range("topic:9", 71, 72)])) == Fenced({"topic:9": 70})
    assert isinstance(await rig.cell.apply(batch), Applied)

    assert await rig.cell.applied(["topic:9"]) == {"topic:9": 71}


async def test_an_id_that_the_cell_knows_is_skipped_wherever_the_task_is(rig: Rig) -> None:
    await rig.register("i1", slots=3)
    names = ["queued", "finished", "dead", "later", "parked"]
    await rig.apply(*map(rig.entry, names[:3]), to=["i1"])
    await rig.finish("i1", await rig.ending("finished"), await rig.ending("dead", "gave_up"))
    await rig.apply(rig.entry("later"), to=["i1"])
    await rig.finish("i1", await rig.ending("later", "retry", b"no luck", delay_ms=60_000))
    await rig.apply(rig.entry("parked", "n|unserved|slots=1|"))

    assert await rig.apply(*map(rig.entry, names), to=["i1"]) == "kkkkk"
    assert await rig.queued("i1") == ["queued"]


async def test_an_id_that_comes_twice_in_one_batch_is_placed_once(rig: Rig) -> None:
    await rig.register("i1")

    assert await rig.apply(rig.entry("t1"), rig.entry("t1"), to=["i1"]) == "1k"
    assert await rig.queued("i1") == ["t1"]


async def test_candidates_are_tried_in_their_order(rig: Rig) -> None:
    for name in ("i1", "i2", "i3"):
        await rig.register(name, slots=1)

    tasks = [rig.entry(f"t{n}") for n in range(4)]

    assert await rig.apply(*tasks, to=["i2", "i3", "i1"]) == "123p"
    assert [await rig.queued(name) for name in ("i1", "i2", "i3")] == [["t2"], ["t0"], ["t1"]]
    assert [(await rig.find(f"t{n}")).via for n in range(3)] == ["1", "2", "3"]


async def test_a_candidate_that_has_registered_anew_since_the_plan_is_not_used(rig: Rig) -> None:
    await rig.register("i1", epoch="aaaa-1")
    stale = rig.batch([rig.entry("t1", "n|b|slots=1|")], ["i1"])
    await rig.register("i1", epoch="bbbb-1")

    applied = await rig.cell.apply(stale)

    assert isinstance(applied, Applied)
    assert applied.results == "p"
    assert await rig.queued("i1") == []


async def test_without_a_fitting_candidate_an_open_instance_of_the_type_takes_the_task(rig: Rig) -> None:
    await rig.register("full", slots=1)
    await rig.apply(rig.entry("t1"), to=["full"])
    await rig.register("other", "b")
    await rig.register("open", "b", "a")

    assert await rig.apply(rig.entry("t2"), to=["full"]) == "o"
    assert await rig.queued("open") == ["t2"]
    assert (await rig.find("t2")).via == "o"


async def test_a_task_that_fits_nowhere_is_parked_in_order_of_its_key(rig: Rig) -> None:
    await rig.apply(rig.entry("late", key=30.5), rig.entry("early", key=10.25), rig.entry("mid", key=20))

    assert await rig.parked() == ["early", "mid", "late"]
    [shape] = await rig.view.shapes()
    assert shape._replace(head_arrived_ms=0) == (SMALL, 3, 10.25, 0, 0)
    assert await rig.find("mid") == ("parked", "20", 1, "", SMALL, "", (await rig.view.parked(SMALL, count=2))[1])


async def test_equal_keys_leave_the_park_in_order_of_their_bytes(rig: Rig) -> None:
    await rig.apply(*[rig.entry(name, key=5, arrived_ms=7) for name in ("b", "c", "a")])

    assert await rig.parked() == ["a", "b", "c"]


async def test_a_task_does_not_pass_an_earlier_parked_one_of_its_shape(rig: Rig) -> None:
    await rig.park_beside_a_free_slot("i1", "first", key=10)

    assert await rig.apply(rig.entry("second", key=10), rig.entry("third", key=11)) == "pp"
    assert sorted(await rig.parked()) == ["first", "second", "third"]
    assert await rig.apply(rig.entry("earlier", key=9)) == "o"


async def test_the_candidate_of_a_task_behind_a_parked_one_pulls_in_the_same_call(rig: Rig) -> None:
    await rig.park_beside_a_free_slot("i1", "first", key=10)

    assert await rig.apply(rig.entry("second", key=20), to=["i1"]) == "p"
    assert await rig.parked() == ["second"]
    assert (await rig.find("first")).via == "s"


async def test_only_critical_tasks_use_the_headroom(rig: Rig) -> None:
    await rig.cell.open(CellConfig(headroom_permille=500))
    await rig.register("i1", slots=4)
    assert (await rig.view.vectors())["i1"].headroom == 2

    assert await rig.apply(*[rig.entry(f"n{n}") for n in range(3)], to=["i1"]) == "11p"
    assert await rig.apply(*[rig.entry(f"c{n}", CRITICAL) for n in range(3)], to=["i1"]) == "11p"


async def test_the_headroom_leaves_at_least_one_slot_to_the_others(rig: Rig) -> None:
    await rig.cell.open(CellConfig(headroom_permille=1000))
    await rig.register("i1", slots=1)
    await rig.register("i2", slots=3)

    assert {name: vector.headroom for name, vector in (await rig.view.vectors()).items()} == {"i1": 0, "i2": 2}


async def test_an_open_instance_without_the_wanted_labels_does_not_take_the_task(rig: Rig) -> None:
    await rig.register("plain", labels={"zone": "a"})
    wanted = "n|a|slots=1|gpu=yes,zone=a"

    assert await rig.apply(rig.entry("t1", wanted)) == "p"
    await rig.register("right", labels={"zone": "a", "gpu": "yes"})

    assert await rig.queued("right") == ["t1"]


async def test_every_resource_of_the_need_is_taken_and_must_be_free(rig: Rig) -> None:
    await rig.register("i1", slots=4, cpu_milli=1000, memory_mib=512)
    need = "n|a|cpu_milli=400,slots=1|"

    assert await rig.apply(*[rig.entry(f"t{n}", need) for n in range(3)], to=["i1"]) == "11p"
    assert await rig.free("i1") == {"slots": 2, "cpu_milli": 200, "memory_mib": 512}


async def test_a_task_that_needs_an_undeclared_resource_is_parked_until_one_declares_it(rig: Rig) -> None:
    await rig.register("i1", slots=4)
    need = "n|a|gpu=1,slots=1|"

    assert await rig.apply(rig.entry("t1", need), rig.entry("t2", need), to=["i1"]) == "pp"
    await rig.register("i2", slots=4, gpu=1)

    assert await rig.queued("i2") == ["t1"]


async def test_an_instance_older_than_a_resource_does_not_take_a_task_that_needs_it(rig: Rig) -> None:
    await rig.register("old", slots=4)
    await rig.register("new", "b", slots=4, gpu=1)

    assert await rig.apply(rig.entry("t1", "n|a|gpu=1,slots=1|"), to=["old"]) == "p"


async def test_a_need_of_nothing_is_no_need(rig: Rig) -> None:
    await rig.register("old", slots=4)
    await rig.register("new", "b", slots=4, gpu=1)

    assert await rig.apply(rig.entry("t1", "n|a|gpu=0,slots=1,tpu=0|"), to=["old"]) == "1"
    await rig.finish("old", await rig.ending("t1"))
    assert await rig.free("old") == {"slots": 4}


async def test_refused_records_come_into_the_outbox_with_the_offsets(rig: Rig) -> None:
    batch = rig.batch([], ranges=[Range(PARTITION, 0, 2)], refused=[b"poison", b"\x00\xff"])

    applied = await rig.cell.apply(batch)

    assert isinstance(applied, Applied)
    assert applied[:3] == ("", 0, 2)
    assert [(out.kind, out.body) for out in await rig.cell.outbox(count=10)] == [
        ("refused", b"poison"),
        ("refused", b"\x00\xff"),
    ]
    assert await rig.cell.applied([PARTITION]) == {PARTITION: 2}


async def test_a_batch_is_refused_when_the_share_of_the_park_is_used_up(rig: Rig) -> None:
    await rig.cell.open(CellConfig(parked_limit=4))
    await rig.apply(rig.entry("t1"), rig.entry("t2"))
    more = rig.batch([rig.entry("t3")])

    refused = await rig.cell.apply(more._replace(parked_permille=500))

    level = await rig.view.level()
    assert refused == Full(2, level.parked_bytes, 0)
    assert await rig.cell.applied([PARTITION]) == {PARTITION: 2}
    assert not isinstance(await rig.cell.apply(more._replace(parked_permille=501)), Full)


async def test_a_batch_is_refused_when_the_bytes_of_the_park_are_used_up(rig: Rig) -> None:
    task = rig.entry("t1")
    await rig.cell.open(CellConfig(parked_bytes_limit=len(task)))
    await rig.apply(task)

    assert await rig.cell.apply(rig.batch([rig.entry("t2")])) == Full(1, len(task), 0)


async def test_a_batch_is_refused_when_the_outbox_is_full_until_it_is_trimmed(rig: Rig) -> None:
    await rig.cell.open(CellConfig(outbox_limit=1))
    await rig.apply(refused=[b"poison"])
    more = rig.batch([rig.entry("t1")])
    assert await rig.cell.apply(more) == Full(0, 0, 1)

    assert await rig.cell.trim([out.stream_id for out in await rig.cell.outbox(count=10)]) == 1
    assert not isinstance(await rig.cell.apply(more), Full)


async def test_a_fence_is_told_before_a_full_park(rig: Rig) -> None:
    await rig.cell.open(CellConfig(parked_limit=1))
    first = rig.batch([rig.entry("t1")])
    await rig.cell.apply(first)

    assert await rig.cell.apply(first) == Fenced({PARTITION: 1})


async def test_a_whole_batch_of_tasks_is_applied_in_one_call(rig: Rig) -> None:
    await rig.register("i1", slots=MAX_BATCH)
    tasks = [rig.entry(f"t{n}") for n in range(MAX_BATCH)]

    assert await rig.apply(*tasks, to=["i1"]) == "1" * MAX_BATCH
    assert await rig.free("i1") == {"slots": 0}
    ending = [await rig.ending(f"t{n}") for n in range(MAX_BATCH)]
    assert all((await rig.finish("i1", *ending)).accepted)
    assert await rig.free("i1") == {"slots": MAX_BATCH}


async def test_a_larger_batch_is_the_callers_bug(rig: Rig) -> None:
    batch = rig.batch([rig.entry("t1")])

    with pytest.raises(ValueError, match="2001 tasks"):
        await rig.cell.apply(batch._replace(tasks=list(batch.tasks) * (MAX_BATCH + 1)))


async def test_a_need_of_several_slots_waits_until_so_many_are_free(rig: Rig) -> None:
    await rig.register("i1", slots=2)

    assert await rig.apply(rig.entry("s", SMALL, key=1), rig.entry("b", BIG, key=2), to=["i1"]) == "1p"
    assert (await rig.finish("i1", await rig.ending("s"))).pulled == 1
    assert await rig.queued("i1") == ["b"]


async def test_a_task_whose_deadline_has_passed_when_it_arrives_is_dead(rig: Rig) -> None:
    await rig.register("i1")

    assert await rig.apply(rig.entry("late", deadline_ms=1), rig.entry("good"), to=["i1"]) == "x1"

    assert (await rig.find("late")).state == "dead"
    assert [(out.kind, out.reason) for out in await rig.cell.outbox(count=9)] == [("dead", "deadline")]
    assert await rig.apply(rig.entry("late", deadline_ms=1), to=["i1"]) == "k"


async def test_headroom_follows_the_settings(rig: Rig) -> None:
    await rig.register("i1", slots=10)

    await rig.cell.open(CellConfig(headroom_permille=300))

    assert (await rig.view.vectors())["i1"].headroom == 3
    assert await rig.apply(*[rig.entry(f"t{n}") for n in range(10)], to=["i1"]) == "1111111ppp"


@pytest.mark.parametrize("offset", [10**8, 12 * 10**8, 10**12, 5 * 10**15, 2**53 - 1])
async def test_a_large_round_offset_reads_back_as_it_is(rig: Rig, offset: int) -> None:
    await rig.apply(ranges=[Range("topic:7", offset, offset)])

    assert await rig.cell.applied(["topic:7"]) == {"topic:7": offset}
