"""A producer process of a run: publishes at a steady rate, and writes down what it sent and what was acknowledged.

Run as `python -m tests.fault.publisher SETTINGS PLAN JOURNAL`. A task that Kafka does not take is sent again under its
id until it does. SIGTERM ends the publishing; the process ends when everything has been acknowledged.
"""

import asyncio
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from taskyard.dispatcher.cli import logs
from taskyard.dispatcher.cli.configure import configure
from taskyard.dispatcher.cli.loop import run
from taskyard.dispatcher.settings import Settings
from taskyard.producers.kafka import Acknowledgement
from taskyard.producers.producer import Producer
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.task import AgentType, Task, TaskId
from tests.fault.history import Fate
from tests.fault.journal import Journal
from tests.fault.worker import Order

# Tasks go out in small batches: one request for each would cost the broker more than all the rest.
_TURN_S = 0.02
_PAUSE_S = 0.1
# Kafka answers within milliseconds; a record without an answer for so long is sent again.
_TIMEOUT_S = 5.0
_MIX = (("critical", 0.05), ("high", 0.15), ("normal", 0.6), ("low", 0.2))
# Faults of others cost a task attempts; none should run out of them.
_ATTEMPTS = 100


class Kind(msgspec.Struct, frozen=True):
    """A sort of task. every: one in so many tasks of the steady flow is of this kind; 0: none. first: how many are sent
    before it begins. fate: how it ends."""

    type: str = "fast"
    order: Order | None = None
    every: int = 0
    first: int = 0
    timeout_ms: int = 0
    max_attempts: int = _ATTEMPTS
    fate: Fate = "succeeds"


class Plan(msgspec.Struct, frozen=True):
    """rate: tasks a second. Handlers of the steady flow take from min_ms to max_ms."""

    rate: int = 2_000
    min_ms: int = 5
    max_ms: int = 50
    kinds: tuple[Kind, ...] = ()


class Publisher:
    """Publishes a plan. All attributes are written by its own loops."""

    def __init__(self, producer: Producer, plan: Plan, journal: Journal) -> None:
        self._producer = producer
        self._plan = plan
        self._journal = journal
        # By priority, so that a topic that is away does not keep the news of the others.
        self._open: dict[str, deque[tuple[Task, Acknowledgement]]] = {priority: deque() for priority, _ in _MIX}
        self._is_complete = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Publish until stopped, then wait for the acknowledgements."""
        async with asyncio.TaskGroup() as group:
            for priority, unacknowledged in self._open.items():
                group.create_task(self._confirm(unacknowledged), name=f"confirm-{priority}")
            for kind in self._plan.kinds:
                for _ in range(kind.first):
                    await self._send(kind)
            await self._flow(stopping)
            self._is_complete = True

    async def _flow(self, stopping: asyncio.Event) -> None:
        started_s, kinds = time.monotonic(), self._sequence()
        sent = 0
        while not stopping.is_set():
            due = int((time.monotonic() - started_s) * self._plan.rate)
            for _ in range(due - sent):
                await self._send(next(kinds))
                sent += 1
                # Behind after an outage: others get their turn.
                if sent % 200 == 0:
                    await asyncio.sleep(0)
                if stopping.is_set():
                    break
            await asyncio.sleep(_TURN_S)

    def _sequence(self) -> Iterator[Kind]:
        usual, number = Kind(), 0
        while True:
            number += 1
            yield next((kind for kind in self._plan.kinds if kind.every and number % kind.every == 0), usual)

    async def _send(self, kind: Kind) -> None:
        task = self._task(kind)
        how = kind.order.how if kind.order else "sleep"
        self._journal.note("s", task.id, task.priority, task.type, kind.fate, how)
        self._open[task.priority].append((task, await self._sent(task)))

    def _task(self, kind: Kind) -> Task:
        order = kind.order or Order(ms=random.randint(self._plan.min_ms, self._plan.max_ms))
        priority = random.choices([name for name, _ in _MIX], [share for _, share in _MIX])[0]
        return Task(
            id=TaskId(f"{random.getrandbits(64):016x}"),
            type=AgentType(kind.type),
            priority=priority,
            payload=msgspec.Raw(msgspec.json.encode(order)),
            timeout_ms=kind.timeout_ms,
            max_attempts=kind.max_attempts,
        )

    async def _sent(self, task: Task) -> Acknowledgement:
        while True:
            try:
                return await self._producer.send(task)
            except DependencyError:
                await asyncio.sleep(_PAUSE_S)

    async def _confirm(self, unacknowledged: deque[tuple[Task, Acknowledgement]]) -> None:
        while unacknowledged or not self._is_complete:
            if not unacknowledged:
                await asyncio.sleep(_TURN_S)
                continue
            task, acknowledgement = unacknowledged.popleft()
            try:
                await acknowledgement
            except DependencyError:
                # At the end: thousands may have failed, and to wait for each anew would take minutes.
                unacknowledged.append((task, await self._sent(task)))
                continue
            told = acknowledgement._sent.result()  # pyright: ignore[reportPrivateUsage] - the offset is nobody else's business
            self._journal.note("a", task.id, told.topic, told.partition, told.offset, told.timestamp)


async def _publish(settings: Settings, plan: Plan, journal: Journal) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    # New partitions are to be found while the run lasts.
    producer = Producer(
        settings.kafka, prefix=settings.prefix, timeout_s=_TIMEOUT_S, metadata_max_age_ms=1_000, linger_ms=20
    )
    async with producer:
        await Publisher(producer, plan, journal).run(stopping)


def main(settings_file: Path, plan_file: Path, journal: Path) -> None:
    """Publish until SIGTERM."""
    settings = configure(file=settings_file, environment={}).settings
    logs.configure(settings.log)
    plan = msgspec.json.decode(plan_file.read_bytes(), type=Plan)
    run(_publish(settings, plan, Journal(journal)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
