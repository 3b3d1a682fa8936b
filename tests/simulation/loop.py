"""An event loop on virtual time: when nothing is ready it is the next timer's moment at once. One seed, one order."""
# It stands on the parts of BaseEventLoop that every loop of the standard library stands on; they have no stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportUninitializedInstanceVariable=false

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.simulation.process import Process, nobody, process_of

# Handles that run without time passing: more of them is a loop that spins.
_SPINS = 20_000


class Stuck(Exception):
    """Nothing is left to happen, or something happens for ever at one moment."""


class SimTask(asyncio.Task[Any]):
    """A task with a hash of its own: sets of tasks are walked in the same order in every run."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs everything of one simulated world. The handles of a paused process are kept back."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._numbers = itertools.count(1)
        self._spins = 0
        # Told before time moves on, and to when: until then nothing happens. Set by the owner.
        self.on_move: Callable[[float], None] = nobody

    def time(self) -> float:
        """Seconds since the beginning of the world."""
        return self._now_s

    def create_task(self, coro: Any, *, name: object = None, context: Any = None) -> SimTask:
        """Create a task that its process knows."""
        task = SimTask(coro, loop=self, name=None if name is None else str(name), context=context)
        task.number = next(self._numbers)
        process = process_of(context)
        if process is not None:
            process.tasks[task] = None
            task.add_done_callback(process.forget)
        return task

    def _write_to_self(self) -> None:
        """Wake the loop from another thread: there is none."""

    def _run_once(self) -> None:
        if not self._ready:
            self._go_to_next_timer()
        while self._scheduled and self._scheduled[0]._when <= self._now_s:
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False
            self._ready.append(handle)
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if handle._cancelled:
                continue
            process = process_of(handle._context)
            if process is not None and process.frozen is not None:
                process.frozen.append(handle)
                continue
            self._spins += 1
            handle._run()
        if self._spins > _SPINS:
            raise Stuck(f"{_SPINS} steps at one moment, {self._now_s:.3f} s")

    def _go_to_next_timer(self) -> None:
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
        if self._stopping:
            return
        if not self._scheduled:
            raise Stuck("nothing is left to happen")
        if self._scheduled[0]._when > self._now_s:
            self.on_move(self._scheduled[0]._when)
            self._now_s = self._scheduled[0]._when
            self._spins = 0

    def freeze(self, process: Process) -> None:
        """Run nothing of a process until `thaw`."""
        process.frozen = deque()

    def thaw(self, process: Process) -> None:
        """Let a paused process go on with all that has come meanwhile."""
        handles, process.frozen = process.frozen or (), None
        self._ready.extend(handles)
