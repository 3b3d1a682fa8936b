"""When a worker sends the endings of its attempts: those of a while together, a shorter one while others wait."""

import pytest

from tests.worker_kit import running
from tests.worker_line import ALL, NONE, Stage, staged, tasks


def finished(stage: Stage) -> list[list[str]]:
    """The ids of each finish call."""
    return [[ending.task_id for ending in words[2]] for name, words in stage.line.calls if name == "finish"]


async def test_endings_that_come_soon_after_another_go_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskyard.workers.keeper._GATHER_S", 0.3)
    stage = await staged()
    first, *others = work = tasks(4)

    async with running(stage.worker):
        await stage.field.put(*work, instance="i")
        await stage.gate.has_started(*work)
        stage.gate.let(first)
        await stage.field.wait_for(first, "finished")
        for other in others:
            stage.gate.let(other)
            await stage.gate.has_ended(other)
        await stage.field.wait_for(others[-1], "finished")

    assert finished(stage) == [[first.id], [other.id for other in others]]


async def test_an_ending_whose_capacity_is_waited_for_is_not_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskyard.workers.keeper._GATHER_S", 3_600.0)
    monkeypatch.setattr("taskyard.workers.worker._GRACE_S", 0.1)
    stage = await staged(slots=1)
    work = tasks(4)

    async with running(stage.worker):
        await stage.field.put(work[0], instance="i")
        await stage.field.put(*work[1:])
        for task in work:
            await stage.gate.has_started(task)
            stage.gate.let(task)
        for task in work:
            await stage.field.wait_for(task, "finished")

    assert finished(stage) == [[task.id] for task in work]


async def test_endings_that_come_while_others_wait_go_in_one_call_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskyard.workers.keeper._BRIEFLY_S", 0.3)
    stage = await staged(slots=2)
    first, second, third, *parked = work = tasks(4)

    async with running(stage.worker):
        await stage.field.put(first, second, instance="i")
        await stage.field.put(third, *parked)
        await stage.gate.has_started(first, second)
        stage.gate.let(first)
        await stage.gate.has_started(third)
        for task in (second, third):
            stage.gate.let(task)
            await stage.gate.has_ended(task)
        stage.gate.let(*parked)
        for task in work:
            await stage.field.wait_for(task, "finished")

    assert finished(stage)[:2] == [[first.id], [second.id, third.id]]


async def test_an_instance_that_resumes_is_opened_however_many_endings_it_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taskyard.workers.keeper._GATHER_S", 3_600.0)
    monkeypatch.setattr("taskyard.workers.worker._GRACE_S", 0.1)
    stage = await staged()
    runs, ends, new = tasks(3)

    async with running(stage.worker):
        await stage.field.put(runs, ends, instance="i")
        await stage.gate.has_started(runs, ends)
        stage.line.cut = ALL
        stage.gate.let(ends)
        await stage.gate.has_ended(ends)
        await stage.lose_all()
        stage.line.cut = NONE
        await stage.field.wait_for(ends, "finished")
        await stage.field.put(new, instance="i")
        await stage.gate.has_started(new)

    assert stage.gate.started[-1] == (new.id, 1)
