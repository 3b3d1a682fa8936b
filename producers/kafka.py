"""Kafka, as the producer uses it: the one place of this layer that imports aiokafka.

Its errors become ours, every wait has an end, and an idempotent client that has lost its sequence is replaced.
"""

import asyncio
import contextlib
import logging
import math
import time
import weakref
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, NamedTuple
from zlib import crc32

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    UnknownProducerId,
)

from taskyard.schemas.errors import Backpressure, ConfigError, DependencyError

log = logging.getLogger(__name__)

_TOPIC_TIMEOUT_S = 5.0
"""How long a topic may be missing: long enough for a dispatcher that is just creating it."""
_STOP_TIMEOUT_S = 5.0
_ATTEMPTS = 3
"""How often one record is sent by a new client. One is enough unless the broker loses its producers' state twice."""

_LEAST_SWEPT = 1_024
"""Acknowledgements that were given out before those that nobody holds any more are let go."""

# What an idempotent client cannot come back from: every later batch of the partition is refused as well.
_LOST = (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    UnknownProducerId,
)

TURN = 128
"""Sends after which others get a turn of the loop: a send waits only for room, and filling the buffer takes 25 ms."""

_METADATA_PAUSE_S = 0.2
"""Between two readings of the same topics' leaders. Kafka's own backoff is 0.1 s; an outage lasts many."""

DEFAULTS: Mapping[str, Any] = {
    # A batch takes what comes while the one before it is under way; waiting for more adds its latency to every task.
    "linger_ms": 0,
    "max_batch_size": 128 << 10,
}


class Record(NamedTuple):
    """What is sent."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class Acknowledgement:
    """The broker's answer to come for one record: await it, any number of times. Dropped, asyncio logs a refusal.

    Raises DependencyError if Kafka refuses the record or does not answer in time; it may still have arrived.
    """

    __slots__ = ("__weakref__", "_client", "_link", "_sent", "record")

    def __init__(self, link: "KafkaLink", record: Record, client: Any, sent: "asyncio.Future[Any]") -> None:
        self._link = link
        self.record = record
        # Both written again by `now_with` alone, when the record is sent by a new client.
        self._client = client
        self._sent = sent

    def is_done(self) -> bool:
        """Whether awaiting it returns at once, or all but."""
        return self._sent.done()

    def is_lost(self, client: Any) -> bool:
        """Whether one before that client had it and has lost it with its sequence."""
        if self._client is client or not self._sent.done():
            return False
        error = self._sent.exception()
        return error is not None and _is_lost(error)

    def now_with(self, client: Any, sent: "asyncio.Future[Any]") -> None:
        """Wait for this answer instead, of a client that has taken the record anew."""
        self._client, self._sent = client, sent

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        link = self._link
        for _ in range(_ATTEMPTS):
            # Both of one moment: while we wait another's renewal may send the record again.
            client, sent = self._client, self._sent
            if not sent.done():
                # Not `wait_for`: cancelling the future would hide whether the record arrived.
                await asyncio.wait([sent], timeout=link.timeout_s)
            if not sent.done():
                raise link.unanswered(f"acknowledge a record on {self.record.topic}")
            error = sent.exception()
            if error is None:
                return
            if not _is_lost(error):
                raise link.refused(error, self.record.topic) from error
            await link.renew(client)
            if self._sent is sent:  # not sent again yet, or there was no room for it
                self.now_with(*await link.enqueue(self.record))
        raise DependencyError(f"{link.bootstrap} has refused the producer's sequence {_ATTEMPTS} times; publish again")


class KafkaLink:
    """A connection to Kafka that outlives its clients. For one event loop.

    timeout_s: of every wait but one: max_wait_s, how long a record waits for room in the buffer (two batches for each
    partition).
    """

    def __init__(self, bootstrap: str, *, timeout_s: float, max_wait_s: float, options: Mapping[str, Any]) -> None:
        self.bootstrap = bootstrap
        self.timeout_s = timeout_s
        self._max_wait_s = max_wait_s
        self._options = options
        # Written by start, renew and stop.
        self._client: Any = None
        self._renewing = asyncio.Lock()
        self._known_topics: set[str] = set()
        # What somebody still holds, in the order of sending, and some that nobody does. Written by send.
        self._given: list[weakref.ref[Acknowledgement]] = []
        self._sweep_at = _LEAST_SWEPT
        # Close what was lost and send its records again. Not by the caller who found it out: one who gives up waiting
        # would leave them to all others. Written by renew.
        self._afters: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect. Raises DependencyError if Kafka does not answer, ConfigError if the address cannot be one."""
        self._client = await self._connect()

    async def stop(self) -> None:
        """Send what is buffered and disconnect, within `timeout_s` and a few seconds. Idempotent."""
        client, self._client = self._client, None
        afters = list(self._afters)
        if afters:
            await asyncio.wait(afters, timeout=_STOP_TIMEOUT_S)
        for after in afters:
            after.cancel()
        await asyncio.gather(*afters, return_exceptions=True)
        if client is not None:
            await _close(client, self.timeout_s)

    async def flush(self) -> None:
        """Wait until everything sent so far is acknowledged or refused. Raises DependencyError if it takes too long."""
        if self._afters:
            await asyncio.wait(self._afters, timeout=self.timeout_s)
        await self._timed(self._running().flush(), "acknowledge everything sent")

    async def send(self, record: Record) -> Acknowledgement:
        """Put a record into the buffer.

        Raises Backpressure if there is no room for `max_wait_s`; DependencyError if the topic is missing.
        Cost: about 15 us, most of it aiokafka's; 20 us with the checks of `Producer.send`.
        """
        client, sent = await self.enqueue(record)
        acknowledgement = Acknowledgement(self, record, client, sent)
        self._given.append(weakref.ref(acknowledgement))
        if len(self._given) >= self._sweep_at:
            self._given = [given for given in self._given if given() is not None]
            self._sweep_at = _LEAST_SWEPT + 2 * len(self._given)
        return acknowledgement

    async def enqueue(self, record: Record) -> tuple[Any, "asyncio.Future[Any]"]:
        """As `send`, but returns the client that took the record and its future."""
        if record.topic not in self._known_topics:
            await self._find_topic(record.topic)
        for _ in range(_ATTEMPTS):
            client = self._running()
            try:
                return client, await self._put(client, record)
            except KafkaError as error:
                if not _is_lost(error):
                    raise self.refused(error, record.topic) from error
                await self.renew(client)
        raise DependencyError(f"no producer of {self.bootstrap} stays alive; see its log, then publish again")

    async def renew(self, lost: Any) -> None:
        """Replace a client that has lost its sequence, unless another caller has. Raises DependencyError.

        What it has lost is sent again meanwhile; what finds no room stays lost, until somebody waits for it.
        """
        async with self._renewing:
            if self._client is not lost:
                return
            client = await self._connect()
            if self._client is not lost:  # stopped meanwhile
                await _close(client, _STOP_TIMEOUT_S)
                return
            self._client = client
        # Nobody need wait for this: whoever waits for a record that is not sent again yet does it; twice is no harm.
        after = asyncio.create_task(self._send_again(lost, client), name="send again what a client has lost")
        self._afters.add(after)
        after.add_done_callback(self._afters.discard)

    async def _send_again(self, lost: Any, client: Any) -> None:
        # Closed, it has nothing that is not acknowledged or refused.
        await _close(lost, _STOP_TIMEOUT_S)
        # Together: who waits for one after the other would send them so, a round trip each, and stay behind for long.
        count = 0
        with contextlib.suppress(Backpressure, KafkaError):
            for given in tuple(self._given):
                acknowledgement = given()
                if acknowledgement is None or not acknowledgement.is_lost(client):
                    continue
                acknowledgement.now_with(client, await self._put(client, acknowledgement.record))
                count += 1
                if count % TURN == 0:
                    await asyncio.sleep(0)
        log.warning("producer_renewed", extra={"sent_again": count})

    async def _put(self, client: Any, record: Record) -> "asyncio.Future[Any]":
        topic, key, value, headers = record
        try:
            async with asyncio.timeout(self._max_wait_s):
                return await client.send(topic, value=value, key=key, headers=headers)
        except (TimeoutError, KafkaTimeoutError) as error:
            raise Backpressure(
                f"no room for {self._max_wait_s:g} s in the buffer of {topic}; publish slower, wait longer, or see"
                f" whether Kafka at {self.bootstrap} answers: `taskyard doctor`"
            ) from error

    def unanswered(self, what: str) -> DependencyError:
        """The error for a wait that took too long."""
        return DependencyError(
            f"Kafka at {self.bootstrap} did not {what} within {self.timeout_s:g} s. It may still happen: publish again"
            " with the same id. Is Kafka up? `taskyard doctor` tells"
        )

    def refused(self, error: BaseException, topic: str) -> DependencyError:
        """The error for what Kafka or its client refuses."""
        if isinstance(error, MessageSizeTooLargeError):
            return DependencyError(f"a batch is larger than {topic} takes; raise its max.message.bytes to 1 MiB")
        return DependencyError(f"Kafka at {self.bootstrap} refuses to write {topic}: {error!r}; see `taskyard doctor`")

    def _running(self) -> Any:
        if self._client is None:
            raise DependencyError("the producer is not running; use it inside `async with Producer(...)`")
        return self._client

    async def _find_topic(self, topic: str) -> None:
        try:
            async with asyncio.timeout(min(_TOPIC_TIMEOUT_S, self.timeout_s)):
                await self._running().partitions_for(topic)
        except (TimeoutError, KafkaError) as error:
            raise DependencyError(
                f"Kafka at {self.bootstrap} shows no topic {topic}; start a dispatcher, which creates it, or ask"
                " `taskyard doctor`"
            ) from error
        self._known_topics.add(topic)

    async def _connect(self) -> Any:
        options: dict[str, Any] = {
            **DEFAULTS,
            **self._options,
            "bootstrap_servers": self.bootstrap,
            "enable_idempotence": True,
            "partitioner": _partition,
            "request_timeout_ms": max(1, int(self.timeout_s * 1000)),
        }
        client: Any = None
        try:
            client = AIOKafkaProducer(**options)
            client.client._metadata_update = _PacedReading(client.client._metadata_update)  # noqa: SLF001
            # A batch that waits for a leader aiokafka drops after the request timeout, though its sequence counts it:
            # the broker refuses all that follows. With us it stays; our waits have ends of their own. One that never
            # gets a leader again, of a topic made anew with fewer partitions, stays until the client is stopped.
            client._message_accumulator._batch_ttl = math.inf  # noqa: SLF001
            await self._timed(client.start(), "answer")
        except BaseException as error:
            if client is not None:
                await _close(client, _STOP_TIMEOUT_S)
            if isinstance(error, ValueError):
                message = f"kafka: {self.bootstrap!r} or an option does not do: {error}; give host:port,host:port"
                raise ConfigError(message) from error
            raise
        return client

    async def _timed(self, waiting: Any, what: str) -> None:
        try:
            async with asyncio.timeout(self.timeout_s):
                await waiting
        except TimeoutError as error:
            raise self.unanswered(what) from error
        except (KafkaError, OSError) as error:
            raise DependencyError(
                f"Kafka at {self.bootstrap} did not {what}: {error}. Is it up, and is that its address?"
                " `taskyard doctor` tells"
            ) from error


class _PacedReading:
    """aiokafka's reading of the cluster, but not of the same topics again within a pause.

    Its sender, as long as a partition has no leader, asks again without a pause: thousands of times a second, two lines
    of log each, until Kafka is back.
    """

    def __init__(self, read: Callable[[Any, Any], Awaitable[bool]]) -> None:
        self._read = read
        # Both written by `__call__`, which aiokafka does not overlap.
        self._topics: set[str] = set()
        self._not_before_s = 0.0

    async def __call__(self, cluster: Any, topics: Any) -> bool:
        wanted: set[str] = set(topics or ())
        if wanted == self._topics:
            await asyncio.sleep(max(0.0, self._not_before_s - time.monotonic()))
        self._topics, self._not_before_s = wanted, time.monotonic() + _METADATA_PAUSE_S
        try:
            return await self._read(cluster, topics)
        except RuntimeError:
            # uvloop's word for a connection that has just been closed. aiokafka's task would die of it.
            return False


def _is_lost(error: BaseException) -> bool:
    # A sender that died of anything else leaves a plain KafkaError on every batch.
    return isinstance(error, _LOST) or type(error) is KafkaError


def _partition(key: bytes, partitions: list[int], _available: list[int]) -> int:
    # Any spread will do, the same for the same id. aiokafka's own hash is written in Python: 9 us a key.
    return partitions[crc32(key) % len(partitions)]


async def _close(client: Any, timeout_s: float) -> None:
    """Stop a client, in order if it can be had within the time. Never raises for the client's sake.

    aiokafka's own stop waits for ever for a broker that does not answer (its issue 773), so what it waits for is ended
    from here: an idempotent batch has no other end.
    """
    stopping = asyncio.create_task(client.stop(), name="taskyard-producer-stop")
    try:
        await asyncio.wait([stopping], timeout=timeout_s)
    finally:
        if not stopping.done():
            # What the sender would do at its own end is done here; without a transaction it would raise (aiokafka).
            client._sender.sender_task.remove_done_callback(client._sender._fail_all)  # noqa: SLF001
            _give_up(client._message_accumulator)  # noqa: SLF001
            await client.client.close()
            await asyncio.wait([stopping], timeout=_STOP_TIMEOUT_S)
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)


def _give_up(accumulator: Any) -> None:
    """Fail whatever has no acknowledgement, and say so once: asyncio would log each future that nobody awaits."""
    batches = [*accumulator._pending_batches, *(batch for queue in accumulator._batches.values() for batch in queue)]  # noqa: SLF001
    futures = [future for batch in batches for future, _ in batch._msg_futures if not future.done()]  # noqa: SLF001
    # One that went back to be sent again is pending no more, and the end of each takes it out of those that are.
    accumulator._pending_batches.update(batches)  # noqa: SLF001
    accumulator.fail_all(ProducerClosed())
    for future in (*futures, *(inner for batch in batches for inner in (batch.future, batch._drain_waiter))):  # noqa: SLF001
        future.exception()
    log.warning("producer_stopped_unacknowledged", extra={"tasks": len(futures)})
