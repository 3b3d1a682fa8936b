"""The relay: publishes the outbox to `results` and `dead-letter`, by one dispatcher of the cell at a time.

Order, and why: publish, wait for every acknowledgement, then trim. A relay that dies in between publishes again, with
the same id and attempt, which a consumer can tell; the other way round an outcome would be lost. Two relays at once do
no more than that: each trims only what it has published itself.
"""

import contextlib
from collections.abc import Sequence

import msgspec
import structlog

from taskyard.dispatcher.cell.contract import DispatcherCell, Outgoing
from taskyard.dispatcher.clients import Producer
from taskyard.dispatcher.kafka.producer import OutgoingRecord
from taskyard.dispatcher.lease import Lease
from taskyard.dispatcher.metrics import Metrics
from taskyard.schemas.codec import JSON, codec_for, codec_of, content_headers
from taskyard.schemas.entry import Entry, decode_entry
from taskyard.schemas.errors import DependencyError, SchemaError
from taskyard.schemas.limits import DEFAULT, Limits
from taskyard.schemas.outcome import FIRST_BYTES, NO_RESULT, DeadLetter, Outcome
from taskyard.schemas.priority import PRIORITIES
from taskyard.schemas.topics import Topics

log = structlog.get_logger()

_LEASE_MS = 3_000
_AT_ONCE = 1_000
# Entries are read at once, published and forgotten: outcomes of 1 MB each would be 1 GB, in one reply of the cell.
_PAGE_BYTES = 8 << 20
_FIRST_PAGE = 50
_SHORT_BYTES = 64 << 10
_ANY_SIZE = Limits(payload_bytes=1 << 30, envelope_bytes=1 << 30)


class Relay:
    """Run by one asyncio task. owner: this dispatcher's random name, for the lease."""

    def __init__(self, cell: DispatcherCell, producer: Producer, topics: Topics, metrics: Metrics, owner: str) -> None:
        self._cell = cell
        self._producer = producer
        self._topics = topics
        self._metrics = metrics
        self._lease = Lease(cell, "relay", owner, _LEASE_MS)
        # Entries in the next page, going by what the last ones weighed.
        self._page = _FIRST_PAGE

    async def step(self) -> None:
        """Publish all that is there, page by page, as long as the lease is ours. Raises DependencyError."""
        while await self._lease.held():
            count = self._page
            # One that is too much to be read in time must not be asked for again.
            self._page = max(1, count // 2)
            outgoing = await self._cell.outbox(count=count)
            self._page = _next_page(count, outgoing)
            if outgoing:
                self._metrics.published([row.kind for row in outgoing])
                await self._publish_in_order([record for row in outgoing for record in self.records(row)])
                await self._cell.trim([row.stream_id for row in outgoing])
            if len(outgoing) < count:
                return

    async def stop(self) -> None:
        """Close the producer and give the lease back."""
        try:
            await self._producer.stop()
        finally:
            await self._lease.give_back()

    async def _publish_in_order(self, records: Sequence[OutgoingRecord]) -> None:
        """Publish topic by topic, for it may be cut off in between, and the cell lost then.

        Letters first: an outcome can be made from its letter, not the other way. Copies of carried tasks are deleted
        last: one that has neither outcome nor copy would be lost.
        """
        for topic in (self._topics.dead_letter, self._topics.results, self._topics.carried):
            of_topic = [record for record in records if record[0] == topic]
            if of_topic:
                await self._publish(of_topic)

    async def _publish(self, records: Sequence[OutgoingRecord]) -> None:
        """Publish all; one that its topic does not take goes out shortened, or it would stop all behind it for ever."""
        for index in await self._producer.publish(records):
            record = records[index]
            # Alone, first: a batch may be refused for its size where none of its records would be.
            if not await self._producer.publish([record]):
                continue
            log.error("record_shortened", topic=record[0], task=record[1].decode(), bytes=len(record[2] or b""),
                      next="raise the topic's max.message.bytes, or store results elsewhere")  # fmt: skip
            if await self._producer.publish([shortened(record)]):
                raise DependencyError(
                    f"{record[0]} does not even take {FIRST_BYTES} bytes; raise its max.message.bytes"
                )

    def records(self, row: Outgoing) -> Sequence[OutgoingRecord]:
        """What is published of one entry. Never raises, whatever is in it: it would be met again for ever."""
        match row.kind:
            case "outcome":
                return [self._outcome(row.body)]
            case "refused":
                return [(self._topics.dead_letter, b"", row.body, [])]
            case "uncarried":
                return [(self._topics.carried, row.body, None, [])]
            case "dead":
                try:
                    return self._dead(row, decode_entry(row.body))
                except SchemaError as error:
                    # Of another version, or made by a worker of another make. Nobody waits for it to become readable.
                    log.warning("dead_entry_unreadable", error=str(error))
                    return [self._letter(row, f"{row.cause}; {error}"[:FIRST_BYTES])]

    def _outcome(self, body: bytes) -> OutgoingRecord:
        """Key the outcome by its id, and count its wait."""
        codec = codec_of(body)
        try:
            outcome = codec.decode_outcome(body)
        except SchemaError as error:
            # A worker of another make wrote it; it is published as it is, for whoever can read it.
            log.warning("outcome_unreadable", error=str(error))
            return (self._topics.results, b"", body, [])
        # What it says of itself may be anything: no time at all, or a new priority each time.
        if 0 < outcome.arrived_ms <= outcome.started_ms <= DEFAULT.time_ms and outcome.priority in PRIORITIES:
            self._metrics.wait[outcome.priority].observe((outcome.started_ms - outcome.arrived_ms) / 1000)
        return (self._topics.results, outcome.id.encode(), body, content_headers(codec))

    def _dead(self, row: Outgoing, entry: Entry) -> Sequence[OutgoingRecord]:
        """A dead task is told twice: to those who wait for its result, and whole, to those who look into it."""
        codec = codec_for(entry.headers)
        # It was within the limits of the intake that accepted it, whatever ours are.
        task = codec.decode_task(entry.wire, _ANY_SIZE)
        at_ms = int(row.stream_id.partition("-")[0])
        outcome = Outcome(
            id=entry.id, type=task.type, status="dead", attempt=entry.attempt, priority=task.priority,
            instance=row.instance, tenant=task.tenant, session=task.session, cause=f"{row.reason}: {row.cause}",
            arrived_ms=int(entry.arrived_ms), finished_ms=at_ms, causes=entry.causes, receipt=entry.receipt,
        )  # fmt: skip
        letter = DeadLetter(
            reason=row.reason, detail=row.cause, id=entry.id, type=task.type, attempt=entry.attempt,
            causes=entry.causes, record=entry.wire, at_ms=at_ms,
        )  # fmt: skip
        key, headers = entry.id.encode(), list(entry.headers)
        return [
            (self._topics.results, key, codec.encode_outcome(outcome), headers),
            (self._topics.dead_letter, key, codec.encode_dead_letter(letter), headers),
        ]

    def _letter(self, row: Outgoing, detail: str) -> OutgoingRecord:
        letter = DeadLetter(reason=row.reason, detail=detail, record=row.body[:FIRST_BYTES])
        return (self._topics.dead_letter, b"", JSON.encode_dead_letter(letter), [])


def _next_page(count: int, outgoing: Sequence[Outgoing]) -> int:
    """How many entries weigh about a page, if they are as the last ones; at most twice as many as before."""
    if not outgoing:
        return count
    mean_bytes = sum([len(row.body) for row in outgoing]) / len(outgoing) + 1
    return max(1, min(_AT_ONCE, 2 * count, int(_PAGE_BYTES / mean_bytes)))


def shortened(record: OutgoingRecord) -> OutgoingRecord:
    """The same news without what makes it big: a key of at most 1 KB and a value of at most 64."""
    topic, key, found, headers = record
    value = found or b""
    short = _without_weight(value, f"{len(value)} bytes are more than {topic} takes")
    # What a worker of another make wrote may be big in any of its fields.
    return (topic, key[:FIRST_BYTES], short if len(short) <= _SHORT_BYTES else value[:FIRST_BYTES], headers)


def _without_weight(value: bytes, why: str) -> bytes:
    codec = codec_of(value)
    with contextlib.suppress(SchemaError):
        outcome = codec.decode_outcome(value)
        return codec.encode_outcome(
            msgspec.structs.replace(outcome, result=NO_RESULT, cause=f"{why}. {outcome.cause}"[:FIRST_BYTES])
        )
    with contextlib.suppress(SchemaError):
        letter = codec.decode_dead_letter(value)
        detail = f"{why}. {letter.detail}"[:FIRST_BYTES]
        return codec.encode_dead_letter(
            msgspec.structs.replace(letter, record=letter.record[:FIRST_BYTES], detail=detail)
        )
    return value[:FIRST_BYTES]
