"""The pulse: beats that renew the leases, and what the cell answers to them."""

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Sequence
from functools import partial

from taskyard.dispatcher.cell.contract import Refused, Running, WorkerCell
from taskyard.schemas.errors import DependencyError
from taskyard.workers.attempt import Attempt
from taskyard.workers.instance import FIRST, Instance
from taskyard.workers.link import Link, backoff_s
from taskyard.workers.load import Load

log = logging.getLogger("taskyard.worker")

_BEATS_PER_LEASE = 3
_MAX_RESYNC = 500  # tasks in one call, with their entries
_MAX_RESYNC_BYTES = 4 << 20


class Pulse:
    """One loop for all instances of a process; each has a time of its own, so that beats are spread."""

    def __init__(self, cell: WorkerCell, link: Link, instances: Sequence[Instance], lease_ms: int) -> None:
        self._cell = cell
        self._link = link
        self._instances = instances
        self._period_s = lease_ms / 1000 / _BEATS_PER_LEASE
        self._load = Load()

    async def run(self) -> None:
        """Beat for ever: each instance every third of its lease, less up to 15 %."""
        mono_s = time.monotonic()
        due = [(mono_s + random.uniform(0, self._period_s), i, 0) for i in range(len(self._instances))]
        heapq.heapify(due)
        while True:
            due_s, i, failures = due[0]
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            wait_s, failures = self._period_s * random.uniform(0.85, 1.0), 0
            if self._instances[i].is_live:
                try:
                    await self._link.once(partial(self._beat, self._instances[i]))
                except DependencyError:
                    failures = due[0][2] + 1
                    wait_s = min(wait_s, backoff_s(failures))
            heapq.heapreplace(due, (time.monotonic() + wait_s, i, failures))

    async def _beat(self, instance: Instance) -> None:
        epoch = instance.epoch
        report = instance.report(*self._load.read())
        reply = await self._cell.beat(instance.spec.id, epoch, report)
        if instance.epoch != epoch or not instance.is_live:
            return
        if isinstance(reply, Refused):
            instance.lose(reply.why)
            return
        instance.skip(reply.recalled)
        if reply.generation != instance.generation:
            await self._resync(instance, epoch)

    async def _resync(self, instance: Instance, epoch: str) -> None:
        """Tell a cell that may have gone back in time what runs here; stop what another has."""
        async with instance.lock:
            kept: set[str] = set()
            generation, stopped = "", 0
            for page in _pages(list(instance.held.values())):
                running = [Running(a.task_id, a.stream_id, a.number, a.raw) for a in page]
                reply = await self._cell.resync(instance.spec.id, epoch, running)
                if instance.epoch != epoch or not instance.is_live:
                    return
                if isinstance(reply, Refused):
                    instance.lose(reply.why)
                    return
                generation = reply.generation
                stopped += _adopt(instance, page, reply.stream_ids, kept)
            instance.generation, instance.adopted = generation, kept
            # What it finished in the time that was lost is on its queue once more, behind the cursor.
            instance.go_to(FIRST)
        log.warning(
            "instance_resynced",
            extra={"instance": instance.spec.id, "generation": generation, "kept": len(kept), "stopped": stopped},
        )


def _pages(attempts: list[Attempt]) -> list[list[Attempt]]:
    """Part attempts by number and bytes; one empty page if there are none, which still asks for the generation."""
    pages: list[list[Attempt]] = [[]]
    size_bytes = 0
    for attempt in attempts:
        size_bytes += len(attempt.raw)
        if len(pages[-1]) == _MAX_RESYNC or (pages[-1] and size_bytes > _MAX_RESYNC_BYTES):
            pages.append([])
            size_bytes = len(attempt.raw)
        pages[-1].append(attempt)
    return pages


def _adopt(instance: Instance, page: list[Attempt], stream_ids: Sequence[str | None], kept: set[str]) -> int:
    stopped: list[Attempt] = []
    for attempt, stream_id in zip(page, stream_ids, strict=True):
        if stream_id is None:
            attempt.take_away()
            stopped.append(attempt)
        else:
            attempt.stream_id = stream_id
            kept.add(stream_id)
    instance.settle(stopped)
    return len(stopped)
