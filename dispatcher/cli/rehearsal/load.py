"""The load generator: publishes tasks when they are due, and says how late it was."""

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from taskyard.dispatcher.cli.rehearsal.account import Account
from taskyard.producers.kafka import Acknowledgement
from taskyard.producers.producer import Producer
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.task import Task

# What is due within one turn is published together; a turn is short against any wait that is measured.
_TURN_S = 0.005
_BATCH = 200
_PAUSE_S = 0.2


class Due(NamedTuple):
    """A task and its time, seconds from the start of the load."""

    at_s: float
    task: Task


class Load:
    """Publishes in order of time. All attributes are written by its own loops."""

    def __init__(self, producer: Producer, account: Account) -> None:
        self._producer = producer
        self._account = account
        self._unacknowledged: deque[tuple[Task, Acknowledgement]] = deque()
        self._is_complete = False
        self.late_ms: list[float] = []
        self.acknowledged = 0
        self.fault = ""  # why Kafka does not take tasks at the moment

    async def run(self, plan: Iterable[Due], stopping: asyncio.Event) -> None:
        """Publish until the plan or the run ends, then wait until Kafka has acknowledged all that was sent.

        plan: in order of time; an iterator is asked only for what is due. A task that Kafka does not take is sent
        again until it does: its id stays, so that it is placed once.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._confirm(), name="load-confirm")
            try:
                await self._publish(plan, stopping)
            finally:
                self._is_complete = True

    async def _publish(self, plan: Iterable[Due], stopping: asyncio.Event) -> None:
        started_s = time.monotonic()
        for turn, due in enumerate(plan, 1):
            while (early_s := due.at_s - (time.monotonic() - started_s)) > 0:
                if await _is_set(stopping, min(early_s, 0.25) if early_s > _TURN_S else _TURN_S):
                    return
            if stopping.is_set():
                return
            self.late_ms.append((time.monotonic() - started_s - due.at_s) * 1000)
            self._account.send(due.task)
            self._unacknowledged.append((due.task, await self._sent(due.task)))
            if turn % _BATCH == 0:
                await asyncio.sleep(0)

    async def _confirm(self) -> None:
        """Await the acknowledgements in order; send again what was refused or not answered."""
        while self._unacknowledged or not self._is_complete:
            if not self._unacknowledged:
                await asyncio.sleep(_TURN_S * 4)
                continue
            task, acknowledgement = self._unacknowledged.popleft()
            try:
                await acknowledgement
            except DependencyError as error:
                self.fault = str(error)
                self._unacknowledged.appendleft((task, await self._sent(task)))
                continue
            self.fault = ""
            self.acknowledged += 1

    async def _sent(self, task: Task) -> Acknowledgement:
        while True:
            try:
                return await self._producer.send(task)
            except DependencyError as error:
                self.fault = str(error)
                await asyncio.sleep(_PAUSE_S)


async def _is_set(event: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
