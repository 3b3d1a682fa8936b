"""The pulse: beats that renew the leases, and what the cell answers to them."""

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Sequence
from functools import partial

from taskyard.dispatcher.cell.contract import Refused, WorkerCell
from taskyard.schemas.errors import DependencyError
from taskyard.workers.instance import Instance
from taskyard.workers.link import Link, backoff_s
from taskyard.workers.load import Load

log = logging.getLogger("taskyard.worker")

_BEATS_PER_LEASE = 3


class Pulse:
    """One loop for all instances of a process; each has a time of its own, so that beats are spread."""

    def __init__(self, cell: WorkerCell, link: Link, instances: Sequence[Instance], lease_ms: int) -> None:
        self._cell = cell
        self._link = link
        self._instances = instances
        self._period_s = lease_ms / 1000 / _BEATS_PER_LEASE
        self._load = Load()

    async def run(self) -> None:
        """Beat for ever: each instance every third of its lease, less up to 15 %.

        A lease that has run out by this process's clock, because the cell does not answer, changes nothing: what runs
        goes on and its endings are kept. Whether anybody has evicted the instance only the cell can say, by its own
        clock; where nothing answers nobody evicts, and after an outage the cell spares all leases for a while. If it
        was evicted, the resync stops just what others have been given.
        """
        mono_s = time.monotonic()
        due = [(mono_s + random.uniform(0, self._period_s), i, 0) for i in range(len(self._instances))]
        heapq.heapify(due)
        while True:
            due_s, i, failures = due[0]
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            wait_s, failures = self._period_s * random.uniform(0.85, 1.0), 0
            if self._instances[i].has_lease:
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
        if instance.epoch != epoch or not instance.has_lease:
            return
        if isinstance(reply, Refused):
            instance.lose(reply.why)
            return
        instance.skip(reply.recalled)
        if reply.generation != instance.generation and instance.may_finish:
            instance.doubt()
