"""Keeping an instance: register it, send its endings, and begin again when the cell refuses it."""

import asyncio
import logging
import time
from functools import partial

from taskyard.dispatcher.cell.contract import Evicting, Finished, Refused, WorkerCell
from taskyard.workers.attempt import Attempt
from taskyard.workers.instance import Instance
from taskyard.workers.link import Link, backoff_s
from taskyard.workers.resync import Resync

log = logging.getLogger("taskyard.worker")

_STABLE_LEASES = 3  # a registration that lasted this long was no quarrel over the instance's id
# Endings of so long go in one call, once a call has shown that nothing waits for what they free: at 2,000 tasks a
# second the worker takes an eighth less processor time, the server a tenth. So many are worth a call of their own.
_GATHER_S = 0.005
# While something waits for it: a slot stays free for so long, and a busy worker and its server have fewer calls.
_BRIEFLY_S = 0.001
_ENOUGH = 32
_PAGE_WAIT_S = 0.02  # between two pages of a former registration that is being taken back


class Keeper:
    """One for a process; each instance has an asyncio task of its own that runs `keep`.

    Registering, resyncing and finishing of one instance are done by that task alone, one after the other: an ending
    never goes out while the cell is being told what is held.
    """

    def __init__(self, cell: WorkerCell, link: Link, lease_ms: int) -> None:
        self._cell = cell
        self._link = link
        self._resync = Resync(cell, link)
        self._lease_ms = lease_ms

    async def keep(self, instance: Instance) -> None:
        """Hold a lease and send endings until the instance is stopped; ends by itself then."""
        losses = 0
        while not instance.is_stopped:
            await self._register(instance)
            registered_s = time.monotonic()
            await self._serve(instance)
            if not instance.is_stopped:
                is_stable = time.monotonic() - registered_s > _STABLE_LEASES * self._lease_ms / 1000
                losses = 0 if is_stable else losses + 1
                # Two processes under one id take it from each other for ever: ever more slowly.
                await asyncio.sleep(backoff_s(losses, cap_s=self._lease_ms / 1000))

    async def _register(self, instance: Instance) -> None:
        epoch, tries = instance.new_epoch(), 0
        offer = instance.spec.registration(self._lease_ms)
        call = partial(self._cell.register, instance.spec.id, epoch, offer, is_resuming=instance.must_resume)
        while not instance.is_stopped:
            reply = await self._link.answer(call)
            if isinstance(reply, Evicting):
                log.debug("instance_waits", extra={"instance": instance.spec.id, "left": reply.left})
                await asyncio.sleep(backoff_s(tries, first_s=_PAGE_WAIT_S, cap_s=1.0))
                tries += 1
            elif not instance.is_stopped:
                instance.begin(reply.generation, reply.cursor)
                fields = {"instance": instance.spec.id, "epoch": epoch, "held": len(instance.held)}
                log.info("instance_registered", extra=fields)
                return
            else:  # stopped while the call was under way
                await self.leave(instance)

    async def _serve(self, instance: Instance) -> None:
        """Send endings, and resync when the standing asks for it, while there is a lease."""
        while instance.has_lease:
            await instance.wake.wait()
            instance.wake.clear()
            if instance.standing.state == "resuming":
                await self._resync.run(instance)
            await self._finish_all(instance)
            if instance.may_finish and not instance.is_open:
                instance.open()  # all that it kept is accepted

    async def _finish_all(self, instance: Instance) -> None:
        while instance.may_finish and (batch := instance.take_batch()):
            has_pulled = await self._link.answer(partial(self._finish, instance, batch))
            # What it has kept through a resync must be told before it reads again: as soon as can be.
            may_wait = instance.is_open and instance.life.state == "running"
            if may_wait and len(batch) < _ENOUGH:
                await asyncio.sleep(_BRIEFLY_S if has_pulled else _GATHER_S)

    async def _finish(self, instance: Instance, batch: list[Attempt]) -> bool:
        """Send endings once; tell whether what they freed was waited for. Repeating it is harmless.

        A batch that is left because the standing was lost is not lost: all endings are queued anew by `resume`.
        """
        ours = [attempt for attempt in batch if not attempt.is_taken]
        if not ours or not instance.may_finish:
            return False
        epoch = instance.epoch
        reply = await self._cell.finish(instance.spec.id, epoch, [attempt.ending() for attempt in ours])
        if isinstance(reply, Finished):
            instance.settle(ours)
            _log_uncounted(instance, ours, reply)
            return reply.pulled > 0
        if instance.has_lease:  # the pulse may have noticed it before
            instance.lose(reply.why)
        return False

    async def leave(self, instance: Instance) -> None:
        """Unregister, page by page; what is left on the queue goes to others."""
        while True:
            reply = await self._link.answer(partial(self._cell.leave, instance.spec.id, instance.epoch))
            if isinstance(reply, Refused) or reply.left == 0:
                log.info("instance_left", extra={"instance": instance.spec.id})
                return

    async def close(self, instance: Instance) -> None:
        """Let nothing more be placed on it; from then on what arrives is given back.

        One that is not registered, or still resuming, is closed when it has told what it holds.
        """
        while instance.may_finish:
            epoch = instance.epoch
            # If it is refused, the next call is too, and tells why.
            await self._link.answer(partial(self._cell.close_instance, instance.spec.id, epoch, "draining"))
            if instance.epoch == epoch:
                break
        # Not before the answer: a task given back to an open instance could come here once more.
        drain(instance)


def drain(instance: Instance) -> None:
    """Move a running instance to draining."""
    if instance.life.state == "running":
        instance.life.move("draining")
    elif instance.life.state == "starting":
        instance.life.move("stopped")


def _log_uncounted(instance: Instance, attempts: list[Attempt], reply: Finished) -> None:
    if not all(reply.accepted):
        gone = [a.task_id for a, counted in zip(attempts, reply.accepted, strict=True) if not counted]
        log.debug("endings_not_counted", extra={"instance": instance.spec.id, "task_ids": gone})
