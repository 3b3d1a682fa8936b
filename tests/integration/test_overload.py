"""More work than the cell can take: every store has its bound, and Kafka keeps the rest without losing any."""

import asyncio
from typing import Any

import msgspec
import pytest

from taskyard.dispatcher.cell.contract import Ending
from taskyard.dispatcher.kafka.consumer import TopicConsumer
from taskyard.dispatcher.kafka.topics import check_topics
from taskyard.dispatcher.service import Dispatcher, consumer_group
from taskyard.dispatcher.settings import IntakeSettings, ParkSettings, Settings
from taskyard.schemas.codec import JSON
from taskyard.schemas.entry import decode_entry
from taskyard.schemas.outcome import Outcome
from taskyard.schemas.priority import PRIORITIES
from taskyard.schemas.topics import Topics
from tests.integration.yard import EPOCH, Yard, get, task, until

BATCH = 8
LIMIT = 40


def overloaded(settings: Settings, *, batch: int = BATCH, **park: int) -> Settings:
    """Settings with a small park and small batches."""
    intake = IntakeSettings(batch=batch, session_timeout_ms=1_000)
    return msgspec.structs.replace(settings, park=ParkSettings(**park), intake=intake)


async def test_the_lowest_priority_is_paused_first_and_each_goes_on_when_there_is_room(
    yard: Yard, settings: Settings
) -> None:
    dispatcher = await yard.dispatcher(overloaded(settings, tasks=LIMIT))
    limits = {"low": 0.8 * LIMIT, "normal": 0.9 * LIMIT, "high": 0.95 * LIMIT, "critical": LIMIT}

    for n, (priority, limit) in enumerate(limits.items()):
        await yard.publish(*[task(f"{priority}-{i}", priority=priority) for i in range(2 * LIMIT)])
        paused = {*list(limits)[: n + 1]}
        await until(lambda paused=paused: _are_paused(dispatcher, paused), what=f"{priority} is paused")
        parked = (await yard.view.level()).parked
        assert limit <= parked < limit + BATCH, (priority, parked)
    await yard.instance("i", slots=9 * LIMIT)

    await until(lambda: _are_paused(dispatcher, set()), what="all priorities go on")
    await until(lambda: _are_placed(yard, "i", 8 * LIMIT), what="every task is placed")


async def test_the_park_is_bounded_by_its_bytes_too(yard: Yard, settings: Settings) -> None:
    size_bytes, most_bytes = 10_000, 200_000
    dispatcher = await yard.dispatcher(overloaded(settings, bytes=most_bytes))
    payload = JSON.encode_payload("x" * size_bytes)

    await yard.publish(*[task(f"t{n}", payload=payload) for n in range(60)])
    await until(lambda: _are_paused(dispatcher, {"normal"}), what="normal is paused")
    parked_bytes = (await yard.view.level()).parked_bytes
    await yard.instance("i", slots=100)

    assert 0.9 * most_bytes <= parked_bytes < most_bytes + BATCH * (size_bytes + 1_000)
    await until(lambda: _are_placed(yard, "i", 60), what="every task is placed")


async def test_many_lanes_and_dispatchers_together_pass_the_parks_bound_by_less_than_one_batch(
    yard: Yard, settings: Settings
) -> None:
    full = overloaded(settings, tasks=LIMIT)
    dispatchers = [await yard.dispatcher(full), await yard.dispatcher(full)]

    await yard.publish(*[task(f"{n}-{p}", priority=p) for n in range(2 * LIMIT) for p in PRIORITIES])
    for dispatcher in dispatchers:
        await until(lambda one=dispatcher: _is_some_paused(one), what="both dispatchers wait")
    await until(lambda: _is_parked_at_least(yard, LIMIT), what="critical has filled the park")
    parked = (await yard.view.level()).parked
    await yard.instance("i", slots=9 * LIMIT)

    assert LIMIT <= parked < LIMIT + BATCH
    await until(lambda: _are_placed(yard, "i", 8 * LIMIT), what="every task is placed")


async def test_tasks_that_wait_for_a_retry_count_as_parked_ones(yard: Yard, settings: Settings) -> None:
    dispatcher = await yard.dispatcher(overloaded(settings, tasks=LIMIT))
    await yard.instance("i", slots=2 * LIMIT)

    for round_ in range(3):
        await yard.publish(*[task(f"{round_}-{n}") for n in range(LIMIT)])
        await until(lambda: _is_taken_or_paused(yard, dispatcher), what="the tasks are placed, or intake waits")
        await _retry_all(yard, delay_ms=3_600_000)

    level = await yard.view.level()
    assert level.later + level.parked < LIMIT + BATCH


async def test_a_full_outbox_pauses_every_priority_until_it_is_published(yard: Yard, settings: Settings) -> None:
    # While another holds the relay's lease, nobody publishes. A dispatcher that had it would go on for a while.
    assert await yard.cell.lease("relay", "nobody", ttl_ms=60_000)
    dispatcher = await yard.dispatcher(overloaded(settings, outbox=10))
    await yard.instance("i", slots=100)
    await yard.publish(*[task(f"first-{n}") for n in range(20)])
    await until(lambda: _are_placed(yard, "i", 20), what="the first are placed")

    await yard.finish_all("i")
    await yard.publish(*[task(f"late-{p}", priority=p) for p in PRIORITIES])
    await until(lambda: _are_paused(dispatcher, set(PRIORITIES)), what="every priority is paused")
    placed = await yard.queued("i")
    await yard.cell.lease("relay", "nobody", ttl_ms=0)

    assert placed == []
    assert len(await yard.outcomes(20)) == 20
    await until(lambda: _are_placed(yard, "i", len(PRIORITIES)), what="the late ones are placed")


async def test_outcomes_that_are_too_large_to_be_read_all_at_once_are_published_page_by_page(yard: Yard) -> None:
    count, result = 60, msgspec.Raw(b'"' + b"x" * 400_000 + b'"')
    command = yard.connection.command
    assert await yard.cell.lease("relay", "nobody", ttl_ms=60_000)
    await yard.dispatcher()
    await yard.instance("i", slots=100)
    await yard.publish(*[task(f"t{n}") for n in range(count)])
    await until(lambda: _are_placed(yard, "i", count), what="all are placed")
    for delivery in await yard.view.queue("i", count=count):
        task_id = decode_entry(delivery.entry).id
        body = JSON.encode_outcome(Outcome(id=task_id, type="a", status="succeeded", attempt=1, result=result))
        await yard.cell.finish("i", EPOCH, [Ending(task_id, delivery.stream_id, 1, "succeeded", body)])

    # Of the 24 MB that are there, the server gives no more than 16 to anyone at once.
    await command("CONFIG", "SET", "client-output-buffer-limit", f"normal {16 << 20} 0 0")
    try:
        await yard.cell.lease("relay", "nobody", ttl_ms=0)
        told = await yard.outcomes(count)
    finally:
        await command("CONFIG", "SET", "client-output-buffer-limit", "normal 0 0 0")

    assert {len(bytes(outcome.result)) for outcome in told} == {len(result)}
    assert len({outcome.id for outcome in told}) == count


async def test_a_paused_partition_survives_a_rebalance_and_its_tasks_are_placed_once(
    yard: Yard, settings: Settings
) -> None:
    full = overloaded(settings, tasks=LIMIT)
    first = await yard.dispatcher(full)
    await yard.publish(*[task(f"t{n}") for n in range(4 * LIMIT)])
    await until(lambda: _are_paused(first, {"normal"}), what="the first dispatcher is paused")

    second = await yard.dispatcher(full)
    await until(lambda: _are_paused(second, {"normal"}), what="the second has got partitions, and is paused as well")
    parked = (await yard.view.level()).parked
    await yard.instance("i", slots=9 * LIMIT)

    assert parked < LIMIT + BATCH
    await until(lambda: _are_placed(yard, "i", 4 * LIMIT), what="every task is placed")
    assert len(set(await yard.queued("i"))) == 4 * LIMIT


async def test_a_paused_dispatcher_that_dies_is_replaced_and_its_tasks_are_placed_once(
    yard: Yard, settings: Settings
) -> None:
    full = overloaded(settings, tasks=LIMIT)
    first, second = await yard.dispatcher(full), await yard.dispatcher(full)
    await yard.publish(*[task(f"t{n}") for n in range(4 * LIMIT)])
    for dispatcher in (first, second):
        await until(lambda one=dispatcher: _are_paused(one, {"normal"}), what="both are paused")

    await yard.crash(first)
    await yard.instance("i", slots=9 * LIMIT)

    await until(lambda: _are_placed(yard, "i", 4 * LIMIT), what="every task is placed")
    assert len(set(await yard.queued("i"))) == 4 * LIMIT


@pytest.mark.parametrize("is_careful", [False, True])
async def test_a_consumer_that_has_no_partition_reads_nothing_whatever_empty_means_to_its_client(
    yard: Yard, settings: Settings, *, is_careful: bool
) -> None:
    topic = await _one_partition(settings, yard.topics)
    first, second = (
        TopicConsumer(settings.kafka, topic, group=consumer_group(settings.cell, "normal"), session_timeout_ms=1_000)
        for _ in range(2)
    )
    owned: dict[TopicConsumer, frozenset[int]] = {}
    for consumer in (first, second):
        consumer.on_change = lambda partitions, one=consumer: owned.__setitem__(one, partitions)
    try:
        await first.start()
        await until(lambda: _owns(owned, first, 1), what="the first has the partition")
        await second.start()
        await until(lambda: _is_shared(owned, first, second), what="one has the partition, the other none")
        idle, busy = (first, second) if owned[second] else (second, first)
        await yard.publish(task("t"))
        vars(idle)["_is_careful"] = is_careful

        polled = await idle.poll(records=10, timeout_ms=50)

        assert polled == {}
        assert await until(lambda: busy.poll(records=10, timeout_ms=50), what="the other reads the record")
    finally:
        await first.stop()
        await second.stop()


async def test_the_client_keeps_no_more_than_one_fetch_of_each_partition(yard: Yard, settings: Settings) -> None:
    await check_topics(settings.kafka, yard.topics, settings.topics)
    topic = yard.topics.tasks["normal"]
    payload = JSON.encode_payload("x" * 100_000)
    await yard.publish(*[task(f"t{n}", payload=payload) for n in range(60)])
    consumer = TopicConsumer(settings.kafka, topic, group="bounded", session_timeout_ms=1_000)
    try:
        await consumer.start()
        # One record is taken and no more: what the client has read ahead by then stays as it is.
        await until(lambda: consumer.poll(records=1, timeout_ms=100), what="a record comes")

        kept_bytes = _buffered_bytes(vars(consumer)["_consumer"])

        # A fetch ends with the batch that passes 1 MiB.
        assert 0 < kept_bytes <= settings.topics.partitions * ((1 << 20) + 200_000)
    finally:
        await consumer.stop()


async def _one_partition(settings: Settings, topics: Topics) -> str:
    one = msgspec.structs.replace(settings.topics, partitions=1)
    await check_topics(settings.kafka, topics, one)
    return topics.tasks["normal"]


async def _owns(owned: dict[TopicConsumer, frozenset[int]], consumer: TopicConsumer, count: int) -> bool:
    return consumer in owned and len(owned[consumer]) == count


async def _is_shared(owned: dict[TopicConsumer, frozenset[int]], *consumers: TopicConsumer) -> bool:
    return sorted(len(owned.get(consumer, ())) for consumer in consumers) == [0, 1]


def _buffered_bytes(consumer: Any) -> int:
    """What aiokafka holds that nobody has asked for yet."""
    kept = [result._partition_records for result in consumer._fetcher._records.values()]
    return sum(records._records.size_in_bytes() for records in kept)


async def _is_taken_or_paused(yard: Yard, dispatcher: Dispatcher) -> bool:
    return len(await yard.queued("i")) == LIMIT or bool(await _paused(dispatcher))


async def _retry_all(yard: Yard, *, delay_ms: int) -> None:
    endings = [
        Ending(decode_entry(delivery.entry).id, delivery.stream_id, 1, "retry", b"not now", delay_ms)
        for delivery in await yard.view.queue("i", count=1_000)
    ]
    await yard.cell.finish("i", EPOCH, endings)


async def _paused(dispatcher: Dispatcher) -> set[str]:
    _, metrics = await asyncio.to_thread(get, dispatcher.http_port, "/metrics")
    prefix = 'taskyard_intake_paused{priority="'
    rows = [line.removeprefix(prefix).split('"} ') for line in metrics.splitlines() if line.startswith(prefix)]
    return {priority for priority, value in rows if float(value)}


async def _are_paused(dispatcher: Dispatcher, priorities: set[str]) -> bool:
    return await _paused(dispatcher) == priorities


async def _is_some_paused(dispatcher: Dispatcher) -> bool:
    return bool(await _paused(dispatcher))


async def _are_placed(yard: Yard, instance: str, count: int) -> bool:
    return len(await yard.queued(instance)) == count


async def _is_parked_at_least(yard: Yard, count: int) -> bool:
    return (await yard.view.level()).parked >= count
