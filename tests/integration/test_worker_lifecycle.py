"""How a worker stops, and what it does when the cell takes its instance or its tasks away."""

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from taskyard.dispatcher.cell.contract import Registered, Registration
from taskyard.schemas.codec import JSON
from taskyard.schemas.task import AgentType, Task
from taskyard.workers.instance import InstanceSpec
from taskyard.workers.worker import Worker
from tests.worker_kit import Yard, eventually, running, yard


class Gate:
    """A handler that is seen to start and ends when it may."""

    def __init__(self) -> None:
        self.started = asyncio.Semaphore(0)
        self.may_end = asyncio.Event()
        self.cancelled = 0

    async def run(self, work: Any) -> str:  # noqa: ARG002 - it ends when it may, whatever the task
        self.started.release()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "done"


@pytest.fixture
async def field(redis_url: str, cell: str) -> AsyncGenerator[Yard]:
    """The cell of this test."""
    async with yard(redis_url, cell) as opened:
        yield opened


def tasks(number: int = 1) -> list[Task]:
    return [Task(type=AgentType("a"), payload=JSON.encode_payload({})) for _ in range(number)]


def worker(field: Yard, redis_url: str, handler: Any, slots: int = 4, **fields: Any) -> Worker:
    specs = [InstanceSpec(id="i", capacity={"slots": slots})]
    cell = field.root.partition("{")[2].rstrip("}")
    return Worker({"a": handler}, redis=redis_url, cell=cell, instances=specs, lease_ms=600, **fields)


async def test_a_worker_that_stops_finishes_what_runs_and_leaves_no_instance(field: Yard, redis_url: str) -> None:
    gate, (one,) = Gate(), tasks()
    stopping = worker(field, redis_url, gate.run)

    async def is_closed() -> bool:
        return [instance.state for instance in await field.view.instances()] == ["cordoned"]

    async with running(stopping) as run:
        await field.put(one, instance="i")
        await gate.started.acquire()
        stopping.stop()
        await eventually(is_closed, "the instance is quiet")
        gate.may_end.set()
        await run

    assert stopping.state == "stopped"
    assert (await field.outcomes())[one.id].status == "succeeded"
    assert await field.view.instances() == []


async def test_tasks_that_have_no_thread_yet_are_given_back_without_an_attempt(field: Yard, redis_url: str) -> None:
    started, may_end = threading.Event(), threading.Event()

    def blocks(work: Any) -> None:
        started.set()
        assert may_end.wait(10)

    first, *waiting = tasks(3)
    stopping = worker(field, redis_url, blocks, threads=1)

    async with running(stopping) as run:
        await field.put(first, *waiting, instance="i")
        assert await asyncio.to_thread(started.wait, 10)
        stopping.stop()
        places = [await field.wait_for(one, "parked") for one in waiting]
        may_end.set()
        await run

    assert [place.attempt for place in places] == [1, 1]
    assert [place.entry.causes for place in places if place.entry] == [(), ()]
    assert list(await field.outcomes()) == [first.id]


@pytest.mark.parametrize("how", ["deadline", "second stop", "cancelled"])
async def test_what_does_not_end_in_time_is_cancelled_and_given_to_others(
    field: Yard, redis_url: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate, (one,) = Gate(), tasks()
    stopping = worker(field, redis_url, gate.run, drain_s=0.05 if how == "deadline" else 1000)

    async with running(stopping) as run:
        await field.put(one, instance="i")
        await gate.started.acquire()
        if how == "cancelled":
            run.cancel()
        else:
            stopping.stop()
        if how == "second stop":
            stopping.stop()
        with contextlib.suppress(asyncio.CancelledError):
            await run

    place = await field.place(one)
    assert (place.state, place.attempt) == ("parked", 2)
    assert place.entry is not None
    assert [cause.reason for cause in place.entry.causes] == ["drain deadline"]
    assert gate.cancelled == 1
    assert await field.view.instances() == []
    named = [vars(record)["task_ids"] for record in caplog.records if record.message == "drain_deadline"]
    assert named == [[one.id]]


async def test_a_worker_that_is_stopped_before_it_runs_stops(field: Yard, redis_url: str) -> None:
    stopping = worker(field, redis_url, Gate().run)
    stopping.stop()

    await asyncio.wait_for(stopping.run(), 15)

    assert stopping.state == "stopped"
    assert await field.view.instances() == []


async def test_an_instance_whose_epoch_is_not_current_stops_its_tasks_and_registers_anew(
    field: Yard, redis_url: str
) -> None:
    gate, (one,) = Gate(), tasks()
    other = Registration(("a",), {"slots": 4}, {}, lease_ms=600)

    async with running(worker(field, redis_url, gate.run)):
        await field.put(one, instance="i")
        await gate.started.acquire()
        while not isinstance(await field.redis.register("i", "0123456789abcdef", other), Registered):
            pass
        await gate.started.acquire()  # the worker has the instance back, and the task comes again
        gate.may_end.set()
        await field.wait_for(one, "finished")
        (instance,) = await field.view.instances()

    assert gate.cancelled == 1
    assert instance.epoch != "0123456789abcdef"
    assert list(await field.outcomes()) == [one.id]


async def test_after_a_change_of_generation_a_task_goes_on_and_finishes_once(field: Yard, redis_url: str) -> None:
    gate, (one,) = Gate(), tasks()

    async with running(worker(field, redis_url, gate.run)):
        await field.put(one, instance="i")
        await gate.started.acquire()
        # The state is that of before the placement.
        place = await field.place(one)
        await field.connection.command("XDEL", f"{field.root}:q:i", place.at)
        await field.connection.command("HDEL", f"{field.root}:where", one.id)
        await field.connection.command("HSET", f"{field.root}:meta", "generation", "another")

        async def is_adopted() -> bool:
            found = await field.view.find(one.id)
            return found is not None and found.via == "r"

        await eventually(is_adopted, "the cell has the running task back")
        gate.may_end.set()
        await field.wait_for(one, "finished")

    assert gate.cancelled == 0
    assert gate.started.locked()  # it was started once
    assert list(await field.outcomes()) == [one.id]


async def test_after_a_change_of_generation_a_task_that_another_has_is_stopped(field: Yard, redis_url: str) -> None:
    gate, (one, two) = Gate(), tasks(2)

    async with running(worker(field, redis_url, gate.run)):
        await field.put(one, two, instance="i")
        await gate.started.acquire()
        await gate.started.acquire()
        await field.connection.command("HSET", f"{field.root}:where", one.id, "q|1|1-1|1|other|n|a|slots=1|")
        await field.connection.command("HSET", f"{field.root}:meta", "generation", "another")

        async def is_stopped() -> bool:
            return gate.cancelled == 1

        await eventually(is_stopped, "the task is cancelled")
        gate.may_end.set()
        await field.wait_for(two, "finished")

    assert list(await field.outcomes()) == [two.id]


_PROGRAM = """
import asyncio, sys
from taskyard.workers.worker import Worker

async def slow(work: object) -> str:
    print("started", flush=True)
    await asyncio.sleep(0.3)
    return "done"

asyncio.run(Worker({"a": slow}, redis=sys.argv[1], cell=sys.argv[2], slots=2).run())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_that_is_told_to_stop_drains_and_exits_with_0(
    field: Yard, redis_url: str, cell: str, number: signal.Signals
) -> None:
    (one,) = tasks()
    await field.put(one)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, redis_url, cell, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 15) == b"started\n"

    process.send_signal(number)
    _, errors = await asyncio.wait_for(process.communicate(), 15)

    assert (process.returncode, errors) == (0, b"")
    assert (await field.outcomes())[one.id].status == "succeeded"
    assert await field.view.instances() == []
