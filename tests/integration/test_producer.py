"""The producer on a real Kafka: what is published arrives, and what does not go well ends in time with an error."""

import asyncio
import time
from collections.abc import Generator
from typing import Any

import msgspec
import pytest

from taskyard import Backpressure, ConfigError, DependencyError, Producer, SchemaError, Task, TaskId
from taskyard.compose import embedded
from taskyard.compose.kafka import Kafka
from taskyard.compose.process import free_port
from taskyard.schemas.codec import JSON, MSGPACK
from taskyard.schemas.priority import PRIORITIES
from taskyard.schemas.task import AgentType
from tests.integration.publishing import a_task, create_topics, records, refused_within
from tests.integration.stopping import silent


@pytest.fixture(scope="module")
def own_kafka() -> Generator[Kafka]:
    """A Kafka of this module's own, which its tests may stop."""
    with embedded.start_kafka() as kafka:
        yield kafka


async def test_a_task_is_published_in_three_lines(kafka_address: str, cell_prefix: str) -> None:
    async with Producer(kafka_address, prefix=cell_prefix) as producer:
        task_id = await producer.publish(type="summarise", payload={"text": "…"}, priority="high")

    (record,) = await records(kafka_address, cell_prefix)
    assert record.topic == f"{cell_prefix}tasks.high"
    assert record.key == task_id.encode()
    assert JSON.decode_task(record.value) == Task(
        id=task_id, type=AgentType("summarise"), payload=JSON.encode_payload({"text": "…"}), priority="high"
    )
    assert record.headers == ()


@pytest.mark.parametrize("priority", PRIORITIES)
async def test_a_task_goes_to_the_topic_of_its_priority(
    producer: Producer, kafka_address: str, cell_prefix: str, priority: str
) -> None:
    await producer.publish(a_task(priority=priority))

    assert [record.topic for record in await records(kafka_address, cell_prefix)] == [f"{cell_prefix}tasks.{priority}"]


async def test_headers_are_passed_on_untouched(producer: Producer, kafka_address: str, cell_prefix: str) -> None:
    headers = [("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("ce_id", b"\xff\0")]

    await producer.publish(type="a", headers=headers)

    assert list((await records(kafka_address, cell_prefix))[0].headers) == headers


async def test_a_task_published_again_keeps_its_id_and_its_partition(
    producer: Producer, kafka_address: str, cell_prefix: str
) -> None:
    ids = [await producer.publish(type="a", id="order-17") for _ in range(2)]

    found = await records(kafka_address, cell_prefix)
    assert ids == [TaskId("order-17")] * 2
    assert [record.key for record in found] == [b"order-17"] * 2
    assert len({record.partition for record in found}) == 1


async def test_another_encoding_is_named_in_the_headers(kafka_address: str, cell_prefix: str) -> None:
    async with Producer(kafka_address, prefix=cell_prefix, codec=MSGPACK) as producer:
        await producer.publish(type="a", payload=b"\xff", headers=[("x", b"1")])
        with pytest.raises(SchemaError, match=r"content-type: the payload is application/msgpack"):
            await producer.publish(type="a", headers=[("content-type", b"application/json")])

    (record,) = await records(kafka_address, cell_prefix)
    assert record.headers == (("x", b"1"), ("content-type", b"application/msgpack"))
    assert MSGPACK.decode_payload(MSGPACK.decode_task(record.value).payload, bytes) == b"\xff"


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "type"),
    ({"type": 5}, "type"),
    ({"type": "a|b"}, "type"),
    ({"type": "a", "priority": "urgent"}, "priority"),
    ({"type": "a", "id": "a b"}, "id"),
    ({"type": "a", "requirements": {"slots": 0}}, "requirements.slots"),
    ({"type": "a", "requirements": {"slots": "2"}}, "requirements[...]"),
    ({"type": "a", "payload": object()}, "payload"),
    ({"type": "a", "payload": "x" * (256 << 10)}, "payload"),
    ({"type": "a", "headers": [("a", "text")]}, "headers"),
    ({"type": "a", "headers": [("a", b"x" * 20_000)]}, "headers"),
    ({"type": "a", "headers": [("content-type", b"text/plain")]}, "content-type"),
]


async def test_bad_input_is_refused_with_its_field_before_anything_is_sent(
    producer: Producer, kafka_address: str, cell_prefix: str
) -> None:
    for fields, field in BAD:
        with pytest.raises(SchemaError) as refused:
            await producer.publish(**fields)
        assert refused.value.field == field

    assert await records(kafka_address, cell_prefix) == []


async def test_a_payload_that_is_not_of_the_encoding_is_refused(producer: Producer) -> None:
    with pytest.raises(SchemaError):
        await producer.publish(Task(type=AgentType("a"), payload=msgspec.Raw(b"{,")))


async def test_a_task_is_given_whole_or_by_its_fields(producer: Producer) -> None:
    with pytest.raises(TypeError, match="a task and its fields priority"):
        await producer.publish(a_task(), priority="high")


async def test_many_tasks_are_each_acknowledged_once(producer: Producer, kafka_address: str, cell_prefix: str) -> None:
    tasks = [a_task(priority=PRIORITIES[i % 4]) for i in range(2_000)]

    count = await producer.publish_many(tasks)

    found = await records(kafka_address, cell_prefix)
    assert count == len(tasks)
    assert sorted(record.key.decode() for record in found) == sorted(task.id for task in tasks)


async def test_many_tasks_are_sent_up_to_the_first_bad_one(
    producer: Producer, kafka_address: str, cell_prefix: str
) -> None:
    tasks = [a_task(), a_task(), a_task(max_attempts=0), a_task()]

    with pytest.raises(SchemaError, match="max_attempts"):
        await producer.publish_many(tasks)
    await producer.flush()

    found = await records(kafka_address, cell_prefix)
    assert {record.key.decode() for record in found} == {task.id for task in tasks[:2]}


async def test_an_acknowledgement_can_be_awaited_again_and_is_done_after_a_flush(producer: Producer) -> None:
    acknowledgement = await producer.send(a_task())

    await producer.flush()

    assert acknowledgement.is_done()
    await acknowledgement
    await acknowledgement


async def test_what_is_buffered_is_sent_when_the_block_is_left(kafka_address: str, cell_prefix: str) -> None:
    async with Producer(kafka_address, prefix=cell_prefix, linger_ms=200) as producer:
        for _ in range(50):
            await producer.send(a_task())

    assert len(await records(kafka_address, cell_prefix)) == 50


async def test_outside_its_block_a_producer_says_how_to_use_it() -> None:
    with pytest.raises(DependencyError, match="async with"):
        await Producer().publish(type="a")


async def test_an_unreachable_broker_is_told_at_once() -> None:
    unreachable = Producer(f"127.0.0.1:{free_port()}", timeout_s=5)

    error = await refused_within(5, unreachable.__aenter__())

    assert "taskyard doctor" in str(error)


async def test_a_broker_that_never_answers_is_told_in_time() -> None:
    connected: list[asyncio.StreamWriter] = []

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)

    async with await asyncio.start_server(accept, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        error = await refused_within(8, Producer(f"127.0.0.1:{port}", timeout_s=0.5).__aenter__())
        for writer in connected:
            writer.close()

    assert connected
    assert f"127.0.0.1:{port}" in str(error)


async def test_an_address_that_cannot_be_one_is_a_fault_of_the_settings() -> None:
    with pytest.raises(ConfigError, match="host:port"):
        await Producer("127.0.0.1:many").__aenter__()


async def test_a_missing_topic_is_told_in_time_with_what_to_do(kafka_address: str, prefix: str) -> None:
    async with Producer(kafka_address, prefix=prefix, timeout_s=1) as producer:
        error = await refused_within(5, producer.publish(type="a"))

    assert f"no topic {prefix}tasks.normal" in str(error)
    assert "start a dispatcher" in str(error)


async def test_a_topic_that_takes_less_is_told_and_the_next_task_is_published(kafka_address: str, prefix: str) -> None:
    await create_topics(kafka_address, prefix, {"max.message.bytes": "1000"})

    async with Producer(kafka_address, prefix=prefix) as producer:
        error = await refused_within(10, producer.publish(a_task("x" * 5_000, id="big")))
        for i in range(9):
            await producer.publish(a_task("small", id=f"small-{i}"))

    assert "max.message.bytes" in str(error)
    assert len(await records(kafka_address, prefix)) == 9


async def send_until_refused(producer: Producer, sent: list[Task]) -> None:
    while len(sent) < 1_000:
        task = a_task("x" * 2_000)
        await producer.send(task)
        sent.append(task)


async def test_a_buffer_that_stays_full_is_backpressure_and_nothing_waits_for_ever(
    own_kafka: Kafka, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    await create_topics(own_kafka.address, prefix)
    sent: list[Task] = []
    limits: dict[str, Any] = {"timeout_s": 1.0, "max_wait_s": 0.3, "max_batch_size": 16_000}

    async with Producer(own_kafka.address, prefix=prefix, **limits) as producer:
        await producer.publish(a_task())
        with silent(own_kafka):
            acknowledgement = await producer.send(a_task())
            with pytest.raises(Backpressure, match="publish slower"):
                await send_until_refused(producer, sent)
            unacknowledged = await refused_within(5, acknowledgement)
            unflushed = await refused_within(5, producer.flush())
            leaving_s = time.monotonic()
            await producer.__aexit__(None, None, None)
            left_after_s = time.monotonic() - leaving_s

    assert sent
    assert "publish again with the same id" in str(unacknowledged)
    assert "within 1 s" in str(unflushed)
    assert left_after_s < 8
    assert [vars(line)["tasks"] for line in caplog.records if line.msg == "producer_stopped_unacknowledged"] == [
        len(sent) + 1
    ]


async def test_while_kafka_is_away_it_is_asked_for_seldom(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    with embedded.start_kafka() as kafka:
        await create_topics(kafka.address, prefix)
        async with Producer(kafka.address, prefix=prefix, timeout_s=2.0) as producer:
            # In order and under way, so that it tells its client first that the partitions have no leader.
            stopping = asyncio.create_task(asyncio.to_thread(kafka.stop))
            sent = await producer.send(a_task())
            while not stopping.done():
                await asyncio.wait([stopping], timeout=0.002)
                sent = await producer.send(a_task())
            caplog.clear()

            await refused_within(10, sent)

    asked = [line for line in caplog.records if "Unable to update metadata" in line.getMessage()]
    # Five times a second, for the 2 s that an acknowledgement and then leaving the block wait; not thousands of times.
    assert 0 < len(asked) < 40
    assert not [line.getMessage() for line in caplog.records if line.name == "asyncio"]
