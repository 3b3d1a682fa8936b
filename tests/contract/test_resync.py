"""resync: after the cell may have gone back in time, workers tell it what they run."""

import pytest

from taskyard.dispatcher.cell.contract import CellConfig, Resynced, Running
from taskyard.schemas.errors import DependencyError
from tests.contract.rig import Rig

SHAPE = "n|a|slots=1|"


async def resync(rig: Rig, instance: str, *running: Running) -> tuple[str | None, ...]:
    """Resync an instance whose epoch is current."""
    resynced = await rig.cell.resync(instance, rig.epochs[instance], running)
    assert isinstance(resynced, Resynced)
    return resynced.stream_ids


async def running(rig: Rig, task_id: str) -> Running:
    """What the worker that has the task would say of it."""
    place = await rig.find(task_id)
    deliveries = await rig.view.queue(place.instance, count=100)
    entry = next(delivery.entry for delivery in deliveries if delivery.stream_id == place.at)
    return Running(task_id, place.at, place.attempt, entry)


async def test_what_is_on_the_instance_stays_there(rig: Rig) -> None:
    await rig.register("i1")
    await rig.apply(rig.entry("t1"), to=["i1"])
    told = await running(rig, "t1")

    assert await resync(rig, "i1", told) == (told.stream_id,)
    assert await resync(rig, "i1") == ()
    assert await resync(rig, "i1", told._replace(attempt=2)) == (None,)


async def test_what_another_instance_has_is_to_be_stopped(rig: Rig) -> None:
    await rig.register("i1")
    await rig.register("i2")
    await rig.apply(rig.entry("t1"), to=["i1"])

    assert await resync(rig, "i2", await running(rig, "t1")) == (None,)
    assert await rig.queued("i1") == ["t1"]


@pytest.mark.parametrize("done_limit", [2, 100])
async def test_what_has_finished_is_to_be_stopped(rig: Rig, done_limit: int) -> None:
    await rig.cell.open(CellConfig(done_limit=done_limit))  # with 2 it is in the older half of the memory
    await rig.register("i1")
    await rig.apply(rig.entry("t1"), to=["i1"])
    told = await running(rig, "t1")
    await rig.finish("i1", await rig.ending("t1"))

    assert await resync(rig, "i1", told) == (None,)


async def test_a_task_that_the_cell_does_not_know_is_adopted(rig: Rig) -> None:
    await rig.register("i1")
    told = Running("t1", "5-5", 1, rig.entry("t1"))

    [stream_id] = await resync(rig, "i1", told)

    place = await rig.find("t1")
    assert (place.state, place.instance, place.at, place.via) == ("queued", "i1", stream_id, "r")
    assert (await rig.finish("i1", await rig.ending("t1"))).accepted == (True,)


async def test_a_task_that_is_named_twice_is_adopted_once(rig: Rig) -> None:
    await rig.register("i1")
    told = Running("t1", "5-5", 1, rig.entry("t1"))

    first, second = await resync(rig, "i1", told, told)

    assert first == second == (await rig.find("t1")).at
    assert await rig.queued("i1") == ["t1"]


async def test_of_two_attempts_of_one_task_only_one_is_adopted_and_the_other_is_to_be_stopped(rig: Rig) -> None:
    await rig.register("i1")
    entry = rig.entry("t1")
    second = Running("t1", "5-5", 2, entry[:1] + b"\x02" + entry[2:])

    adopted, other = await resync(rig, "i1", second, Running("t1", "6-6", 1, entry))

    assert (adopted, other) == ((await rig.find("t1")).at, None)
    assert (await rig.find("t1")).attempt == 2
    assert await rig.queued("i1") == ["t1"]


async def test_a_task_that_is_parked_with_the_same_attempt_is_adopted(rig: Rig) -> None:
    await rig.apply(rig.entry("other", key=1), rig.entry("t1", deadline_ms=2**52))
    entry = rig.entry("t1")
    await rig.register("i1", "b")

    [stream_id] = await resync(rig, "i1", Running("t1", "5-5", 1, entry))

    assert (await rig.find("t1")).at == stream_id
    assert await rig.parked() == ["other"]


async def test_a_task_that_is_parked_with_a_later_attempt_is_to_be_stopped(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("t1"), to=["i1"])
    told = await running(rig, "t1")
    await rig.cell.cordon("i1", "closed")
    await rig.finish("i1", await rig.ending("t1", "retry", b"once"))

    assert await resync(rig, "i1", told) == (None,)
    assert await rig.parked() == ["t1"]


async def test_a_task_that_waits_for_this_attempt_is_adopted(rig: Rig) -> None:
    await rig.register("i1")
    await rig.apply(rig.entry("t1"), to=["i1"])
    await rig.finish("i1", await rig.ending("t1", "retry", b"once"))
    second = await running(rig, "t1")
    await rig.finish("i1", await rig.ending("t1", "retry", b"twice", delay_ms=60_000))

    assert await resync(rig, "i1", second) == (None,)
    third = second._replace(attempt=3, entry=second.entry[:1] + b"\x03" + second.entry[2:])
    [stream_id] = await resync(rig, "i1", third)

    assert ((await rig.find("t1")).at, (await rig.find("t1")).attempt) == (stream_id, 3)
    assert (await rig.view.level()).later == 0


async def test_what_does_not_fit_any_more_is_to_be_stopped(rig: Rig) -> None:
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("t1"), to=["i1"])

    assert await resync(rig, "i1", Running("t2", "5-5", 1, rig.entry("t2"))) == (None,)
    assert await rig.view.find("t2") is None


async def test_a_closed_instance_keeps_what_it_runs(rig: Rig) -> None:
    await rig.register("i1")
    await rig.cell.cordon("i1", "draining")

    assert await resync(rig, "i1", Running("t1", "5-5", 1, rig.entry("t1"))) != (None,)
    assert await rig.queued("i1") == ["t1"]


async def test_a_task_that_runs_on_a_held_instance_ends_the_hold(rig: Rig) -> None:
    big = "n|a|slots=2|"
    await rig.register("i1", slots=2)
    await rig.apply(rig.entry("filler"), rig.entry("big", big, key=2))
    await rig.cell.hold(big, "i1")

    assert await resync(rig, "i1", Running("t1", "5-5", 1, rig.entry("t1"))) != (None,)

    assert (await rig.view.vectors())["i1"].state == "open"
    await rig.finish("i1", await rig.ending("t1"))
    assert await rig.cell.hold(big, "i1")


async def test_an_entry_of_another_task_or_attempt_is_not_adopted(rig: Rig) -> None:
    await rig.register("i1")

    told = Running("t1", "5-5", 1, rig.entry("t2")), Running("t3", "5-5", 2, rig.entry("t3"))

    assert await resync(rig, "i1", *told) == (None, None)


async def test_an_entry_that_cannot_be_read_changes_nothing(rig: Rig) -> None:
    await rig.register("i1")
    told = Running("t1", "5-5", 1, rig.entry("t1")), Running("t2", "5-5", 1, b"\x01cut")

    with pytest.raises(DependencyError):
        await resync(rig, "i1", *told)

    assert await rig.view.find("t1") is None


async def test_a_task_that_waits_under_another_record_of_its_id_stays_there(rig: Rig) -> None:
    await rig.register("i1")
    first, second = (rig.entry("t1", "n|b|slots=1|", arrived_ms=at * 100_000) for at in (1, 2))
    await rig.apply(second)

    assert await resync(rig, "i1", Running("t1", "5-5", 1, first)) == (None,)
    assert (await rig.find("t1")).state == "parked"
    assert await rig.view.unfinished() == {200_000: 1}
