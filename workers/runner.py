"""Running: from an entry that arrived to the ending of its attempt."""

import asyncio
import logging
import time
from collections.abc import Mapping
from math import isnan
from typing import Any

from taskyard.schemas.codec import Codec, codec_for
from taskyard.schemas.entry import Entry, decode_entry
from taskyard.schemas.errors import SchemaError
from taskyard.schemas.limits import Limits
from taskyard.schemas.outcome import Outcome
from taskyard.schemas.task import Task
from taskyard.workers.attempt import Attempt
from taskyard.workers.context import Context
from taskyard.workers.errors import GiveUp, Retry
from taskyard.workers.handler import Handler
from taskyard.workers.instance import Instance
from taskyard.workers.threads import Threads, limited

log = logging.getLogger("taskyard.worker")

MAX_RESULT_BYTES = 1 << 20
"""A result travels through the cell's memory and Kafka; a bigger one is stored elsewhere and referred to."""

_MAX_DELAY_S = 365 * 86_400

# The dispatcher has measured the payload, with limits of its own.
_TAKEN = Limits(payload_bytes=1 << 30)


class Runner:
    """Starts every entry when it arrives: the cell has reserved its capacity, so there is nothing to wait for."""

    def __init__(self, handlers: Mapping[str, Handler], threads: Threads) -> None:
        self._handlers = handlers
        self._threads = threads
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, instance: Instance, stream_id: str, raw: bytes) -> None:
        """Run the entry as an asyncio task, unless it runs already; give it back if the instance is draining."""
        try:
            entry = decode_entry(raw)
        except SchemaError as error:
            # Nobody knows whose it is. It keeps its capacity until this instance leaves.
            log.error("entry_undecodable", extra={"stream_id": stream_id, "error": str(error), "next": "upgrade"})  # noqa: TRY400 - the error says it all
            return
        key = (entry.id, entry.attempt)
        known = instance.held.get(key)
        if known is not None:  # read once more after a resync, or placed here once more after a recall
            known.stream_id = stream_id
            return
        if stream_id in instance.adopted:
            return
        attempt = instance.held[key] = Attempt(entry.id, entry.attempt, stream_id, raw)
        if instance.life.state == "draining":
            attempt.end("unstarted", "the worker is draining")
            instance.ended(attempt)
            return
        # The loop's own: asyncio's function of the same name takes 0.2 us more.
        create_task = asyncio.get_running_loop().create_task
        task = attempt.task = create_task(self._run(instance, attempt, entry), name=entry.id)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _run(self, instance: Instance, attempt: Attempt, entry: Entry) -> None:
        attempt.started_ms = _now_ms()
        try:
            await self._handle(instance, attempt, entry)
        except Retry as error:
            attempt.end("retry", error.reason, _delay_ms(error.delay_s))
        except GiveUp as error:
            attempt.end("gave_up", error.reason)
        except asyncio.CancelledError:
            if not attempt.obey() and not _is_cancelled_from_outside():
                attempt.end("retry", "CancelledError: the handler was cancelled from inside")
                return
            raise
        except (Exception, SystemExit) as error:  # a handler that exits must not take the tasks of others with it
            attempt.end("retry", f"{type(error).__name__}: {_said(error)}")
            log.debug("attempt_failed", exc_info=error, extra={"task_id": attempt.task_id, "type": attempt.type})
        finally:
            instance.ended(attempt)

    async def _handle(self, instance: Instance, attempt: Attempt, entry: Entry) -> None:
        try:
            codec = codec_for(entry.headers)
            task = codec.decode_task(entry.wire, _TAKEN)
            attempt.type = task.type
            handler = self._handlers.get(task.type)
            if handler is None:
                raise Retry(f"{instance.spec.id} has no handler for {task.type}")
            payload = codec.decode_payload(task.payload, handler.payload_type)
        except SchemaError as error:
            raise GiveUp(f"poison: {error}") from error
        context = None
        if handler.context_name or not handler.is_async:
            context = attempt.context = Context(task, entry, instance.spec.id)
        if not handler.is_async:
            result = await self._threads.run(attempt, lambda: handler.call(payload, context), task.timeout_ms)
        elif task.timeout_ms:
            result = await limited(handler.call(payload, context), task.timeout_ms)
        else:
            result = await handler.call(payload, context)
        attempt.end("succeeded", _outcome(codec, task, entry, attempt, instance.spec.id, result))

    async def close(self, grace_s: float) -> None:
        """Cancel whatever runs still and wait for it, at most grace_s."""
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=grace_s)
        if self.tasks:
            names = sorted(task.get_name() for task in self.tasks)
            log.warning("handlers_left", extra={"task_ids": names[:20], "count": len(names)})
        self._threads.close()


def _is_cancelled_from_outside() -> bool:
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0


def _delay_ms(delay_s: float | None) -> int:
    """What the cell is told: below 0 is its own backoff, which also stands in for what is no time."""
    if delay_s is None or isnan(delay_s):
        return -1
    return round(1000 * max(0.0, min(delay_s, _MAX_DELAY_S)))


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the handler's own class may do anything
        return "it cannot be shown"


def _outcome(codec: Codec, task: Task, entry: Entry, attempt: Attempt, instance: str, result: Any) -> bytes:
    """Encode the outcome. Raises GiveUp if the result has no form in the task's encoding or is too big."""
    try:
        encoded = codec.encode_payload(result)
    except SchemaError as error:
        raise GiveUp(f"the result of type {type(result).__name__} cannot be encoded: {error}") from error
    if len(encoded) > MAX_RESULT_BYTES:
        raise GiveUp(f"the result has {len(encoded)} bytes, at most {MAX_RESULT_BYTES}: store it, return a reference")
    return codec.encode_outcome(
        Outcome(
            id=task.id,
            type=task.type,
            status="succeeded",
            attempt=entry.attempt,
            priority=task.priority,
            instance=instance,
            tenant=task.tenant,
            session=task.session,
            result=encoded,
            arrived_ms=int(entry.arrived_ms),
            placed_ms=int(attempt.stream_id.partition("-")[0]),
            started_ms=attempt.started_ms,
            finished_ms=_now_ms(),
            causes=entry.causes,
            receipt=entry.receipt,
        )
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
