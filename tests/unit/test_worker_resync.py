"""Resync: what an instance holds is told in pages, and each attempt goes on, is stopped, or has its ending sent."""

from typing import cast

import pytest

from taskyard.dispatcher.cell.contract import CellConfig, Registered, WorkerCell
from taskyard.dispatcher.cell.twin import TwinCell
from taskyard.schemas.entry import encode_entry
from taskyard.workers.attempt import Attempt, How
from taskyard.workers.instance import Instance, InstanceSpec
from taskyard.workers.link import Link
from taskyard.workers.resync import Resync
from tests.worker_kit import eventually, running
from tests.worker_line import Clock, Line, new_cell, staged, tasks

PAGE = 500
SPEC = InstanceSpec(id="i", types=("a",), capacity={"slots": 3 * PAGE})


async def cell_of(clock: Clock) -> TwinCell:
    cell = new_cell(clock)
    await cell.open(CellConfig(headroom_permille=0))
    await cell.begin({})
    return cell


def hold(instance: Instance, number: int, *, padding: int = 0) -> Attempt:
    """Let the instance hold an attempt of a task that runs."""
    entry = encode_entry(
        task_id=b"t%d" % number, shape=b"n|a|slots=1|", max_attempts=3, key_ms=1.0, deadline_ms=0.0, arrived_ms=1.0,
        receipt=b"", headers=b"", wire=b"x" * padding,
    )  # fmt: skip
    attempt = Attempt(f"t{number}", 1, f"{number + 1}-0", entry)
    instance.held[attempt.task_id, 1] = attempt
    return attempt


async def resuming(line: Line, instance: Instance) -> Resync:
    """Register the instance anew with what it holds."""
    registered = await line.cell.register("i", instance.new_epoch(), SPEC.registration(10_000), is_resuming=True)
    assert isinstance(registered, Registered)
    instance.begin(registered.generation, registered.cursor)
    return Resync(cast("WorkerCell", line), Link())


async def queued(cell: TwinCell) -> list[str]:
    return [delivery.stream_id for delivery in await cell.queue("i", count=10 * PAGE)]


async def test_what_is_held_is_told_in_pages_and_only_the_last_opens_the_instance() -> None:
    line, instance = Line(await cell_of(Clock())), Instance(SPEC)
    instance.begin("former", "0-0")
    held = [hold(instance, number) for number in range(2 * PAGE + 1)]
    instance.lose("unknown")
    resync = await resuming(line, instance)
    states: list[str] = []

    async def look() -> None:
        states.append((await line.cell.vectors())["i"].state)
        line.once("before", "resync", look)

    line.once("before", "resync", look)
    await resync.run(instance)

    assert [len(words[2]) for name, words in line.calls if name == "resync"] == [PAGE, PAGE, 1]
    assert states == ["cordoned"] * 3
    assert (await line.cell.vectors())["i"].state == "open"
    assert [attempt.stream_id for attempt in held] == await queued(line.cell)
    assert instance.adopted == {attempt.stream_id for attempt in held}
    assert instance.standing.state == "resumed"


async def test_a_page_is_bounded_in_bytes_too() -> None:
    line, instance = Line(await cell_of(Clock())), Instance(SPEC)
    instance.begin("former", "0-0")
    for number in range(5):
        hold(instance, number, padding=(4 << 20) // 2 - 1000)
    instance.lose("unknown")

    await (await resuming(line, instance)).run(instance)

    assert [len(words[2]) for name, words in line.calls if name == "resync"] == [2, 2, 1]


async def test_a_cell_that_goes_back_between_two_pages_is_told_the_first_once_more() -> None:
    clock = Clock()
    line, instance = Line(await cell_of(clock)), Instance(SPEC)
    instance.begin("former", "0-0")
    held = [hold(instance, number) for number in range(PAGE + 1)]
    instance.lose("unknown")
    resync = await resuming(line, instance)

    async def go_back() -> None:
        line.cell = await cell_of(clock)
        await line.cell.register("i", instance.epoch, SPEC.registration(10_000), is_resuming=True)

    line.once("after", "resync", go_back)
    await resync.run(instance)
    assert instance.standing.state == "resuming"
    assert instance.wake.is_set()
    await resync.run(instance)

    assert instance.standing.state == "resumed"
    assert instance.generation == (await line.cell.open(CellConfig())).generation
    assert {attempt.stream_id for attempt in held} == set(await queued(line.cell))


@pytest.mark.parametrize("how", ["succeeded", "retry", "gave_up", "unstarted", None])
async def test_what_is_not_left_here_is_forgotten_unless_it_ended_well(how: How | None) -> None:
    cell = new_cell(Clock())
    await cell.remember(["t1"])  # another has finished it
    line, instance = Line(cell), Instance(SPEC)
    instance.begin("former", "0-0")
    attempt = hold(instance, 1)
    if how:
        attempt.end(how, b"")
        instance.ended(attempt)
    instance.lose("unknown")

    await (await resuming(line, instance)).run(instance)

    is_kept = how == "succeeded"
    assert attempt.is_taken == (not is_kept)
    assert list(instance.held.values()) == instance.take_batch() == ([attempt] if is_kept else [])
    assert instance.adopted == set()


async def test_what_ends_while_its_new_entry_is_being_read_is_not_started_from_it() -> None:
    stage = await staged()
    one, other = tasks(2)

    async def is_settled() -> bool:
        return not stage.instance.held

    async def end_during_the_read() -> None:
        stage.gate.let(one)
        await eventually(is_settled, "its ending is accepted")

    async def read_from_the_start() -> None:
        stage.line.once("after", "read", end_during_the_read)

    async with running(stage.worker):
        await stage.field.put(one, instance="i")
        await stage.gate.has_started(one)
        stage.line.once("after", "resync", read_from_the_start)
        await stage.lose_all()
        await stage.field.wait_for(one, "finished")
        await stage.field.put(other, instance="i")
        await stage.gate.has_started(other)

    assert stage.gate.started == [(one.id, 1), (other.id, 1)]
