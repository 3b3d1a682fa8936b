"""Carrying old unfinished tasks: one that runs for a day must not make a lost cell read a day's records again.

What is older than `carry_after_ms` is copied to a compacted topic, and then counts as unfinished no more, so the
watermark passes it. The order: the copy must be safe before the cell stops counting the task, and what has ended
between the two has its copy deleted. When a carried task ends, the outbox deletes its copy. What a restored task has
been through since it was copied, attempts and causes, is forgotten.
"""

import time
from collections.abc import Sequence

import structlog

from taskyard.dispatcher.cell.contract import DispatcherCell, FleetView
from taskyard.dispatcher.clients import History, Producer
from taskyard.dispatcher.kafka.producer import OutgoingRecord
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.orphans import orphans
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.topics import topics

log = structlog.get_logger()

_LEASE_MS = 5_000
# Copies read from the cell at once: their bytes are all in its reply.
_AT_ONCE = 50


class Carry:
    """Run by one asyncio task. owner: this dispatcher's random name, for the lease."""

    def __init__(
        self, cell: DispatcherCell, view: FleetView, history: History, producer: Producer, settings: Settings,
        metrics: Metrics, owner: str,
    ) -> None:  # fmt: skip
        self._cell = cell
        self._view = view
        self._history = history
        self._producer = producer
        self._topic = topics(settings.prefix).carried
        self._config = settings.cell_config()
        self._after_ms = settings.recovery.carry_after_ms
        self._metrics = metrics
        self._owner = owner
        # The generation that we carry in.
        self._generation = ""
        # In which orphans have been looked for since the lease is ours; empty: since a step has failed, in none.
        self._tidy_in = ""

    async def step(self) -> None:
        """Carry all that is old, if there is anything and the lease is ours. Raises DependencyError."""
        tidy_in, self._tidy_in = self._tidy_in, ""
        if not await self._keep():
            return
        self._generation = (await self._cell.open(self._config)).generation
        before_ms = (await self._view.level()).now_ms - self._after_ms
        is_tidy = tidy_in == self._generation or await self._tidy(before_ms)
        await self._carry_old(before_ms)
        self._tidy_in = self._generation if is_tidy else ""

    async def _tidy(self, before_ms: int) -> bool:
        """Delete the copies that are orphans; False if that cannot be told now."""
        found = await orphans(self._cell, self._history, self._config, before_ms=before_ms)
        if found:
            await self._delete(found)
            log.info("orphans_deleted", count=len(found))
        return found is not None

    async def _carry_old(self, before_ms: int) -> None:
        if min(await self._view.unfinished(), default=before_ms) >= before_ms:
            return
        began_s, count, cursor = time.monotonic(), 0, ""
        while True:
            page = await self._cell.old(cursor, before_ms=before_ms)
            for first in range(0, len(page.task_ids), _AT_ONCE):
                count += await self._carry(page.task_ids[first : first + _AT_ONCE])
            cursor = page.cursor
            if not cursor or not await self._keep():
                break
        if count:
            log.info("tasks_carried", count=count, took_s=time.monotonic() - began_s)

    async def stop(self) -> None:
        """Close the connections and give the lease back."""
        try:
            await self._history.close()
            await self._producer.stop()
        finally:
            await self._cell.lease("carry", self._owner, ttl_ms=0)

    async def _keep(self) -> bool:
        return await self._cell.lease("carry", self._owner, ttl_ms=_LEASE_MS)

    async def _carry(self, task_ids: Sequence[str]) -> int:
        entries = await self._cell.copies(task_ids)
        copied = [(name, entry) for name, entry in zip(task_ids, entries, strict=True) if entry]
        records: list[OutgoingRecord] = [(self._topic, name.encode(), entry, []) for name, entry in copied]
        too_large = set(await self._one_by_one(records, await self._producer.publish(records)))
        for index in too_large:
            log.error("task_not_carried", task=copied[index][0], bytes=len(copied[index][1]),
                      next=f"raise max.message.bytes of {self._topic}; the watermark waits for it")  # fmt: skip
        safe = [name for index, (name, _) in enumerate(copied) if index not in too_large]
        carried = await self._cell.carry(safe) if safe else ()
        ended = [name for name, is_in in zip(safe, carried, strict=True) if not is_in]
        # In another history it may only seem to have ended.
        if ended and (await self._cell.open(self._config)).generation == self._generation:
            await self._delete(ended)
        self._metrics.carried.inc(sum(carried))
        return sum(carried)

    async def _delete(self, task_ids: Sequence[str]) -> None:
        await self._producer.publish([(self._topic, name.encode(), None, []) for name in task_ids])

    async def _one_by_one(self, records: Sequence[OutgoingRecord], refused: Sequence[int]) -> list[int]:
        """Of a batch that was refused for its size, try each alone; returns those that are too large themselves."""
        return [index for index in refused if await self._producer.publish([records[index]])]
