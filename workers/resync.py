"""Resync: tell a cell that has gone back in time, or that lost the instance, what the instance holds."""

import logging
from collections.abc import Sequence
from functools import partial

from taskyard.dispatcher.cell.contract import Refused, Resynced, Running, WorkerCell
from taskyard.workers.attempt import Attempt
from taskyard.workers.instance import Instance
from taskyard.workers.link import Link

log = logging.getLogger("taskyard.worker")

_MAX_TASKS = 500  # in one call, with their entries
_MAX_BYTES = 4 << 20


class Resync:
    """The stage between `resuming` and `resumed`. Run by the instance's keeper, so that no finish is under way."""

    def __init__(self, cell: WorkerCell, link: Link) -> None:
        self._cell = cell
        self._link = link

    async def run(self, instance: Instance) -> None:
        """Tell everything that is held, page by page, and stop what the cell does not leave here.

        Afterwards the instance is resumed, or absent if it was refused, or is to be told again. Nothing is lost
        either way: every page may be repeated.
        """
        pages = _pages(list(instance.held.values()))
        adopted: set[str] = set()
        generations: set[str] = set()
        for number, page in enumerate(pages, 1):
            reply = await self._link.answer(partial(self._tell, instance, page, is_last=number == len(pages)))
            if not instance.has_lease:  # a beat was refused meanwhile, or it was stopped
                return
            if isinstance(reply, Refused):
                instance.lose(reply.why)
                return
            generations.add(reply.generation)
            _adopt(instance, page, reply.stream_ids, adopted)
        await self._end(instance, generations, adopted)

    async def _tell(self, instance: Instance, page: list[Attempt], *, is_last: bool) -> Resynced | Refused:
        """Tell a page once. The last one opens the instance, unless it is draining by now."""
        running = [Running(a.task_id, a.stream_id, a.number, a.raw) for a in page]
        is_last = is_last and instance.life.state == "running"
        return await self._cell.resync(instance.spec.id, instance.epoch, running, is_last=is_last)

    async def _end(self, instance: Instance, generations: set[str], adopted: set[str]) -> None:
        if instance.life.state == "draining":
            # What closed it before may be lost. If it is refused, the next call tells why.
            call = partial(self._cell.close_instance, instance.spec.id, instance.epoch, "draining")
            await self._link.answer(call)
            if not instance.has_lease:
                return
        if len(generations) > 1:  # it went back once more between two pages, and has lost the first
            instance.wake.set()
            return
        instance.resume(generations.pop(), adopted)
        log.warning(
            "instance_resynced",
            extra={"instance": instance.spec.id, "generation": instance.generation, "kept": len(adopted)},
        )


def _pages(attempts: list[Attempt]) -> list[list[Attempt]]:
    """Part attempts by number and bytes; one empty page if there are none, which still asks for the generation."""
    pages: list[list[Attempt]] = [[]]
    size_bytes = 0
    for attempt in attempts:
        size_bytes += len(attempt.raw)
        if len(pages[-1]) == _MAX_TASKS or (pages[-1] and size_bytes > _MAX_BYTES):
            pages.append([])
            size_bytes = len(attempt.raw)
        pages[-1].append(attempt)
    return pages


def _adopt(instance: Instance, page: list[Attempt], stream_ids: Sequence[str | None], adopted: set[str]) -> None:
    """Take over the new stream ids. What has none is not this instance's any more."""
    gone: list[Attempt] = []
    for attempt, stream_id in zip(page, stream_ids, strict=True):
        if stream_id is not None:
            attempt.stream_id = stream_id
            adopted.add(stream_id)
        elif attempt.how != "succeeded":
            attempt.take_away()
            gone.append(attempt)
        # else: the work is done. Its ending counts wherever the task is by now, if no other attempt was begun.
    instance.settle(gone)
    if gone:
        names = [attempt.task_id for attempt in gone]
        log.info("tasks_taken_away", extra={"instance": instance.spec.id, "task_ids": names[:20], "count": len(names)})
