"""Workers over a real server that loses the cell, goes back in time, or has evicted them while they were paused."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncGenerator

import pytest

from taskyard.dispatcher.cell.contract import CellConfig, InstanceView
from taskyard.schemas.codec import JSON
from taskyard.schemas.task import AgentType, Task
from taskyard.workers.instance import InstanceSpec
from taskyard.workers.worker import Worker
from tests.worker_kit import Gate, Yard, eventually, running, yard

LEASE_MS = 600
CONFIG = CellConfig(headroom_permille=0)

# All types of keys, at one moment. The locks' times to live do not matter here.
SAVE = """
local saved = {}
for _, key in ipairs(redis.call('KEYS', KEYS[1] .. '*')) do
  saved[#saved + 1] = key
  saved[#saved + 1] = redis.call('DUMP', key)
end
return saved
"""
GO_BACK = """
for _, key in ipairs(redis.call('KEYS', KEYS[1] .. '*')) do redis.call('DEL', key) end
for i = 1, #ARGV, 2 do redis.call('RESTORE', ARGV[i], 0, ARGV[i + 1]) end
if #ARGV > 0 then redis.call('HSET', KEYS[1] .. ':meta', 'run_id', 'of another server') end
"""


class Ground(Yard):
    """A cell on Redis that can be lost, or put back to what it was."""

    @property
    def name(self) -> str:
        """The cell's."""
        return self.root.partition("{")[2].rstrip("}")

    async def save(self) -> list[bytes]:
        """Copy all keys of the cell."""
        return await self.connection.command("EVAL", SAVE, 1, self.root)

    async def go_back(self, saved: list[bytes], *placed: Task, on: str = "") -> str:
        """Put the copied keys in the place of those there are, place tasks, and open the cell as a dispatcher would.

        The workers are told by the last alone: none can say that it runs a task before that is placed.
        """
        await self.connection.command("EVAL", GO_BACK, 1, self.root, *saved)
        if placed:
            await self.put(*placed, instance=on)
        opening = await self.cell.open(CONFIG)
        await self.cell.begin({})
        return opening.generation

    async def seen(self, name: str) -> InstanceView | None:
        """Look at an instance."""
        return next((view for view in await self.view.instances() if view.id == name), None)


@pytest.fixture
async def field(redis_url: str, cell: str) -> AsyncGenerator[Ground]:
    """The cell of this test."""
    async with yard(redis_url, cell) as opened:
        yield Ground(opened.connection)


def tasks(number: int) -> list[Task]:
    return [Task(type=AgentType("a"), payload=JSON.encode_payload({})) for _ in range(number)]


def worker(field: Ground, redis_url: str, gate: Gate, name: str = "i", slots: int = 4) -> Worker:
    specs = [InstanceSpec(id=name, capacity={"slots": slots})]
    return Worker({"a": gate.run}, redis=redis_url, cell=field.name, instances=specs, lease_ms=LEASE_MS, drain_s=0)


async def test_after_the_cell_is_lost_for_good_no_running_task_starts_anew_and_every_outcome_comes(
    field: Ground, redis_url: str
) -> None:
    gate, many = Gate(), tasks(700)
    early, late = many[:300], many[300:]

    async def is_back() -> bool:
        seen = await field.seen("i")
        return seen is not None and seen.state == "open"

    async def are_out() -> bool:
        return len(await field.outgoing()) == len(many)

    async with running(worker(field, redis_url, gate, slots=len(many))):
        await field.put(*many, instance="i")
        await gate.has_started(*many)
        await field.go_back([])
        gate.let(*early)  # most of them end while the cell does not know the instance
        await eventually(is_back, "the instance is open")
        gate.let(*late)
        await eventually(are_out, "all outcomes are there")

    assert sorted(gate.started) == sorted((task.id, 1) for task in many)
    assert gate.cancelled == []
    assert set(await field.outcomes()) == {task.id for task in many}
    drift = await field.view.audit("i")
    assert (drift.misplaced, any(drift.used.values())) == (0, False)


async def test_after_the_cell_has_gone_back_each_task_goes_on_and_finishes_once(field: Ground, redis_url: str) -> None:
    gate = Gate()
    known, forgotten, finished, elsewhere = work = tasks(4)

    async def is_adopted() -> bool:
        place = await field.view.find(forgotten.id)
        return place is not None and place.via == "r"

    async def is_stopped() -> bool:
        return gate.cancelled == [elsewhere.id]

    async with running(worker(field, redis_url, gate)), running(worker(field, redis_url, other := Gate(), "j")):
        await field.put(known, finished, instance="i")
        await gate.has_started(known, finished)
        saved = await field.save()
        await field.put(forgotten, elsewhere, instance="i")
        await gate.has_started(forgotten, elsewhere)
        gate.let(finished)
        await field.wait_for(finished, "finished")

        await field.go_back(saved, elsewhere, on="j")  # as a dispatcher reads it from Kafka once more
        await eventually(is_adopted, "what was forgotten is on the queue")
        await eventually(is_stopped, "what another has is stopped")
        gate.let(*work)
        other.let(*work)
        for task in work:
            await field.wait_for(task, "finished")

    # What had been finished in the time that was lost ran once more; of the rest each attempt began once.
    assert sorted(gate.started) == sorted([*((task.id, 1) for task in work), (finished.id, 1)])
    assert other.started == [(elsewhere.id, 1)]
    assert {name: outcome.instance for name, outcome in (await field.outcomes()).items()} == {
        known.id: "i",
        forgotten.id: "i",
        finished.id: "i",
        elsewhere.id: "j",
    }


_PROGRAM = """
import asyncio, sys
from taskyard import Context, InstanceSpec
from taskyard.workers.worker import Worker

async def waits(work: object, context: Context) -> str:
    print("started", context.task.id, context.attempt, flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("cancelled", context.task.id, context.attempt, flush=True)

specs = [InstanceSpec(id="paused", capacity={"slots": 2})]
asyncio.run(Worker({"a": waits}, redis=sys.argv[1], cell=sys.argv[2], instances=specs, lease_ms=600, drain_s=0).run())
"""


@contextlib.asynccontextmanager
async def paused_later(redis_url: str, cell: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run a worker in a process that can be stopped."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, redis_url, cell, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.communicate()


async def lines(process: asyncio.subprocess.Process, number: int) -> set[str]:
    """Read what the process says."""
    assert process.stdout is not None
    return {(await asyncio.wait_for(process.stdout.readline(), 15)).decode().strip() for _ in range(number)}


async def test_a_worker_that_was_evicted_during_a_pause_stops_what_was_moved_and_no_attempt_finishes_twice(
    field: Ground, redis_url: str
) -> None:
    gate, both = Gate(), tasks(2)

    async def has_told_that_it_reads() -> bool:
        seen = await field.seen("paused")
        return seen is not None and seen.reported.cursor != "0-0"

    async def is_evicted() -> bool:
        await field.cell.evict(limit=100)
        return await field.seen("paused") is None

    async def is_back() -> bool:
        seen = await field.seen("paused")
        return seen is not None and seen.state == "open"

    async with paused_later(redis_url, field.name) as process, running(worker(field, redis_url, gate, "j", slots=2)):
        await eventually(is_back, "the process has registered")
        await field.put(*both, instance="paused")
        assert await lines(process, 2) == {f"started {task.id} 1" for task in both}
        await eventually(has_told_that_it_reads, "a beat carries the cursor")
        process.send_signal(signal.SIGSTOP)
        await eventually(is_evicted, "the lease has run out")
        await gate.has_started(*both)
        process.send_signal(signal.SIGCONT)
        assert await lines(process, 2) == {f"cancelled {task.id} 1" for task in both}
        await eventually(is_back, "the process has registered anew")
        gate.let(*both)
        for task in both:
            await field.wait_for(task, "finished")
        process.send_signal(signal.SIGTERM)
        _, warnings = await asyncio.wait_for(process.communicate(), 15)

    assert (process.returncode, warnings) == (0, b"instance_refused\ninstance_resynced\n")
    assert sorted(gate.started) == sorted((task.id, 2) for task in both)
    assert {(outcome.instance, outcome.attempt) for outcome in (await field.outcomes()).values()} == {("j", 2)}
    assert len(await field.outgoing()) == len(both)
