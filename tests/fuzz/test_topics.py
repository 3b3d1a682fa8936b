"""Garbage among good tasks, through real Kafka, dispatcher and worker: each record has its end, and nothing stops."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import pytest
from aiokafka import AIOKafkaConsumer

from taskyard.dispatcher.arrivals import Arrival, Reader
from taskyard.dispatcher.kafka.topics import lag
from taskyard.dispatcher.settings import HttpSettings, IntakeSettings, ParkSettings, RetrySettings, Settings
from taskyard.schemas.codec import JSON, MSGPACK, codec_of
from taskyard.schemas.limits import Limits
from taskyard.schemas.priority import PRIORITIES
from taskyard.schemas.task import AgentType, Task, TaskId
from taskyard.workers.worker import Worker
from tests.conftest import TestServices
from tests.fuzz import samples
from tests.fuzz.mutations import varied
from tests.fuzz.wire import FedRecord
from tests.integration.yard import Yard, open_yard, until

_GARBAGE = 2_000
_GOOD = 50
_SEED = 3
_MAX_BYTES = 900_000
_PARTITIONS = 2
_WITHIN_S = 60.0


class _Sent(NamedTuple):
    value: bytes
    headers: list[tuple[str, bytes]]


@pytest.fixture
async def yard(services: TestServices, cell: str, prefix: str) -> AsyncGenerator[Yard]:
    settings = Settings(
        kafka=services.kafka, redis=services.redis, cell=cell, prefix=prefix, http=HttpSettings(port=0),
        intake=IntakeSettings(session_timeout_ms=6_000), retry=RetrySettings(base_ms=1, cap_ms=2),
        # What nobody can run is told soon.
        park=ParkSettings(age_ms=1_500, unknown_type_age_ms=500),
    )  # fmt: skip
    async with open_yard(settings) as opened:
        yield opened


@pytest.mark.timeout(180)
async def test_among_garbage_each_good_task_has_its_outcome_and_each_bad_record_its_dead_letter(yard: Yard) -> None:
    rng = random.Random(_SEED)
    dispatcher = await yard.dispatcher()
    worker = Worker({"agent": _echo, "a": _echo}, redis=yard.settings.redis, cell=yard.settings.cell, slots=50)
    working = asyncio.create_task(worker.run(), name="worker")
    try:
        refused, accepted = await _publish_all(yard, rng)
        letters, outcomes = await _ends(yard, refused, accepted)
        await until(lambda: _is_applied(yard), what="everything is applied")
        is_ready = dispatcher.health.is_ready
    finally:
        worker.stop()
        await working

    assert refused - letters == set()
    assert accepted - outcomes.keys() == set()
    good = {f"good-{priority}-{n}" for priority in PRIORITIES for n in range(_GOOD)}
    assert {outcomes[task_id] for task_id in good} == {"succeeded"}
    assert len(refused) > len(PRIORITIES) * _GARBAGE / 3
    assert is_ready


async def _echo(payload: Any) -> Any:
    return payload


def _garbage(rng: random.Random, priority: str, n: int) -> _Sent:
    tree: dict[str, Any] = {
        **samples.TASK_TREE,
        "id": f"{priority}-{n}",
        "priority": priority,
        "requirements": {},
        "constraints": {},
    }
    tree["deadline_ms"] = 0
    is_json = rng.randrange(2) == 0
    headers = [] if is_json else [("content-type", b"application/msgpack")]
    if not rng.randrange(5):
        headers.append(rng.choice(samples.HEADERS))
    return _Sent(varied(rng, tree, is_json=is_json)[:_MAX_BYTES], headers)


def _good(priority: str, n: int) -> _Sent:
    codec = MSGPACK if n % 2 else JSON
    task = Task(id=TaskId(f"good-{priority}-{n}"), type=AgentType("agent"), priority=priority,
                payload=codec.encode_payload([n]))  # fmt: skip
    return _Sent(codec.encode_task(task), [("content-type", codec.content_type.encode())])


async def _publish_all(yard: Yard, rng: random.Random) -> tuple[set[tuple[str, int, int]], set[str]]:
    """Publish everything; where the records are that must be refused, and the ids of the others."""
    refused: set[tuple[str, int, int]] = set()
    accepted: set[str] = set()
    for priority, topic in yard.topics.tasks.items():
        records = [_garbage(rng, priority, n) for n in range(_GARBAGE)] + [_good(priority, n) for n in range(_GOOD)]
        rng.shuffle(records)
        reader = Reader(topic, priority, slack_ms=yard.settings.slack_ms(), limits=Limits())
        sent = [
            await yard.producer.send(topic, record.value, headers=record.headers, partition=n % _PARTITIONS)
            for n, record in enumerate(records)
        ]
        for record, place in zip(records, await asyncio.gather(*sent), strict=True):
            fed = FedRecord(place.offset, place.timestamp, record.value, record.headers)
            read = reader.read(fed, place.partition)
            if isinstance(read, Arrival):
                accepted.add(read.id)
            else:
                refused.add((topic, place.partition, place.offset))
    return refused, accepted


async def _ends(
    yard: Yard, refused: set[tuple[str, int, int]], accepted: set[str]
) -> tuple[set[tuple[str, int, int]], dict[str, str]]:
    """Read both topics until all has been told, or no more comes in time."""
    letters: set[tuple[str, int, int]] = set()
    outcomes: dict[str, str] = {}
    names = (yard.topics.results, yard.topics.dead_letter)
    consumer: Any = AIOKafkaConsumer(*names, bootstrap_servers=yard.settings.kafka, auto_offset_reset="earliest")
    async with consumer:
        deadline_s = time.monotonic() + _WITHIN_S
        while time.monotonic() < deadline_s and (refused - letters or accepted - outcomes.keys()):
            for place, rows in (await consumer.getmany(timeout_ms=200)).items():
                for row in rows:
                    if place.topic == yard.topics.results:
                        outcome = codec_of(row.value).decode_outcome(row.value)
                        outcomes[outcome.id] = outcome.status
                    else:
                        letter = codec_of(row.value).decode_dead_letter(row.value)
                        letters.add((letter.topic, letter.partition, letter.offset))
    return letters, outcomes


async def _is_applied(yard: Yard) -> bool:
    return not any((await lag(yard.settings.kafka, list(yard.topics.tasks.values()), yard.cell.applied)).values())
