"""How a task ended: what `results` and `dead-letter` carry."""

import msgspec

from taskyard.schemas.entry import Cause

NO_RESULT = msgspec.Raw(b"null")


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="outcome", tag_field="kind"):
    """One ended task, keyed by its id on `results`. A consumer tells a repeated delivery by id and attempt.

    status: `succeeded` or `dead` (its attempts, its deadline or its age ran out; `dead-letter` has the whole record).
    result: the handler's return value, encoded like the payload.
    arrived_ms, placed_ms, started_ms, finished_ms: Unix times; 0 where it never came to that.
    causes: why earlier attempts ended. receipt: how the last placement was chosen (MessagePack), for `taskyard task`.
    """

    id: str
    type: str
    status: str
    attempt: int
    priority: str = "normal"
    instance: str = ""
    tenant: str = ""
    session: str = ""
    result: msgspec.Raw = NO_RESULT
    cause: str = ""
    arrived_ms: int = 0
    placed_ms: int = 0
    started_ms: int = 0
    finished_ms: int = 0
    causes: tuple[Cause, ...] = ()
    receipt: bytes = b""
    v: int = 1


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="dead_letter", tag_field="kind"):
    """A task that will not run, or a record that could not be read.

    reason: the kind of fault; four of them are of records that could not be read.
    detail: the fault in words.
    record: the value as published; its first 1,024 bytes if it could not be read.
    topic, partition, offset: where the record was, when it was refused at intake.
    """

    reason: str
    detail: str = ""
    id: str = ""
    type: str = ""
    attempt: int = 0
    causes: tuple[Cause, ...] = ()
    topic: str = ""
    partition: int = -1
    offset: int = -1
    record: bytes = b""
    at_ms: int = 0
    v: int = 1


FIRST_BYTES = 1024
"""How much of a poison record the dead letter quotes."""

REASONS = (
    "undecodable",
    "version",
    "oversize",
    "invalid",
    "attempts",
    "gave_up",
    "deadline",
    "age",
)
"""Why a dead letter is one: poison (the first four), attempts ran out, the handler gave up, waited too long."""
