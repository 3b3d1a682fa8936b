"""What the workers' tests share: a cell to feed, a worker that runs for a while, conditions to wait for."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import (
    Applied,
    Batch,
    CellConfig,
    DispatcherCell,
    FleetView,
    Outgoing,
    Place,
    Planned,
)
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.cell.view import RedisView
from taskyard.schemas.codec import JSON, codec_for
from taskyard.schemas.entry import encode_entry, encode_headers, type_headers
from taskyard.schemas.outcome import Outcome
from taskyard.schemas.task import Task
from taskyard.workers.context import Context
from taskyard.workers.worker import Worker

_DEADLINE_S = 15.0


async def eventually(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """Wait until the condition holds; fails with its name after a deadline."""
    deadline_s = time.monotonic() + _DEADLINE_S
    while not await condition():
        assert time.monotonic() < deadline_s, f"not within {_DEADLINE_S} s: {what}"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(worker: Worker) -> AsyncGenerator[asyncio.Task[None]]:
    """Run the worker until the block ends; then it is stopped, unless it has stopped by itself."""
    task = asyncio.create_task(worker.run(), name="worker")
    try:
        await asyncio.wait_for(worker.started(), _DEADLINE_S)
        yield task
    finally:
        worker.stop()
        await asyncio.wait_for(asyncio.wait((task,)), 3 * _DEADLINE_S)
    if not task.cancelled():
        task.result()


class Gate:
    """A handler whose tasks are seen to start, and end when they may.

    started: (task id, attempt) of each, in order. cancelled, ended: their ids.
    """

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.cancelled: list[str] = []
        self.ended: list[str] = []
        self._failing: set[str] = set()
        self._may_end: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def run(self, work: Any, context: Context) -> str:  # noqa: ARG002 - it ends when it may, whatever the work
        """The handler."""
        name = context.task.id
        self.started.append((name, context.attempt))
        try:
            await self._may_end[name].wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        self.ended.append(name)
        if name in self._failing:
            raise ValueError("as the test wants it")
        return "done"

    def let(self, *tasks: Task, fail: bool = False) -> None:
        """Let tasks end: with success, or as a failed attempt."""
        for task in tasks:
            if fail:
                self._failing.add(task.id)
            self._may_end[task.id].set()

    async def has_started(self, *tasks: Task) -> None:
        """Wait until all of them have been started."""
        names = {task.id for task in tasks}

        async def have() -> bool:
            return names <= {name for name, _ in self.started}

        await eventually(have, f"{len(names)} tasks are started")

    async def has_ended(self, *tasks: Task) -> None:
        """Wait until all of them have ended."""
        names = {task.id for task in tasks}

        async def have() -> bool:
            return names <= set(self.ended)

        await eventually(have, f"{len(names)} tasks have ended")


class Field:
    """One cell as the dispatcher and ops have it."""

    def __init__(self, cell: DispatcherCell, view: FleetView) -> None:
        self.cell = cell
        self.view = view

    async def put(self, *tasks: Task, instance: str = "", headers: type_headers = ()) -> None:
        """Apply tasks, with the instance as their candidate if one is named."""
        vectors = await self.view.vectors()
        instances = [(instance, vectors[instance].tag)] if instance else []
        shapes = sorted({f"n|{task.type}|slots=1|" for task in tasks})
        codec = codec_for(headers)
        planned = [
            Planned(
                shapes.index(f"n|{task.type}|slots=1|"),
                (0,) if instance else (),
                encode_entry(
                    task_id=task.id.encode(),
                    shape=f"n|{task.type}|slots=1|".encode(),
                    max_attempts=task.max_attempts,
                    key_ms=float(i),
                    deadline_ms=float(task.deadline_ms),
                    arrived_ms=time.time() * 1000,
                    receipt=b"",
                    headers=encode_headers(headers),
                    wire=codec.encode_task(task),
                ),
            )
            for i, task in enumerate(tasks)
        ]
        applied = await self.cell.apply(Batch((), instances, shapes, planned))
        assert isinstance(applied, Applied)

    async def place(self, task: Task) -> Place:
        """Find a task that the cell knows."""
        place = await self.view.find(task.id)
        assert place is not None
        return place

    async def wait_for(self, task: Task, *states: str) -> Place:
        """Wait until the task is in one of the states."""

        async def is_there() -> bool:
            place = await self.view.find(task.id)
            return place is not None and place.state in states

        await eventually(is_there, f"{task.type} is {' or '.join(states)}")
        return await self.place(task)

    async def outgoing(self) -> list[Outgoing]:
        """Read the outbox."""
        return await self.cell.outbox(count=1000)

    async def outcomes(self) -> dict[str, Outcome]:
        """Read the outcomes, by task id; none may occur twice."""
        found = [JSON.decode_outcome(out.body) for out in await self.outgoing() if out.kind == "outcome"]
        assert len({outcome.id for outcome in found}) == len(found)
        return {outcome.id: outcome for outcome in found}


class Yard(Field):
    """A cell on Redis."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.root = connection.root
        self.redis = RedisCell(connection)
        super().__init__(self.redis, RedisView(connection))


@contextlib.asynccontextmanager
async def yard(redis_url: str, cell: str) -> AsyncGenerator[Yard]:
    """Open a cell without headroom."""
    connection = Connection(redis_url, cell)
    try:
        opened = Yard(connection)
        await opened.cell.open(CellConfig(headroom_permille=0))
        await opened.cell.begin({})
        yield opened
    finally:
        await connection.close()
