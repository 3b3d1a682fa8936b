"""Stopping in rungs: quiet, give back, let finish, end the rest, leave."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from taskyard.workers.attempt import Attempt
from taskyard.workers.instance import Instance
from taskyard.workers.keeper import Keeper, drain
from taskyard.workers.reader import Reader
from taskyard.workers.runner import Runner

log = logging.getLogger("taskyard.worker")

_RUNG_S = 5.0  # for what needs the cell or an obedient handler; a cell that is down must not keep the process
_NAMED = 20  # task ids in one line of the log


class Drain:
    """One stop of a worker. The order: what is given back must not be placed here again, so quiet comes first; what
    ends must be told before the lease is given up, so leave comes last.

    Takes at most drain_s and five rungs of 5 s; a lease that could not be given back runs out by itself.
    """

    def __init__(
        self, instances: Sequence[Instance], readers: Sequence[Reader], keeper: Keeper, runner: Runner
    ) -> None:
        self._instances = instances
        self._readers = readers
        self._keeper = keeper
        self._runner = runner

    async def run(self, *, drain_s: float, hurry: asyncio.Event) -> None:
        """Go through all rungs. hurry: set, it ends the wait for what runs."""
        await self._rung("quiet", [self._keeper.close(instance) for instance in self._instances])
        for instance in self._instances:
            drain(instance)  # also if the cell did not answer
        await self._rung("give_back", [reader.sweep() for reader in self._readers])
        for attempt in self._running():
            attempt.give_back("the worker is draining")
        await self._let_finish(drain_s, hurry)
        await self._end_rest()
        await self._rung("finish", [_all_settled(instance) for instance in self._instances])
        await self._rung("leave", [self._leave(instance) for instance in self._instances])

    async def _rung(self, name: str, steps: Sequence[Coroutine[Any, Any, None]]) -> None:
        tasks = [asyncio.create_task(step, name=f"drain-{name}") for step in steps]
        try:
            _, late = await asyncio.wait(tasks, timeout=_RUNG_S)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        if late:
            log.warning("drain_rung_late", extra={"rung": name, "instances": len(late), "next": "go on without"})
        for error in ends:
            if isinstance(error, Exception):
                raise error

    async def _let_finish(self, drain_s: float, hurry: asyncio.Event) -> None:
        tasks = [attempt.task for attempt in self._running() if attempt.task is not None]
        if not tasks:
            return
        log.info("drain_waits", extra={"running": len(tasks), "at_most_s": drain_s})
        ended = asyncio.create_task(asyncio.wait(tasks), name="drain-ended")
        hurried = asyncio.create_task(hurry.wait(), name="drain-hurried")
        try:
            await asyncio.wait((ended, hurried), timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, hurried):
                task.cancel()
            await asyncio.gather(ended, hurried, return_exceptions=True)

    async def _end_rest(self) -> None:
        left = self._running()
        if not left:
            return
        names = [attempt.task_id for attempt in left[:_NAMED]]
        log.warning("drain_deadline", extra={"count": len(left), "task_ids": names, "next": "cancelled, to be retried"})
        for attempt in left:
            attempt.stop("retry", "drain deadline")
        await asyncio.wait([attempt.task for attempt in left if attempt.task is not None], timeout=_RUNG_S)
        # One that was cancelled before its first step never ran; one that does not obey is not waited for.
        for instance in self._instances:
            for attempt in instance.running():
                attempt.obey()
                instance.ended(attempt)

    async def _leave(self, instance: Instance) -> None:
        had_lease = instance.has_lease
        if not instance.is_stopped:
            # Before the call: a beat between two of its pages would be refused.
            instance.stop()
        if had_lease:
            await self._keeper.leave(instance)

    def _running(self) -> list[Attempt]:
        return [attempt for instance in self._instances for attempt in instance.running()]


async def _all_settled(instance: Instance) -> None:
    # One without a lease waits for the next: the keeper registers it anew to tell its endings.
    while instance.held and instance.life.state == "draining":
        instance.settled.clear()
        await instance.settled.wait()
