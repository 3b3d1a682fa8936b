"""A yard for tests: a dispatcher in this process, a cell, and both ends of the topics."""

import asyncio
import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import Ending, Registered, Registration
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.cell.view import RedisView
from taskyard.dispatcher.service import Dispatcher
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.codec import JSON
from taskyard.schemas.entry import decode_entry
from taskyard.schemas.outcome import DeadLetter, Outcome
from taskyard.schemas.task import AgentType, Task, TaskId
from taskyard.schemas.topics import Topics, topics

T = TypeVar("T")
EPOCH = "abcdefgh"
WITHIN_S = 20.0


async def until(probe: Callable[[], Awaitable[T]], *, what: str, within_s: float = WITHIN_S) -> T:
    """Ask again and again until the answer is true; returns it. Fails after the deadline, naming what was awaited."""
    deadline_s = time.monotonic() + within_s
    while True:
        answer = await probe()
        if answer:
            return answer
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.02)


def task(task_id: str, *, agent_type: str = "a", priority: str = "normal", **more: Any) -> Task:
    """A task with little to say."""
    return Task(id=TaskId(task_id), type=AgentType(agent_type), priority=priority, **more)


class Yard:
    """One cell with its topics. Everything that it opens is closed by `open_yard`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topics: Topics = topics(settings.prefix)
        self.connection = Connection(settings.redis, settings.cell)
        self.cell = RedisCell(self.connection)
        self.view = RedisView(self.connection)
        self.producer: Any = AIOKafkaProducer(bootstrap_servers=settings.kafka)
        self._running: dict[Dispatcher, asyncio.Task[None]] = {}
        self._consumers: dict[str, Any] = {}

    async def dispatcher(self, settings: Settings | None = None) -> Dispatcher:
        """Start a dispatcher and wait until it is ready."""
        made = Dispatcher(settings or self.settings)
        self._running[made] = asyncio.create_task(made.run(), name="dispatcher")

        async def is_ready() -> bool:
            assert not self._running[made].done(), self._running[made]
            return made.health.is_ready

        await until(is_ready, what="the dispatcher is ready")
        return made

    async def stop(self, dispatcher: Dispatcher) -> None:
        """Stop a dispatcher as SIGTERM does."""
        dispatcher.stopping.set()
        await self._running.pop(dispatcher)

    async def crash(self, dispatcher: Dispatcher) -> None:
        """End a dispatcher without any of its clean-up being of use: its loops are cut off where they are."""
        running = self._running.pop(dispatcher)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    async def publish(self, *tasks: Task) -> None:
        """Publish tasks on the topics of their priorities."""
        for one in tasks:
            await self.publish_raw(self.topics.tasks[one.priority], JSON.encode_task(one))

    async def publish_raw(self, topic: str, value: bytes | None, **more: Any) -> None:
        """Publish any bytes."""
        await self.producer.send_and_wait(topic, value, **more)

    async def instance(
        self, name: str, *, slots: int = 10, types: tuple[str, ...] = ("a",), lease_ms: int = 60_000
    ) -> None:
        """Register an instance."""
        registered = await self.cell.register(name, EPOCH, Registration(types, {"slots": slots}, {}, lease_ms))
        assert isinstance(registered, Registered)

    async def queued(self, instance: str) -> list[str]:
        """The ids on an instance's queue."""
        return [decode_entry(d.entry).id for d in await self.view.queue(instance, count=10_000)]

    async def finish_all(self, instance: str) -> int:
        """End every task on the queue as succeeded."""
        endings: list[Ending] = []
        for delivery in await self.view.queue(instance, count=200):
            entry = decode_entry(delivery.entry)
            outcome = Outcome(id=entry.id, type="a", status="succeeded", attempt=entry.attempt)
            body = JSON.encode_outcome(outcome)
            endings.append(Ending(entry.id, delivery.stream_id, entry.attempt, "succeeded", body))
        if endings:
            await self.cell.finish(instance, EPOCH, endings)
        return len(endings)

    async def outcomes(self, count: int) -> list[Outcome]:
        """The next `count` records of `results`."""
        return [JSON.decode_outcome(value) for value in await self._records(self.topics.results, count)]

    async def dead_letters(self, count: int) -> list[DeadLetter]:
        """The next `count` records of `dead-letter`."""
        return [JSON.decode_dead_letter(value) for value in await self._records(self.topics.dead_letter, count)]

    async def _records(self, topic: str, count: int) -> list[bytes]:
        if topic not in self._consumers:
            kafka = self.settings.kafka
            consumer: Any = AIOKafkaConsumer(topic, bootstrap_servers=kafka, auto_offset_reset="earliest")
            self._consumers[topic] = consumer
            await consumer.start()
        consumer = self._consumers[topic]
        found: list[bytes] = []
        async with asyncio.timeout(WITHIN_S):
            while len(found) < count:
                rows = await consumer.getmany(timeout_ms=200, max_records=count - len(found))
                found += [record.value for records in rows.values() for record in records]
        return found

    async def close(self) -> None:
        """Stop what still runs."""
        for dispatcher in list(self._running):
            await self.stop(dispatcher)
        for consumer in self._consumers.values():
            await consumer.stop()
        await self.producer.stop()
        await self.connection.close()


@contextlib.asynccontextmanager
async def open_yard(settings: Settings) -> AsyncGenerator[Yard]:
    """Open a yard; its drift must be 0 when it is left."""
    yard = Yard(settings)
    await yard.producer.start()
    try:
        yield yard
        for view in await yard.view.instances():
            drift = await yard.view.audit(view.id)
            assert not drift.misplaced, drift
            assert not any(drift.used.values()), drift
    finally:
        await yard.close()


async def count(yard: Yard, instance: str, wanted: int) -> bool:
    """Whether the instance's queue has so many tasks."""
    return len(await yard.queued(instance)) == wanted


def get(port: int, path: str) -> tuple[int, str]:
    """Ask a dispatcher over HTTP: status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
