"""What a worker does with the tasks it holds when the cell does not know it any more, or has gone back in time."""

import asyncio
from collections.abc import Callable

import pytest

from taskyard.dispatcher.cell.contract import Ending, Finished, Registered, Registration
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.task import Task
from tests.worker_kit import eventually, running
from tests.worker_line import ALL, NONE, Stage, staged, tasks

OTHER = "0123456789abcdef"
OFFER = Registration(("a",), {"slots": 4}, {}, lease_ms=1_000_000)


async def stream_id(stage: Stage, task: Task) -> str:
    return (await stage.field.place(task)).at


async def queued_at(stage: Stage, name: str) -> set[str]:
    places = {task_id: await stage.cell.find(task_id) for task_id, _ in stage.gate.started}
    return {task_id for task_id, place in places.items() if place and place.instance == name}


async def lose_all_but_endings(stage: Stage, runs: Task, ends: Task, fails: Task) -> None:
    """Start three tasks, let two of them end while the cell is not to be reached, and lose it: the line stays cut."""
    work = (runs, ends, fails)
    await stage.field.put(*work, instance="i")
    await stage.gate.has_started(*work)
    stage.line.cut = ALL
    stage.gate.let(ends)
    stage.gate.let(fails, fail=True)
    await stage.gate.has_ended(ends, fails)
    await stage.lose_all()


async def test_a_cell_that_lost_everything_is_told_what_runs_and_what_has_ended_and_nothing_runs_twice() -> None:
    stage = await staged()
    runs, ends, fails = work = tasks(3)

    async with running(stage.worker):
        await lose_all_but_endings(stage, *work)
        stage.line.cut = NONE

        await stage.field.wait_for(ends, "finished")
        failed = await stage.field.wait_for(fails, "later")
        adopted = await stage.field.wait_for(runs, "queued")
        stage.gate.let(runs)
        await stage.field.wait_for(runs, "finished")

    assert (adopted.instance, adopted.attempt, adopted.via) == ("i", 1, "r")
    assert failed.attempt == 2
    assert stage.gate.started == [(task.id, 1) for task in work]
    assert stage.gate.cancelled == []
    assert set(await stage.field.outcomes()) == {runs.id, ends.id}


async def test_what_runs_keeps_its_capacity_before_anything_that_is_parked_in_the_new_cell() -> None:
    stage = await staged(slots=2)
    first, second, *parked = work = tasks(4)

    async with running(stage.worker):
        await stage.field.put(first, second, instance="i")
        await stage.gate.has_started(first, second)
        stage.line.cut = ALL
        await stage.lose_all()
        await stage.field.put(*parked)
        stage.line.cut = NONE
        for task in (first, second):
            await stage.field.wait_for(task, "queued")
        stage.gate.let(*work)
        for task in work:
            await stage.field.wait_for(task, "finished")

    assert sorted(stage.gate.started) == sorted((task.id, 1) for task in work)
    assert stage.gate.cancelled == []


def lost_request(stage: Stage, name: str) -> None:
    async def fails() -> None:
        raise DependencyError("the request was lost")

    stage.line.once("before", name, fails)


def lost_reply(stage: Stage, name: str) -> None:
    async def fails() -> None:
        raise DependencyError("the reply was lost")

    stage.line.once("after", name, fails)


def lost_cell(stage: Stage, name: str) -> None:
    stage.line.once("before", name, stage.lose_all)


@pytest.mark.parametrize("name", ["register", "resync", "finish", "beat"])
@pytest.mark.parametrize("fault", [lost_request, lost_reply, lost_cell])
async def test_a_fault_while_it_resumes_starts_nothing_twice_and_loses_no_ending(
    fault: Callable[[Stage, str], None], name: str
) -> None:
    stage = await staged()
    runs, ends, fails = work = tasks(3)

    async with running(stage.worker):
        await lose_all_but_endings(stage, *work)
        fault(stage, name)
        stage.line.cut = NONE

        await stage.field.wait_for(fails, "later")
        await stage.field.wait_for(ends, "finished")
        stage.gate.let(runs)
        await stage.field.wait_for(runs, "finished")

    assert stage.gate.started == [(task.id, 1) for task in work]
    assert stage.gate.cancelled == []
    assert set(await stage.field.outcomes()) == {runs.id, ends.id}


async def test_without_a_cell_for_longer_than_its_lease_a_worker_goes_on_under_the_same_registration() -> None:
    stage = await staged()
    runs, ends = work = tasks(2)

    async def has_its_lease_run_out() -> bool:
        (seen,) = await stage.cell.instances()
        return seen.lease_until_ms < (await stage.cell.level()).now_ms

    async with running(stage.worker):
        await stage.field.put(*work, instance="i")
        await stage.gate.has_started(*work)
        epoch = stage.instance.epoch
        stage.line.cut = ALL
        stage.gate.let(ends)
        await eventually(has_its_lease_run_out, "the lease has run out, and no dispatcher was there to evict")
        stage.line.cut = NONE
        stage.gate.let(runs)
        for task in work:
            await stage.field.wait_for(task, "finished")

    assert stage.instance.epoch == epoch
    assert stage.gate.started == [(task.id, 1) for task in work]
    assert stage.gate.cancelled == []


async def test_what_was_moved_on_with_the_next_attempt_is_stopped_and_counts_no_more() -> None:
    stage = await staged()
    runs, ends = work = tasks(2)

    async def has_told_that_it_reads() -> bool:
        (seen,) = await stage.cell.instances()
        return seen.reported.cursor != "0-0"

    async def holds_nothing() -> bool:
        return stage.instance.is_open and not stage.instance.held

    async with running(stage.worker):
        await stage.field.put(*work, instance="i")
        await stage.gate.has_started(*work)
        await eventually(has_told_that_it_reads, "a beat carries the cursor")
        stage.line.cut = ALL
        stage.gate.let(ends)
        await stage.gate.has_ended(ends)
        await stage.evict()
        assert isinstance(await stage.cell.register("j", OTHER, OFFER), Registered)
        stage.line.cut = NONE
        await eventually(holds_nothing, "the worker is back")
        endings = [Ending(task.id, await stream_id(stage, task), 2, "succeeded", b"of j") for task in work]
        finished = await stage.cell.finish("j", OTHER, endings)

    assert finished == Finished((True, True), 0)
    assert stage.gate.cancelled == [runs.id]
    assert stage.gate.started == [(task.id, 1) for task in work]
    assert [out.body for out in await stage.field.outgoing()] == [b"of j", b"of j"]


async def test_what_ended_well_before_another_did_it_counts_although_another_has_it() -> None:
    stage = await staged()
    runs, ends = work = tasks(2)

    async with running(stage.worker):
        stage.line.cut = frozenset({"beat", "finish"})  # so that nobody knows that they have been started
        await stage.field.put(*work, instance="i")
        await stage.gate.has_started(*work)
        stage.gate.let(ends)
        await stage.gate.has_ended(ends)
        await stage.evict()
        assert isinstance(await stage.cell.register("j", OTHER, OFFER), Registered)
        assert await queued_at(stage, "j") == {runs.id, ends.id}
        late = Ending(ends.id, await stream_id(stage, ends), 1, "succeeded", b"of j")
        stage.line.cut = NONE
        await stage.field.wait_for(ends, "finished")
        finished = await stage.cell.finish("j", OTHER, [late])

    assert finished == Finished((False,), 0)
    assert list(await stage.field.outcomes()) == [ends.id]
    assert stage.gate.cancelled == [runs.id]
    assert await queued_at(stage, "j") == {runs.id}


async def test_a_cell_that_has_gone_back_gets_the_endings_that_were_kept_and_what_it_has_forgotten() -> None:
    stage = await staged()
    known, forgotten = work = tasks(2)

    async with running(stage.worker):
        await stage.field.put(known, instance="i")
        await stage.gate.has_started(known)
        saved = stage.save()
        await stage.field.put(forgotten, instance="i")
        await stage.gate.has_started(forgotten)
        stage.line.cut = ALL
        stage.gate.let(known)
        await stage.gate.has_ended(known)
        stage.go_back(saved)
        stage.line.cut = NONE
        await stage.field.wait_for(known, "finished")
        adopted = await stage.field.wait_for(forgotten, "queued")
        stage.gate.let(forgotten)
        await stage.field.wait_for(forgotten, "finished")

    assert adopted.via == "r"
    assert stage.gate.started == [(task.id, 1) for task in work]
    assert set(await stage.field.outcomes()) == {known.id, forgotten.id}


async def test_what_a_cell_has_not_finished_any_more_since_it_went_back_runs_again() -> None:
    stage = await staged()
    (one,) = tasks(1)

    async with running(stage.worker):
        await stage.field.put(one, instance="i")
        await stage.gate.has_started(one)
        saved = stage.save()
        stage.gate.let(one)
        await stage.field.wait_for(one, "finished")
        stage.go_back(saved)
        await stage.field.wait_for(one, "finished")

    assert stage.gate.started == [(one.id, 1), (one.id, 1)]
    assert list(await stage.field.outcomes()) == [one.id]


async def test_a_success_counts_that_a_cell_which_went_back_has_placed_elsewhere() -> None:
    stage = await staged()
    (one,) = tasks(1)

    async with running(stage.worker):
        saved = stage.save()
        await stage.field.put(one, instance="i")
        await stage.gate.has_started(one)
        stage.line.cut = ALL
        stage.gate.let(one)
        await stage.gate.has_ended(one)
        stage.go_back(saved)
        assert isinstance(await stage.cell.register("j", OTHER, OFFER), Registered)
        await stage.field.put(one, instance="j")
        stage.line.cut = NONE
        finished = await stage.field.wait_for(one, "finished")

    assert finished.instance == "i"
    assert list(await stage.field.outcomes()) == [one.id]
    assert await stage.cell.queue("j", count=10) == []


async def test_nothing_new_is_started_before_all_that_was_kept_is_accepted() -> None:
    stage = await staged(slots=2)
    ended, waits = tasks(2)

    async def has_resumed() -> bool:
        return stage.instance.standing.state == "resumed" and (await stage.field.place(waits)).state == "queued"

    async def has_tried_twice() -> bool:
        return [name for name, _ in stage.line.calls[tried:]].count("finish") >= 2

    async with running(stage.worker):
        await stage.field.put(ended, instance="i")
        await stage.gate.has_started(ended)
        stage.line.cut = ALL
        stage.gate.let(ended)
        await stage.gate.has_ended(ended)
        await stage.lose_all(ended=[ended])
        await stage.field.put(waits)
        stage.line.cut = frozenset({"finish"})
        await eventually(has_resumed, "the cell has placed a task on the instance that is back")
        tried = len(stage.line.calls)
        await eventually(has_tried_twice, "the worker tries to finish")
        assert list(stage.instance.held) == [(ended.id, 1)]
        stage.line.cut = NONE
        await stage.gate.has_started(waits)

    assert await stage.field.outcomes() == {}


@pytest.mark.parametrize("name", ["close_instance", "register", "resync"])
async def test_a_worker_that_stops_while_it_resumes_tells_its_endings_and_takes_nothing_more(name: str) -> None:
    stage = await staged(drain_s=1000)
    runs, ends, other = tasks(3)
    happened = asyncio.Event()

    async def is_draining() -> bool:
        return stage.instance.life.state == "draining"

    async def stop() -> None:
        if name != "close_instance":
            stage.worker.stop()
            await eventually(is_draining, "the worker drains, and the call is still under way")
        happened.set()

    async with running(stage.worker) as run:
        await stage.field.put(runs, ends, instance="i")
        await stage.gate.has_started(runs, ends)
        stage.line.cut = ALL
        stage.gate.let(ends)
        await stage.gate.has_ended(ends)
        await stage.lose_all()
        await stage.field.put(other)
        stage.line.once("before", name, stop)
        stage.line.cut = NONE
        if name == "close_instance":  # the worker does not know yet that it has lost its registration
            stage.worker.stop()
        await happened.wait()
        await stage.field.wait_for(ends, "finished")
        stage.gate.let(runs)
        await run

    assert stage.gate.started == [(runs.id, 1), (ends.id, 1)]
    assert set(await stage.field.outcomes()) == {runs.id, ends.id}
    assert await stage.cell.instances() == []
    place = await stage.field.place(other)
    assert place.state == "parked"
    # A last page that is under way when it stops may pull; what it pulls is given back.
    assert name == "resync" or (place.entry is not None and place.entry.evictions == 0)


async def test_a_worker_that_drains_tells_the_endings_of_which_the_cell_has_lost_the_registration() -> None:
    stage = await staged(drain_s=1000)
    (one,) = tasks(1)

    async def is_closed() -> bool:
        return [seen.state for seen in await stage.cell.instances()] == ["cordoned"]

    async with running(stage.worker) as run:
        await stage.field.put(one, instance="i")
        await stage.gate.has_started(one)
        stage.worker.stop()
        await eventually(is_closed, "the instance is quiet")
        await stage.lose_all()
        await eventually(is_closed, "it is back, and quiet")
        stage.gate.let(one)
        await run

    assert list(await stage.field.outcomes()) == [one.id]
    assert await stage.cell.instances() == []


async def test_a_worker_that_drains_stays_closed_in_a_cell_that_went_back_to_before_it_was() -> None:
    stage = await staged(drain_s=1000)
    one, other = tasks(2)

    async def is_closed() -> bool:
        return [seen.state for seen in await stage.cell.instances()] == ["cordoned"]

    async with running(stage.worker) as run:
        await stage.field.put(one, instance="i")
        await stage.gate.has_started(one)
        saved = stage.save()
        stage.worker.stop()
        await eventually(is_closed, "the instance is quiet")
        stage.go_back(saved)
        await eventually(is_closed, "it is quiet again")
        await stage.field.put(other)
        stage.gate.let(one)
        await run

    assert list(await stage.field.outcomes()) == [one.id]
    assert (await stage.field.place(other)).state == "parked"


async def taken_by_another(stage: Stage) -> None:
    while not isinstance(await stage.cell.register("i", OTHER, OFFER), Registered):
        pass


async def test_an_id_that_another_takes_while_it_resumes_stops_all_that_runs() -> None:
    stage = await staged()
    (one,) = tasks(1)

    async def is_stopped() -> bool:
        return stage.gate.cancelled == [one.id]

    async with running(stage.worker):
        await stage.field.put(one, instance="i")
        await stage.gate.has_started(one)
        stage.line.once("before", "resync", lambda: taken_by_another(stage))
        await stage.lose_all()
        await eventually(is_stopped, "the task is stopped")

    assert stage.gate.started == [(one.id, 1)]
