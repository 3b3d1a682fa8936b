"""A worker over a cell in memory, and the line between them: a test cuts it, or leads it to another cell."""

import copy
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, cast

from taskyard.dispatcher.cell.contract import CellConfig, Delivery, WorkerCell
from taskyard.dispatcher.cell.twin import TwinCell
from taskyard.schemas.codec import JSON
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.task import AgentType, Task
from taskyard.workers.instance import Instance, InstanceSpec
from taskyard.workers.worker import Worker
from tests.worker_kit import Field, Gate

LEASE_MS = 600
_BLOCK_MS = 10  # a read that began on a cell that is no more must not last

ALL = frozenset({"register", "beat", "read", "finish", "resync", "close_instance", "leave"})
NONE: frozenset[str] = frozenset()

When = Literal["before", "after"]
Happening = Callable[[], Awaitable[object]]


class Clock:
    """The server's clock, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        """Unix ms."""
        return time.time_ns() // 1_000_000 + self.ahead_ms


class Line:
    """Hands on what a worker calls.

    cell: whoever is behind it now. cut: the calls that fail. calls: all that were made.
    """

    def __init__(self, cell: TwinCell) -> None:
        self.cell = cell
        self.cut = NONE
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._happenings: dict[tuple[When, str], Happening] = {}

    def once(self, when: When, name: str, happening: Happening) -> None:
        """Let something happen at the next call of this name: before it arrives, or before its reply does."""
        self._happenings[when, name] = happening

    async def read(self, cursors: dict[str, str], *, count: int, block_ms: int) -> list[Delivery]:
        """Read; returns earlier than a server would."""
        return await self._through("read", cursors, count=count, block_ms=min(block_ms, _BLOCK_MS))

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """Any other call of the contract."""
        if name not in ALL:
            raise AttributeError(name)

        def call(*words: Any, **fields: Any) -> Awaitable[Any]:
            return self._through(name, *words, **fields)

        return call

    async def _through(self, name: str, *words: Any, **fields: Any) -> Any:
        self.calls.append((name, words))
        await self._happen("before", name)
        if name in self.cut:
            raise DependencyError("the line is cut")
        reply = await getattr(self.cell, name)(*words, **fields)
        await self._happen("after", name)
        return reply

    async def _happen(self, when: When, name: str) -> None:
        happening = self._happenings.pop((when, name), None)
        if happening is not None:
            await happening()


class Stage:
    """One worker with the instance `i`, its handler, its line and the cell behind it."""

    def __init__(self, cell: TwinCell, clock: Clock, *, slots: int = 4, drain_s: float = 0) -> None:
        self.clock = clock
        self.line = Line(cell)
        self.field = Field(cell, cell)
        self.gate = Gate()
        self.worker = Worker(
            {"a": self.gate.run},
            instances=[InstanceSpec(id="i", capacity={"slots": slots})],
            cells=lambda: cast("WorkerCell", self.line),
            lease_ms=LEASE_MS,
            drain_s=drain_s,
        )

    @property
    def cell(self) -> TwinCell:
        """The cell that the worker has now."""
        return self.line.cell

    def _change(self, cell: TwinCell) -> None:
        self.line.cell = self.field.cell = self.field.view = cell

    @property
    def instance(self) -> Instance:
        """The worker's record of its instance."""
        return vars(self.worker)["_instances"][0]

    async def lose_all(self, *, ended: Sequence[Task] = ()) -> None:
        """Put an empty cell in the place of the one there was. ended: what the results topic tells it."""
        cell = new_cell(self.clock)
        await cell.open(CellConfig(headroom_permille=0))
        await cell.remember([task.id for task in ended])
        await cell.begin({})
        self._change(cell)

    def save(self) -> TwinCell:
        """Copy the cell as it is now."""
        return copy.deepcopy(self.cell, {id(self.clock): self.clock})

    def go_back(self, saved: TwinCell) -> None:
        """Put the cell back to what it was, in another generation."""
        cell = copy.deepcopy(saved, {id(self.clock): self.clock})
        vars(cell)["_state"].generation = f"{random.getrandbits(64):016x}"
        self._change(cell)

    async def evict(self) -> None:
        """Let the lease run out and take all back, in one step: no beat comes between."""
        await self.cell.evict(limit=1000)  # or the lease would be spared
        self.clock.ahead_ms += LEASE_MS + 1
        assert await self.cell.evict(limit=1000) == ("i", 0)


def new_cell(clock: Clock) -> TwinCell:
    """Make a cell that has nothing yet."""
    return TwinCell(random.Random(), clock)


async def staged(*, slots: int = 4, drain_s: float = 0) -> Stage:
    """Make a stage whose cell has begun."""
    clock = Clock()
    stage = Stage(new_cell(clock), clock, slots=slots, drain_s=drain_s)
    await stage.lose_all()
    return stage


def tasks(number: int) -> list[Task]:
    """Make tasks for the handler."""
    return [Task(type=AgentType("a"), payload=JSON.encode_payload({})) for _ in range(number)]
