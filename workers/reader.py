"""Reading the queues: one blocking read for many instances."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from functools import partial

from taskyard.dispatcher.cell.contract import Delivery, WorkerCell
from taskyard.workers.instance import Instance
from taskyard.workers.link import Link
from taskyard.workers.runner import Runner

log = logging.getLogger("taskyard.worker")

MAX_INSTANCES = 500
"""Of one reader: the server looks at each stream of a read."""

_COUNT = 200  # entries of an instance in one read; more would keep the event loop busy for too long
_BLOCK_MS = 1_000  # an instance that registers during a read is read from the next one on
_FIRST_WAIT_S = 2.0


class Reader:
    """Reads for its instances with a cell object of its own: that does one read at a time."""

    def __init__(self, cell: WorkerCell, link: Link, instances: Sequence[Instance], runner: Runner) -> None:
        self._cell = cell
        self._link = link
        self._instances = {instance.spec.id: instance for instance in instances}
        self._runner = runner

    async def run(self) -> None:
        """Read for ever and start what arrives."""
        await self._wait_for_all()
        while True:
            if not await self._read_once(_BLOCK_MS):
                await self._wait_for_any()

    async def sweep(self) -> None:
        """Take what is on the queues now, without waiting. Not while `run` is running."""
        while await self._read_once(1):
            pass

    async def _read_once(self, block_ms: int) -> bool:
        """Read and start once. False if no instance is open, or if a sweep finds nothing more."""
        opened = {name: instance for name, instance in self._instances.items() if instance.is_open}
        if not opened:
            return False
        cursors = {name: instance.cursor for name, instance in opened.items()}
        serials = {name: instance.serial for name, instance in opened.items()}
        call = partial(self._cell.read, cursors, count=_COUNT, block_ms=block_ms)
        deliveries = await self._link.answer(call)
        self._start(deliveries, serials)
        for name, instance in opened.items():
            instance.has_read(serials[name])
        return block_ms > 1 or bool(deliveries)

    def _start(self, deliveries: Sequence[Delivery], serials: dict[str, int]) -> None:
        # Registered anew, resyncing or recalled during the read: it is read again from the new cursor. Starting changes
        # neither serial nor standing, so looking once is enough.
        current = {
            name: instance
            for name, serial in serials.items()
            if (instance := self._instances[name]).serial == serial and instance.is_open
        }
        for name, stream_id, raw in deliveries:
            if (instance := current.get(name)) is not None:
                self._runner.start(instance, stream_id, raw)
                instance.cursor = stream_id

    async def _wait_for_all(self) -> None:
        # The first read is for all of them; but one that cannot register must not stop the others.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_WAIT_S):
                for instance in self._instances.values():
                    await instance.registered.wait()

    async def _wait_for_any(self) -> None:
        first = next(iter(self._instances.values()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BLOCK_MS / 1000 / 4):
                await first.registered.wait()
