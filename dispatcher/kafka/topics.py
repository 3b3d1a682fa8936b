"""The topics of a cell: described, created, checked, and how far they are ahead of what is applied."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import TopicAlreadyExistsError

from taskyard.dispatcher.cell.contract import Incarnation
from taskyard.dispatcher.kafka.metadata import DescribeTopics
from taskyard.dispatcher.kafka.waits import TIMEOUT_S, running, stopped, timed
from taskyard.dispatcher.settings import TopicSettings
from taskyard.schemas.topics import Topics

_CREATED_WITHIN_S = 5.0
_POLL_S = 0.05


class TopicState(NamedTuple):
    """A topic as the broker has it. id: 32 hexadecimal characters, another for each life of the topic."""

    id: str
    partitions: int


def incarnation(topic: TopicState, partition: int) -> Incarnation:
    """Name a partition of this life of the topic."""
    return f"{topic.id}:{partition}"


async def describe_topics(bootstrap: str, names: Sequence[str]) -> dict[str, TopicState]:
    """Ask for the topics' ids and partition counts; a missing topic is absent. Raises DependencyError."""
    async with connected(bootstrap) as client:
        reply = await timed(client.send(client.get_random_node(), DescribeTopics(names)), "describe topics")
    return {
        name: TopicState(topic_id.hex(), len(partitions))
        for error, name, topic_id, _, partitions, _, _ in reply.topics
        if error == 0
    }


async def create_topics(
    bootstrap: str, partitions: Mapping[str, int], *, replication: int, compacted: Collection[str] = ()
) -> None:
    """Create topics that are missing. The broker's clock stamps their records: order keys are made from it.

    compacted: of those, the ones of which only the last record of each key is kept.
    """
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=int(TIMEOUT_S * 1000))
    settings = {"message.timestamp.type": "LogAppendTime"}
    async with running(admin, admin.close, f"Kafka at {bootstrap}"):
        for name, count in partitions.items():
            cleanup = {"cleanup.policy": "compact"} if name in compacted else {}
            topic = NewTopic(
                name, num_partitions=count, replication_factor=replication, topic_configs={**settings, **cleanup}
            )
            with contextlib.suppress(TopicAlreadyExistsError):
                await timed(admin.create_topics([topic]), f"create topic {name}")


class TopicFault(NamedTuple):
    """What is wrong with a topic. is_fatal: the cell cannot work with it."""

    topic: str
    what: str
    is_fatal: bool


async def check_topics(bootstrap: str, topics: Topics, settings: TopicSettings) -> list[TopicFault]:
    """Create missing topics if the settings say so; return what differs from them afterwards."""
    states = await describe_topics(bootstrap, topics.names)
    missing = {name: settings.partitions for name in topics.names if name not in states}
    if missing and settings.create:
        await create_topics(bootstrap, missing, replication=settings.replication, compacted=[topics.carried])
        states = await _described_in_time(bootstrap, topics.names)
    faults = [TopicFault(name, "is missing", is_fatal=True) for name in topics.names if name not in states]
    return faults + [
        TopicFault(name, f"has {state.partitions} partitions, the settings say {settings.partitions}", is_fatal=False)
        for name, state in states.items()
        if state.partitions != settings.partitions
    ]


async def _described_in_time(bootstrap: str, names: Sequence[str]) -> dict[str, TopicState]:
    """Describe topics that were just created; a broker may learn of them a moment later."""
    states: dict[str, TopicState] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CREATED_WITHIN_S):
            while len(states) < len(names):
                states = await describe_topics(bootstrap, names)
                await asyncio.sleep(_POLL_S)
    return states


async def lag(
    bootstrap: str,
    names: Sequence[str],
    applied: Callable[[Sequence[Incarnation]], Awaitable[Mapping[Incarnation, int]]],
) -> dict[str, int]:
    """Records that are not applied yet, per topic. applied: `DispatcherCell.applied`, whose offsets decide."""
    states = await describe_topics(bootstrap, names)
    consumer: Any = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    async with running(consumer, consumer.stop, f"Kafka at {bootstrap}"):
        partitions = [TopicPartition(name, p) for name, state in states.items() for p in range(state.partitions)]
        ends: dict[Any, int] = await timed(consumer.end_offsets(partitions), "read end offsets")
        starts: dict[Any, int] = await timed(consumer.beginning_offsets(partitions), "read beginning offsets")
    incarnations = {p: incarnation(states[p.topic], p.partition) for p in partitions}
    stand = await applied(list(incarnations.values()))
    behind = dict.fromkeys(names, 0)
    for partition, name in incarnations.items():
        behind[partition.topic] += max(0, ends[partition] - stand.get(name, starts[partition]))
    return behind


@contextlib.asynccontextmanager
async def connected(bootstrap: str) -> AsyncGenerator[Any]:
    """A bare client, closed afterwards. Raises DependencyError."""
    client: Any = AIOKafkaClient(bootstrap_servers=bootstrap, request_timeout_ms=int(TIMEOUT_S * 1000))
    try:
        await timed(client.bootstrap(), f"reach Kafka at {bootstrap}")
        yield client
    finally:
        await stopped(client.close())
