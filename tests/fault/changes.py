"""Changes that an operator makes while the load runs: topics, versions."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from taskyard.dispatcher.kafka.topics import create_topics, describe_topics, incarnation
from tests.fault.fleet import Fleet
from tests.fault.history import NEVER_S
from tests.fault.journal import read_published
from tests.fault.programs import Dispatcher

_GAP_S = 1.0


def topic_recreated(system: Fleet) -> None:
    """A topic is removed with what has not been applied, and made again: the same name, another life."""
    topic = system.topics.tasks["low"]
    with system.disturbance("topic re-created"):
        before = asyncio.run(describe_topics(system.kafka.address, [topic]))[topic]
        lives = {incarnation(before, partition): partition for partition in range(before.partitions)}
        _administer(system, lambda admin: admin.delete_topics([topic]))
        system.until(lambda: topic not in asyncio.run(describe_topics(system.kafka.address, [topic])), "it is removed")
        applied = asyncio.run(system.ledger.applied(list(lives)))
        system.flow(_GAP_S)
        removed_s = system.now_s() - _GAP_S / 2
        asyncio.run(create_topics(system.kafka.address, {topic: before.partitions}, replication=1))
    ends = {partition: applied.get(life, 0) for life, partition in lives.items()}
    system.dropped = lambda: {
        task.task_id
        for task in read_published(system.published, system.mono_s)
        if task.topic == topic and task.appended_s < removed_s and task.offset >= ends[task.partition]
    }


def partitions_added(system: Fleet) -> None:
    """A topic grows from 2 to 5 partitions."""
    topic = system.topics.tasks["normal"]
    with system.disturbance("partitions added"):
        _administer(system, lambda admin: admin.create_partitions({topic: NewPartitions(5)}))
    system.until(lambda: _partitions_in_use(system, topic) == 5, "tasks come on the new partitions")
    system.flow(2.0)


def _partitions_in_use(system: Fleet, topic: str) -> int:
    published = read_published(system.published, system.mono_s)
    return len({task.partition for task in published if task.topic == topic and task.appended_s < NEVER_S})


def rolling_upgrade(system: Fleet) -> None:
    """Dispatchers with a newer build of the library replace the older ones, one by one; then an old one comes back."""
    ahead = Dispatcher(system.directory, "dispatcher-newer", system.directory / "settings.toml", newer=1)
    system.dispatchers.append(ahead)
    with system.disturbance("a newer build joins"):
        system.revive(ahead)
    system.flow(3.0)
    for dispatcher in system.dispatchers[:2]:
        with system.disturbance(f"{dispatcher.name} upgraded"):
            system.end(dispatcher)
            dispatcher.newer = 1
            system.revive(dispatcher)
        system.flow(1.0)
    older = system.dispatchers[0]
    with system.disturbance(f"{older.name} rolled back"):
        system.end(older)
        older.newer = 0
        system.revive(older)
    system.flow(2.0)
    if "1 builds later" not in str(system.valkey.ask("FUNCTION", "LIST", "WITHCODE")):
        system.unexpected.append("an older dispatcher has replaced the newer build of the library")


def _administer(system: Fleet, act: Callable[[Any], Awaitable[object]]) -> None:
    async def do() -> None:
        admin: Any = AIOKafkaAdminClient(bootstrap_servers=system.kafka.address)
        await admin.start()
        try:
            await act(admin)
        finally:
            await admin.close()

    asyncio.run(do())
