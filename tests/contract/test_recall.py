"""recall: what an instance that beats has not read is taken back."""

from taskyard.dispatcher.cell.contract import Beaten, CellConfig, Report
from tests.contract.rig import Rig

UNREAD = "not reading"


async def beat(rig: Rig, instance: str, cursor: str) -> Beaten:
    """Beat an instance whose epoch is current."""
    beaten = await rig.cell.beat(instance, rig.epochs[instance], Report(cursor))
    assert isinstance(beaten, Beaten)
    return beaten


async def test_entries_that_were_not_read_in_time_are_recalled_and_the_instance_is_closed(rig: Rig) -> None:
    await rig.register("i1", slots=3)
    await rig.apply(*map(rig.entry, ("read", "t1", "t2")), to=["i1"])
    newest = (await rig.find("t2")).at
    await rig.register("i2", slots=1)
    await rig.let_pass(5)
    await beat(rig, "i1", (await rig.find("read")).at)

    assert await rig.cell.recall(["i1", "unknown"], min_age_ms=5, limit=10) == 2

    assert await rig.queued("i1") == ["read"]
    place = await rig.find("t1")
    assert (place.instance, place.attempt, place.via) == ("i2", 1, "e")
    assert (await rig.find("t2")).state == "parked"
    assert await beat(rig, "i1", (await rig.find("read")).at) == (
        (await rig.cell.open(CellConfig())).generation,
        (await rig.view.instances())[0].reported_ms,
        UNREAD,
        newest,
    )


async def test_young_entries_and_entries_of_instances_that_never_beat_are_not_recalled(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await rig.register("i2", slots=1)
    await rig.apply(rig.entry("t1"), rig.entry("t2"), to=["i1", "i2"])
    await beat(rig, "i1", "0-0")

    assert await rig.cell.recall(["i1"], min_age_ms=60_000, limit=10) == 0
    assert await rig.cell.recall(["i2"], min_age_ms=0, limit=10) == 0
    assert await rig.cell.recall([], min_age_ms=0, limit=10) == 0
    assert {vector.state for vector in (await rig.view.vectors()).values()} == {"open"}


async def test_what_may_have_been_read_since_the_last_beat_is_not_recalled_however_old_it_is(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await beat(rig, "i1", "0-0")
    await rig.apply(rig.entry("t1"), to=["i1"])
    await rig.let_pass(20)

    assert await rig.cell.recall(["i1"], min_age_ms=10, limit=10) == 0

    await beat(rig, "i1", "0-0")
    assert await rig.cell.recall(["i1"], min_age_ms=10, limit=10) == 1


async def test_a_recall_takes_back_at_most_its_limit(rig: Rig) -> None:
    await rig.register("i1", slots=3)
    await rig.apply(*[rig.entry(f"t{n}", key=n) for n in range(3)], to=["i1"])
    await beat(rig, "i1", "0-0")

    assert await rig.cell.recall(["i1"], min_age_ms=0, limit=2) == 2
    assert await rig.queued("i1") == ["t2"]
    assert await rig.cell.recall(["i1"], min_age_ms=0, limit=2) == 1


async def test_an_instance_that_reads_again_is_opened_by_its_beat_and_pulls(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("t1"), to=["i1"])
    await beat(rig, "i1", "0-0")
    await rig.cell.recall(["i1"], min_age_ms=0, limit=10)
    recalled = (await beat(rig, "i1", "0-0")).recalled
    assert await rig.parked() == ["t1"]

    beaten = await beat(rig, "i1", recalled)

    assert beaten.reason == ""
    assert await rig.queued("i1") == ["t1"]
    assert (await rig.view.vectors())["i1"].state == "open"


async def test_a_recall_does_not_lift_or_rename_a_cordon(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("t1"), to=["i1"])
    await beat(rig, "i1", "0-0")
    await rig.cell.cordon("i1", "maintenance")
    await rig.cell.recall(["i1"], min_age_ms=0, limit=10)

    beaten = await beat(rig, "i1", "99999999999999-0")

    assert beaten.reason == "maintenance"
    assert await rig.queued("i1") == []


async def test_a_cursor_that_is_none_counts_as_nothing_read(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("t1"), to=["i1"])
    await beat(rig, "i1", "nonsense")

    assert await rig.cell.recall(["i1"], min_age_ms=0, limit=10) == 1
