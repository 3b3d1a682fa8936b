"""Reading a Kafka record: a task with its order key and shape, or a dead letter that says what is wrong with it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from taskyard.dispatcher.core.order import order_key_ms
from taskyard.dispatcher.core.shapes import shape_text
from taskyard.schemas.codec import JSON, codec_for
from taskyard.schemas.entry import type_headers
from taskyard.schemas.errors import SchemaError
from taskyard.schemas.limits import Limits, check_headers, check_task
from taskyard.schemas.outcome import FIRST_BYTES, DeadLetter


class ConsumedRecord(Protocol):
    """What is read of a Kafka record. timestamp: Unix ms, the broker's (topics are created with LogAppendTime)."""

    offset: int
    timestamp: int
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class UnreadableRecord(ConsumedRecord, Protocol):
    """One whose value cannot be had. fault: why."""

    fault: str


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """A task as it arrived. wire: the record's value, untouched."""

    id: str
    shape: str
    key_ms: float
    deadline_ms: int
    arrived_ms: int
    max_attempts: int
    headers: type_headers
    wire: bytes


class Reader:
    """Reads the records of one topic."""

    def __init__(self, topic: str, priority: str, *, slack_ms: Mapping[str, int], limits: Limits) -> None:
        self._topic = topic
        self.priority = priority
        self._slack_ms = slack_ms
        self._limits = limits

    def read(self, record: ConsumedRecord, partition: int) -> Arrival | DeadLetter:
        """Decode and check one record. Never raises on bad input. Cost: about 2 us."""
        value, headers = record.value, ()
        try:
            if record.headers:
                check_headers(record.headers, self._limits)
                headers = tuple((name, content or b"") for name, content in record.headers)
            task = (codec_for(headers) if headers else JSON).decode_task(value, self._limits)
            check_task(task, self._limits)
            if task.priority != self.priority:
                raise SchemaError(f"{task.priority!r} came on the topic of {self.priority!r}", field="priority")
        except SchemaError as error:
            return self._refused(record, partition, error)
        assert value is not None
        return Arrival(
            task.id,
            shape_text(task),
            order_key_ms(task, arrived_ms=record.timestamp, slack_ms=self._slack_ms),
            task.deadline_ms,
            record.timestamp,
            task.max_attempts,
            headers,
            value,
        )

    def refuse(self, record: UnreadableRecord, partition: int) -> DeadLetter:
        """The dead letter of a record that the Kafka client cannot decode."""
        fault = f"not a Kafka record that can be decoded: {record.fault}"
        return self._refused(record, partition, SchemaError(fault, reason="undecodable"))

    def _refused(self, record: ConsumedRecord, partition: int, error: SchemaError) -> DeadLetter:
        return DeadLetter(
            reason=error.reason,
            detail=str(error)[:FIRST_BYTES],
            topic=self._topic,
            partition=partition,
            offset=record.offset,
            record=(record.value or b"")[:FIRST_BYTES],
            at_ms=record.timestamp,
        )
