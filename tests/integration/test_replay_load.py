"""The parts of a run that need real services or processes: the load generator and the supervisor."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from taskyard.dispatcher.cli.rehearsal.account import Account
from taskyard.dispatcher.cli.rehearsal.load import Due, Load
from taskyard.dispatcher.cli.rehearsal.processes import Processes
from taskyard.dispatcher.kafka import topics as kafka
from taskyard.dispatcher.settings import TopicSettings
from taskyard.producers.producer import Producer
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.task import AgentType, Task
from taskyard.schemas.topics import topics


@pytest.fixture
async def producer(kafka_address: str, prefix: str) -> AsyncGenerator[Producer]:
    """A producer whose topics exist."""
    for _ in range(100):
        faults = await kafka.check_topics(kafka_address, topics(prefix), TopicSettings())
        if not any(fault.is_fatal for fault in faults):
            break
    async with Producer(kafka_address, prefix=prefix) as made:
        yield made


def due(at_s: float) -> Due:
    return Due(at_s, Task(type=AgentType("a")))


async def test_tasks_are_published_when_they_are_due_and_the_lateness_of_each_is_kept(producer: Producer) -> None:
    account = Account()
    load = Load(producer, account)
    began_s = time.monotonic()

    await load.run((due(number / 100) for number in range(50)), asyncio.Event())

    assert time.monotonic() - began_s >= 0.49
    assert load.acknowledged == len(account.sent) == len(load.late_ms) == 50
    assert min(load.late_ms) >= 0


async def test_a_load_without_an_end_stops_when_it_is_told_with_all_it_sent_acknowledged(producer: Producer) -> None:
    account, stopping = Account(), asyncio.Event()
    load = Load(producer, account)

    def endless() -> Iterator[Due]:
        for number in itertools.count():
            if load.acknowledged >= 10:
                stopping.set()
            yield due(number / 200)

    async with asyncio.timeout(20):
        await load.run(endless(), stopping)

    assert load.acknowledged == len(account.sent)


async def test_a_process_that_does_not_stay_alive_ends_the_run_with_the_end_of_its_log(tmp_path: Path) -> None:
    told: list[str] = []
    processes = Processes(tmp_path, os.environ, told.append)

    processes.start("worker", "worker-1", "taskyard.dispatcher.cli.rehearsal.host", "no-settings.toml", "no-fleet.json")
    try:
        with pytest.raises(DependencyError, match=r"(?s)worker-1 does not stay alive.*no-settings\.toml"):
            async with asyncio.timeout(30):
                await processes.watch()
    finally:
        processes.kill()

    assert len(processes.deaths) == 3
    assert told[0].startswith("worker-1 (pid ")
    assert processes.up("worker") == (0, 1)
