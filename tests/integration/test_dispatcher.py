"""The dispatcher on real Kafka and Valkey: what is published takes effect exactly once, whatever it is."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog.testing
from aiokafka import AIOKafkaProducer

from taskyard.dispatcher.cell.contract import Ending
from taskyard.dispatcher.kafka.consumer import TopicConsumer
from taskyard.dispatcher.kafka.topics import check_topics, lag
from taskyard.dispatcher.service import Dispatcher
from taskyard.dispatcher.settings import (
    IntakeSettings,
    ParkSettings,
    Settings,
)
from taskyard.schemas.codec import JSON
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.outcome import Outcome
from taskyard.schemas.priority import PRIORITIES
from tests.integration.yard import EPOCH, Yard, count, get, task, until

ROOT = Path(__file__).parents[2]


async def test_tasks_of_every_priority_are_placed_and_their_outcomes_published(yard: Yard) -> None:
    await yard.dispatcher()
    await yard.instance("i", slots=100)

    await yard.publish(*[task(f"{priority}-{n}", priority=priority) for priority in PRIORITIES for n in range(5)])

    await until(lambda: count(yard, "i", 20), what="all are on the queue")
    await yard.finish_all("i")
    outcomes = await yard.outcomes(20)
    assert {outcome.id for outcome in outcomes} == {f"{p}-{n}" for p in PRIORITIES for n in range(5)}
    await until(lambda: _is_outbox_empty(yard), what="the outbox is trimmed")


async def test_every_kind_of_bad_record_is_a_dead_letter_and_none_blocks_its_partition(yard: Yard) -> None:
    await yard.dispatcher()
    await yard.instance("i", slots=100)
    topic = yard.topics.tasks["normal"]
    good = json.loads(JSON.encode_task(task("good")))
    bad: dict[str, bytes | None] = {
        "undecodable": b"\xff not json",
        "version": json.dumps({**good, "id": "version", "v": 99}).encode(),
        "oversize": json.dumps({**good, "id": "oversize", "payload": "x" * (300 << 10)}).encode(),
        "invalid": json.dumps({**good, "id": "invalid", "requirements": {"slots": -1}}).encode(),
    }

    for value in (*bad.values(), None, b"", b"[]", json.dumps({**good, "id": "p", "priority": "critical"}).encode()):
        await yard.publish_raw(topic, value, key=b"k", partition=0)
    await yard.publish_raw(topic, JSON.encode_task(task("last")), partition=0)

    letters = await yard.dead_letters(8)
    assert [letter.reason for letter in letters[:4]] == list(bad)
    assert {(letter.topic, letter.partition) for letter in letters} == {(topic, 0)}
    assert [letter.offset for letter in letters] == list(range(8))
    assert "requirements.slots" in letters[3].detail
    assert letters[0].record == bad["undecodable"]
    assert len(letters[2].record) <= 1024
    assert "priority" in letters[7].detail
    await until(lambda: count(yard, "i", 1), what="the good record behind them is placed")


@pytest.mark.parametrize("compression", ["gzip", "lz4", "snappy", "zstd"])
async def test_records_are_read_however_their_producer_compresses_them(yard: Yard, compression: str) -> None:
    await yard.dispatcher()
    await yard.instance("i")
    producer: Any = AIOKafkaProducer(bootstrap_servers=yard.settings.kafka, compression_type=compression)

    async with producer:
        await producer.send_and_wait(yard.topics.tasks["normal"], JSON.encode_task(task("t")))

    await until(lambda: count(yard, "i", 1), what="the task is placed")


async def test_an_unknown_agent_type_waits_with_a_reason_and_is_placed_when_an_instance_serves_it(yard: Yard) -> None:
    await yard.dispatcher()
    await yard.publish(task("t", agent_type="nobody"))
    await until(lambda: _is_parked(yard, 1), what="the task is parked")

    (shape,) = await yard.view.shapes()
    await yard.instance("i", types=("nobody",))

    assert (shape.shape, shape.instances) == ("n|nobody|slots=1|", 0)
    await until(lambda: count(yard, "i", 1), what="the registration has pulled it")


async def test_an_unknown_agent_type_is_a_dead_letter_only_past_its_age(yard: Yard, settings: Settings) -> None:
    park = ParkSettings(unknown_type_age_ms=300)
    await yard.dispatcher(msgspec.structs.replace(settings, park=park))

    await yard.publish(task("t", agent_type="nobody"))

    (letter,) = await yard.dead_letters(1)
    assert (letter.id, letter.reason) == ("t", "age")
    assert "no instance serves the agent type nobody" in letter.detail
    (outcome,) = await yard.outcomes(1)
    assert (outcome.id, outcome.status) == ("t", "dead")


async def test_a_parked_task_past_its_deadline_is_a_dead_letter(yard: Yard) -> None:
    await yard.dispatcher()
    now_ms = (await yard.view.level()).now_ms

    await yard.publish(task("t", deadline_ms=now_ms + 300))

    (letter,) = await yard.dead_letters(1)
    assert (letter.id, letter.reason) == ("t", "deadline")


async def test_the_same_id_published_twice_is_placed_once(yard: Yard) -> None:
    await yard.dispatcher()
    await yard.instance("i")

    await yard.publish(task("t"), task("t"), task("other"))
    await until(lambda: count(yard, "i", 2), what="both ids are on the queue")
    await yard.finish_all("i")
    await yard.publish(task("t"), task("third"))
    await until(lambda: count(yard, "i", 1), what="the third is on the queue")

    assert await yard.queued("i") == ["third"]


async def test_two_dispatchers_share_the_partitions_and_one_that_dies_is_replaced(yard: Yard) -> None:
    first, _ = await yard.dispatcher(), await yard.dispatcher()
    await yard.instance("i", slots=1_000)
    await yard.publish(*[task(f"before-{n}") for n in range(20)])
    await until(lambda: count(yard, "i", 20), what="those before are placed")

    await yard.crash(first)
    await yard.publish(*[task(f"after-{n}") for n in range(20)])

    await until(lambda: count(yard, "i", 40), what="those after are placed")
    assert len(set(await yard.queued("i"))) == 40


async def test_a_restarted_dispatcher_goes_on_from_what_was_applied(yard: Yard, settings: Settings) -> None:
    await yard.stop(await yard.dispatcher())
    await yard.publish(*[task(f"t{n}") for n in range(10)])
    await yard.instance("i", slots=100)

    await yard.dispatcher()
    await until(lambda: count(yard, "i", 10), what="those published meanwhile are placed")

    names = list(yard.topics.tasks.values())
    assert not any((await lag(settings.kafka, names, yard.cell.applied)).values())


async def test_a_consumer_whose_coordination_has_died_is_replaced(yard: Yard, settings: Settings) -> None:
    await check_topics(settings.kafka, yard.topics, settings.topics)
    topic = yard.topics.tasks["normal"]
    consumer = TopicConsumer(settings.kafka, topic, group=settings.cell, session_timeout_ms=1_000)
    await consumer.start()
    coordinator: Any = vars(consumer)["_consumer"]._coordinator

    async def die() -> None:
        raise RuntimeError("an error that the client did not expect")

    async def reads() -> object:
        with contextlib.suppress(DependencyError):
            return await consumer.poll(records=1, timeout_ms=50)
        return None

    coordinator.ensure_coordinator_known = die
    coordinator.request_rejoin()
    await asyncio.wait([coordinator._coordination_task])
    await yard.publish(task("t"))

    await until(reads, what="the record is read")
    await consumer.stop()


async def test_one_call_brings_about_as_many_bytes_as_are_set(yard: Yard, settings: Settings) -> None:
    await yard.cell.open(settings.cell_config())
    await yard.instance("i", slots=100)
    await check_topics(settings.kafka, yard.topics, settings.topics)
    payload = msgspec.Raw(b'"' + b"x" * 5_000 + b'"')
    await yard.publish(*[task(f"t{n}", payload=payload) for n in range(40)])

    intake = IntakeSettings(session_timeout_ms=1_000, batch_bytes=10_500)
    dispatcher = await yard.dispatcher(msgspec.structs.replace(settings, intake=intake))
    await until(lambda: count(yard, "i", 40), what="all are placed")

    calls = dispatcher.metrics.registry.get_sample_value("taskyard_apply_seconds_count")
    assert calls is not None
    assert calls >= 20


async def test_a_full_park_pauses_the_lowest_priority_first_and_nothing_is_lost(yard: Yard, settings: Settings) -> None:
    park = ParkSettings(tasks=20)
    intake = IntakeSettings(batch=1, session_timeout_ms=1_000)
    dispatcher = await yard.dispatcher(msgspec.structs.replace(settings, park=park, intake=intake))
    await yard.publish(*[task(f"low-{n}", priority="low") for n in range(30)])
    await until(lambda: _is_parked(yard, 16), what="low has filled its share of 20")

    await yard.publish(*[task(f"critical-{n}", priority="critical") for n in range(4)])
    await until(lambda: _is_parked(yard, 20), what="critical has filled the rest")
    await until(lambda: _tells(dispatcher, 'taskyard_intake_paused{priority="low"} 1.0'), what="low is told as paused")
    await until(lambda: _has_lag(dispatcher, "low", 14), what="the lag of low is told while nobody reads")
    await yard.instance("i", slots=1_000)

    await until(lambda: count(yard, "i", 34), what="all are placed once there is room")


async def test_tasks_of_a_dead_worker_are_placed_again_and_dead_when_their_attempts_ran_out(yard: Yard) -> None:
    await yard.dispatcher()
    await yard.publish(task("t", max_attempts=2))
    await until(lambda: _is_parked(yard, 1), what="the task is parked")

    # Nobody can say whether such an instance has started its tasks: three losses are free, two count.
    for n in range(5):
        await yard.instance(f"i{n}", lease_ms=100)

    (letter,) = await yard.dead_letters(1)
    assert (letter.id, letter.reason, letter.attempt) == ("t", "attempts", 2)
    assert [cause.reason for cause in letter.causes] == ["the lease ran out"] * 2


async def test_an_outcome_larger_than_its_topic_takes_goes_out_shortened_and_stops_no_other(yard: Yard) -> None:
    await yard.dispatcher()
    await yard.instance("i")
    await yard.publish(task("big"))
    await until(lambda: count(yard, "i", 1), what="the task is on the queue")
    (delivery,) = await yard.view.queue("i", count=1)
    result = msgspec.Raw(b'"' + b"x" * (1 << 20) + b'"')
    outcome = JSON.encode_outcome(Outcome(id="big", type="a", status="succeeded", attempt=1, result=result))

    await yard.cell.finish("i", EPOCH, [Ending("big", delivery.stream_id, 1, "succeeded", outcome)])
    await yard.publish(task("small"))
    await until(lambda: count(yard, "i", 1), what="the next task is on the queue")
    await yard.finish_all("i")

    told = {outcome.id: outcome for outcome in await yard.outcomes(2)}
    assert told["big"].status == told["small"].status == "succeeded"
    assert bytes(told["big"].result) == b"null"
    assert "bytes are more than" in told["big"].cause
    await until(lambda: _is_outbox_empty(yard), what="the outbox is trimmed")


async def test_a_dead_entry_that_cannot_be_read_is_a_dead_letter_and_does_not_stop_the_relay(yard: Yard) -> None:
    root = yard.connection.root
    await yard.cell.open(yard.settings.cell_config())
    fields = ("d", "attempts", "c", "why", "i", "i", "e", b"\x09 no entry")
    await yard.connection.command("XADD", f"{root}:out", "*", *fields)

    await yard.dispatcher()

    (letter,) = await yard.dead_letters(1)
    assert (letter.reason, letter.record) == ("attempts", b"\x09 no entry")
    assert letter.detail.startswith("why; ")
    await until(lambda: _is_outbox_empty(yard), what="the outbox is trimmed")


async def test_a_server_without_memory_is_one_failure_until_it_takes_a_batch_again(yard: Yard) -> None:
    dispatcher = await yard.dispatcher()
    await yard.instance("i", slots=100)
    with structlog.testing.capture_logs() as logs:
        await yard.connection.command("CONFIG", "SET", "maxmemory", "1")
        try:
            await yard.publish(*[task(f"t{n}") for n in range(10)])
            failures = 'taskyard_loop_failures_total{loop="lane normal"}'
            await until(lambda: _is_above(dispatcher, failures, 4), what="the lane has failed some times")
        finally:
            await yard.connection.command("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: count(yard, "i", 10), what="all are placed once there is memory")
        recovered = await until(lambda: _logged(logs, "loop_recovered"), what="the lane tells that it has recovered")

    assert [line["failures"] > 4 for line in recovered] == [True]
    assert len(await _logged(logs, "loop_failed")) == 1


async def _tells(dispatcher: Dispatcher, line: str) -> bool:
    return line in (await asyncio.to_thread(get, dispatcher.http_port, "/metrics"))[1].splitlines()


async def _logged(logs: list[Any], event: str) -> list[Any]:
    return [line for line in logs if line["event"] == event and line["loop"] == "lane normal"]


async def _value(dispatcher: Dispatcher, name: str) -> float:
    _, metrics = await asyncio.to_thread(get, dispatcher.http_port, "/metrics")
    return next((float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(name)), 0)


async def _is_above(dispatcher: Dispatcher, name: str, value: float) -> bool:
    return await _value(dispatcher, name) > value


async def _has_lag(dispatcher: Dispatcher, priority: str, lag: int) -> bool:
    _, metrics = await asyncio.to_thread(get, dispatcher.http_port, "/metrics")
    lines = [line.split() for line in metrics.splitlines() if line.startswith("taskyard_intake_lag_records{")]
    return sum(float(value) for labels, value in lines if f'priority="{priority}"' in labels) == lag


async def _is_parked(yard: Yard, count: int) -> bool:
    return (await yard.view.level()).parked == count


async def _is_outbox_empty(yard: Yard) -> bool:
    return (await yard.view.level()).outbox == 0
