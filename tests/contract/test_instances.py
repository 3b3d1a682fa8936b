"""register, beat, cordon, leave, evict: an instance is its lease, its epoch and its vector."""

import pytest

from taskyard.dispatcher.cell.contract import Beaten, CellConfig, Evicting, Refused, Registered, Registration, Report
from taskyard.dispatcher.cell.twin_tick import AWAY_MS, SPARE_MS
from taskyard.schemas.entry import decode_entry
from taskyard.schemas.errors import DependencyError
from tests.contract.rig import SOON_MS, UNENDING_MS, Rig, twin_rig

SHAPE = "n|a|slots=1|"
PAGE = 200


async def evict_all(rig: Rig, instance: str) -> None:
    """Wait for the instance's lease to run out, and take back everything."""

    async def is_gone() -> bool:
        return await rig.cell.evict(limit=1000) == (instance, 0)

    await rig.until(is_gone, f"the eviction of {instance}")


async def test_a_registered_instance_can_be_seen_as_it_was_offered(rig: Rig) -> None:
    offer = Registration(("a", "b"), {"slots": 3, "memory_mib": 512}, {"zone": "z1"}, 5_000, {"model": "large"})

    registered = await rig.cell.register("i1", "epoch-1", offer)
    assert isinstance(registered, Registered)

    assert registered.cursor == "0-0"
    assert registered.generation == (await rig.cell.open(CellConfig())).generation
    [view] = await rig.view.instances()
    assert (view.id, view.tag, view.epoch, view.types) == ("i1", "epoc", "epoch-1", ("a", "b"))
    assert view.capacity == view.free == {"slots": 3, "memory_mib": 512}
    assert (view.labels, view.profile) == ({"zone": "z1"}, {"model": "large"})
    assert (view.state, view.reason, view.headroom) == ("open", "", 0)
    assert (view.reported, view.reported_ms) == (Report("0-0"), 0)
    assert view.lease_until_ms == view.registered_ms + 5_000 == registered.now_ms + 5_000


async def test_registering_again_with_the_same_epoch_only_renews_the_lease(rig: Rig) -> None:
    await rig.register("i1", slots=2, epoch="same")
    await rig.apply(rig.entry("t1"))
    [before] = await rig.view.instances()
    await rig.let_pass(2)

    again = await rig.register("i1", "b", slots=9, epoch="same")

    [after] = await rig.view.instances()
    assert again.cursor == "0-0"
    assert after.lease_until_ms > before.lease_until_ms
    assert after._replace(lease_until_ms=before.lease_until_ms) == before


async def test_a_new_instance_pulls_the_earliest_parked_tasks_of_all_its_types(rig: Rig) -> None:
    other = "n|b|slots=1|"
    await rig.apply(rig.entry("a3", key=3), rig.entry("b1", other, key=1), rig.entry("b2", other, key=2))

    await rig.register("i1", "a", "b", slots=2)

    assert await rig.queued("i1") == ["b1", "b2"]
    assert (await rig.find("b1")).via == "g"


async def test_a_new_registration_takes_back_what_the_former_one_had(rig: Rig) -> None:
    await rig.register("i1", slots=2)
    await rig.apply(rig.entry("t1", key=1), rig.entry("t2", key=2))
    await rig.cell.beat("i1", rig.epochs["i1"], Report((await rig.find("t1")).at))
    former = rig.epochs["i1"]

    await rig.register("i1", slots=1)

    assert await rig.queued("i1") == ["t1"]
    assert await rig.parked() == ["t2"]
    started, unread = (await rig.find("t1")).entry, (await rig.find("t2")).entry
    assert started is not None
    assert (started.attempt, started.evictions) == (2, 0)
    assert [(c.attempt, c.instance, c.reason) for c in started.causes] == [(1, "i1", "the instance registered anew")]
    assert unread is not None
    assert (unread.attempt, unread.evictions, unread.causes) == (1, 1, ())
    assert await rig.cell.beat("i1", former, Report("0-0")) == Refused("stale")


async def test_a_big_former_registration_is_taken_back_in_pages(rig: Rig) -> None:
    await rig.register("i1", slots=PAGE + 50)
    await rig.apply(*[rig.entry(f"t{n:03d}", key=n) for n in range(PAGE + 50)])
    offer = Registration(("a",), {"slots": 1}, {})
    zombie = rig.epochs["i1"]

    assert await rig.cell.register("i1", "new-epoch", offer) == Evicting(50)
    await rig.check()
    assert (await rig.view.vectors())["i1"].state == "cordoned"
    assert await rig.cell.beat("i1", zombie, Report("0-0")) == Refused("stale")
    assert not await rig.cell.cordon("i1", "")
    await rig.register("i1", slots=1, epoch="new-epoch")

    assert await rig.queued("i1") == ["t000"]
    assert (await rig.view.level()).parked == PAGE + 49


async def test_a_resource_that_a_new_registration_adds_serves_what_was_taken_back_for_want_of_it(rig: Rig) -> None:
    await rig.register("i1", slots=2)
    await rig.apply(rig.entry("t1"), rig.entry("t2", "n|a|gpu=1,slots=1|"))

    await rig.register("i1", slots=2, gpu=1)

    assert sorted(await rig.queued("i1")) == ["t1", "t2"]


async def test_more_resources_than_a_vector_has_room_for_are_refused_and_nothing_changes(rig: Rig) -> None:
    await rig.register("i1", slots=2)
    await rig.apply(rig.entry("t1"))
    offer = Registration(("a",), {"slots": 1} | {f"r{n}": 1 for n in range(16)}, {})

    with pytest.raises(DependencyError, match="16 resource names"):
        await rig.cell.register("i1", "new-epoch", offer)

    assert await rig.view.resources() == ("slots",)
    assert await rig.queued("i1") == ["t1"]
    assert isinstance(await rig.cell.beat("i1", rig.epochs["i1"], Report("0-0")), Beaten)


async def test_a_beat_renews_the_lease_and_stores_the_report(rig: Rig) -> None:
    await rig.register("i1", "a", "b")
    [before] = await rig.view.instances()
    report = Report("7-1", 100, 200, 300, (1, 2), {"t1": "half way"})
    await rig.let_pass(2)

    beaten = await rig.cell.beat("i1", rig.epochs["i1"], report)

    [after] = await rig.view.instances()
    generation = (await rig.cell.open(CellConfig())).generation
    assert beaten == Beaten(generation, after.reported_ms, "", "0-0")
    assert after.reported == report
    assert after.lease_until_ms == after.reported_ms + UNENDING_MS > before.lease_until_ms


async def test_whoever_has_no_current_epoch_is_refused_everywhere(rig: Rig) -> None:
    await rig.register("i1")

    for instance, refused in (("i1", Refused("stale")), ("i2", Refused("unknown"))):
        assert await rig.cell.beat(instance, "old", Report("0-0")) == refused
        assert await rig.cell.finish(instance, "old", []) == refused
        assert await rig.cell.resync(instance, "old", []) == refused
        assert await rig.cell.leave(instance, "old") == refused
        assert await rig.cell.close_instance(instance, "old", "draining") is False
    assert (await rig.view.vectors())["i1"].state == "open"


async def test_a_beat_keeps_an_instance_whose_lease_has_just_run_out(rig: Rig) -> None:
    await rig.register("i1", lease_ms=1)
    await rig.let_pass(2)

    assert isinstance(await rig.cell.beat("i1", rig.epochs["i1"], Report("0-0")), Beaten)


async def test_a_live_lease_is_not_evicted(rig: Rig) -> None:
    await rig.register("i1")

    assert await rig.cell.evict(limit=10) is None


async def test_an_instance_whose_lease_ran_out_is_taken_back_and_gone(rig: Rig) -> None:
    await rig.register("i1", lease_ms=5)
    await rig.apply(rig.entry("read"), to=["i1"])
    await rig.cell.beat("i1", rig.epochs["i1"], Report((await rig.find("read")).at))
    await rig.apply(rig.entry("unread"), to=["i1"])
    await rig.register("i2")

    await evict_all(rig, "i1")

    assert [view.id for view in await rig.view.instances()] == ["i2"]
    places = [await rig.find(name) for name in ("read", "unread")]
    assert [(p.instance, p.via, p.attempt) for p in places] == [("i2", "e", 2), ("i2", "e", 1)]
    assert [p.entry.evictions for p in places if p.entry] == [0, 1]
    assert await rig.cell.finish("i1", rig.epochs["i1"], []) == Refused("unknown")
    assert await rig.cell.evict(limit=10) is None


async def test_a_lease_that_ran_out_while_no_dispatcher_reached_the_cell_is_spared_and_can_be_beaten(rig: Rig) -> None:
    await rig.register("i1", lease_ms=SOON_MS)
    assert await rig.cell.evict(limit=9) is None

    await rig.let_pass(AWAY_MS)

    assert await rig.cell.evict(limit=9) is None
    assert isinstance(await rig.cell.beat("i1", rig.epochs["i1"], Report("0-0")), Beaten)
    await evict_all(rig, "i1")


async def test_a_lease_that_ends_soon_after_nobody_reached_the_cell_is_spared_too(rig: Rig) -> None:
    await rig.register("i1", lease_ms=AWAY_MS + 2 * SOON_MS)
    assert await rig.cell.evict(limit=9) is None
    await rig.let_pass(AWAY_MS)
    assert await rig.cell.evict(limit=9) is None

    await rig.let_pass(2 * SOON_MS)

    assert await rig.cell.evict(limit=9) is None


async def test_a_lease_is_spared_once_only() -> None:
    rig = twin_rig()  # it would take a server ten seconds
    await rig.register("i1", lease_ms=SOON_MS)
    assert await rig.cell.evict(limit=9) is None
    await rig.let_pass(AWAY_MS)
    assert await rig.cell.evict(limit=9) is None

    await rig.let_pass(SPARE_MS)

    assert await rig.cell.evict(limit=9) == ("i1", 0)


@pytest.mark.parametrize(
    ("instance", "epoch", "offer"),
    [
        ("a|b", "abcd", Registration(("a",), {"slots": 1}, {})),
        ("i", "abc", Registration(("a",), {"slots": 1}, {})),
        ("i", "ab\u00e9\u00e9", Registration(("a",), {"slots": 1}, {})),
        ("i", "abcd", Registration((), {"slots": 1}, {})),
        ("i", "abcd", Registration(("a,b",), {"slots": 1}, {})),
        ("i", "abcd", Registration(("a", "b", "a"), {"slots": 1}, {})),
        ("i", "abcd", Registration(("a",), {"cpu": 1}, {})),
        ("i", "abcd", Registration(("a",), {"slots": -1}, {})),
        ("i", "abcd", Registration(("a",), {"slots": 1 << 31}, {})),
        ("i", "abcd", Registration(("a",), {"slots": 1}, {"zone": "a=b"})),
    ],
)
async def test_an_offer_that_is_not_of_the_form_is_refused_and_changes_nothing(
    rig: Rig, instance: str, epoch: str, offer: Registration
) -> None:
    with pytest.raises(DependencyError):
        await rig.cell.register(instance, epoch, offer)

    assert await rig.view.instances() == []
    assert await rig.view.vectors() == {}
    assert await rig.view.resources() == ("slots",)


async def test_an_eviction_goes_in_pages_and_cannot_be_beaten_away(rig: Rig) -> None:
    await rig.register("i1", slots=5, lease_ms=5)
    await rig.apply(*[rig.entry(f"t{n}", key=n) for n in range(5)])
    held = await rig.ending("t4")

    async def is_begun() -> bool:
        return await rig.cell.evict(limit=2) == ("i1", 3)

    await rig.until(is_begun, "the first page")
    await rig.check()
    assert await rig.cell.beat("i1", rig.epochs["i1"], Report("0-0")) == Refused("stale")
    assert not await rig.cell.cordon("i1", "")
    assert (await rig.finish("i1", held)).accepted == (True,)
    assert await rig.cell.evict(limit=2) == ("i1", 0)
    assert await rig.parked() == ["t0", "t1", "t2", "t3"]


async def test_registering_with_the_epoch_of_a_begun_eviction_ends_it_first(rig: Rig) -> None:
    await rig.register("i1", slots=3, lease_ms=5)
    await rig.apply(*[rig.entry(f"t{n}", key=n) for n in range(3)])

    async def is_begun() -> bool:
        return await rig.cell.evict(limit=1) == ("i1", 2)

    await rig.until(is_begun, "the first page")
    await rig.register("i1", slots=3, epoch=rig.epochs["i1"])

    assert await rig.queued("i1") == ["t0", "t1", "t2"]
    assert (await rig.view.vectors())["i1"].state == "open"


async def test_a_task_that_outlives_its_attempts_by_eviction_is_dead_with_every_cause(rig: Rig) -> None:
    await rig.apply(rig.entry("t1", attempts=2))
    for instance in ("i1", "i2"):
        await rig.register(instance, lease_ms=5)
        await rig.cell.beat(instance, rig.epochs[instance], Report((await rig.find("t1")).at))
        await evict_all(rig, instance)

    [out] = await rig.cell.outbox(count=10)

    assert (out.kind, out.reason, out.cause, out.instance) == ("dead", "attempts", "the lease ran out", "i2")
    causes = decode_entry(out.body).causes
    assert [(c.attempt, c.instance, c.reason) for c in causes] == [
        (1, "i1", "the lease ran out"),
        (2, "i2", "the lease ran out"),
    ]
    place = await rig.find("t1")
    assert (place.state, place.instance, place.attempt) == ("dead", "i2", 2)


async def test_a_task_that_comes_back_unread_too_often_has_its_attempts_counted(rig: Rig) -> None:
    await rig.apply(rig.entry("t1", attempts=2))
    for instance in ("i1", "i2", "i3"):
        await rig.register(instance, lease_ms=5)
        await evict_all(rig, instance)
    [entry] = await rig.view.parked(SHAPE, count=1)
    assert (entry.attempt, entry.evictions, entry.causes) == (1, 3, ())

    await rig.register("i4", lease_ms=5)
    await evict_all(rig, "i4")

    [entry] = await rig.view.parked(SHAPE, count=1)
    assert (entry.attempt, entry.evictions, entry.causes[0].instance) == (2, 4, "i4")
    await rig.register("i5", lease_ms=5)
    await evict_all(rig, "i5")
    assert (await rig.find("t1")).state == "dead"


async def test_an_evicted_task_whose_deadline_has_passed_is_dead(rig: Rig) -> None:
    await rig.register("i1", lease_ms=5)
    await rig.apply(rig.entry("t1", deadline_ms=await rig.soon()), to=["i1"])
    await rig.let_pass(SOON_MS)

    await evict_all(rig, "i1")

    assert [out.reason for out in await rig.cell.outbox(count=10)] == ["deadline"]


async def test_a_closed_instance_gets_nothing_but_may_finish_what_it_has(rig: Rig) -> None:
    await rig.register("i1", slots=2)
    await rig.apply(rig.entry("t1", key=1))

    assert await rig.cell.close_instance("i1", rig.epochs["i1"], "draining")
    assert await rig.apply(rig.entry("t2", key=2), to=["i1"]) == "p"

    assert (await rig.finish("i1", await rig.ending("t1"))) == ((True,), 0)
    beaten = await rig.cell.beat("i1", rig.epochs["i1"], Report("0-0"))
    assert isinstance(beaten, Beaten)
    assert beaten.reason == "draining"
    [view] = await rig.view.instances()
    assert (view.state, view.reason, view.free) == ("cordoned", "draining", {"slots": 2})


async def test_an_instance_that_is_opened_again_pulls(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    assert await rig.cell.cordon("i1", "maintenance")
    await rig.apply(rig.entry("t1", key=1), rig.entry("t2", key=2))

    assert await rig.cell.cordon("i1", "")

    assert await rig.queued("i1") == ["t1"]
    assert not await rig.cell.cordon("unknown", "maintenance")


async def test_an_instance_that_leaves_gives_back_what_is_on_its_queue(rig: Rig) -> None:
    await rig.register("i1", slots=PAGE + 10)
    await rig.apply(*[rig.entry(f"t{n:03d}", key=n) for n in range(PAGE + 10)])

    assert await rig.cell.leave("i1", rig.epochs["i1"]) == Evicting(10)
    assert await rig.cell.leave("i1", rig.epochs["i1"]) == Evicting(0)
    assert await rig.cell.leave("i1", rig.epochs["i1"]) == Refused("unknown")

    assert (await rig.view.level()).parked == PAGE + 10
    assert await rig.view.audit("i1") == ("i1", {}, 0)


async def test_what_an_instance_that_left_half_way_still_had_is_evicted(rig: Rig) -> None:
    await rig.register("i1", slots=PAGE + 10)
    await rig.apply(*[rig.entry(f"t{n:03d}", key=n) for n in range(PAGE + 10)])

    assert await rig.cell.leave("i1", rig.epochs["i1"]) == Evicting(10)

    assert await rig.cell.evict(limit=PAGE) == ("i1", 0)


async def test_a_type_is_served_by_as_many_instances_as_are_registered(rig: Rig) -> None:
    await rig.apply(rig.entry("t1", "n|a|slots=9|"))
    counts: list[int] = []
    for step in ("i1", "i2", ""):
        await (rig.register(step) if step else rig.cell.leave("i1", rig.epochs["i1"]))
        counts += [shape.instances for shape in await rig.view.shapes()]

    assert counts == [1, 2, 1]
