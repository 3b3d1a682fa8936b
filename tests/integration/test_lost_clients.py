"""What a producer does when its client has lost its sequence, or its records their leader."""

import asyncio
from typing import Any

import pytest
from aiokafka import TopicPartition

from taskyard import Producer
from tests.integration.publishing import PARTITIONS, a_task, records, refused_within


def link_of(producer: Producer) -> Any:
    return vars(producer)["_link"]


def client_of(producer: Producer) -> Any:
    return link_of(producer)._client


def lose_sequence(producer: Producer, prefix: str) -> None:
    """Make the broker refuse every further batch of the client, as after it has lost records (aiokafka 1017)."""
    client = client_of(producer)
    for partition in range(PARTITIONS):
        part = TopicPartition(f"{prefix}tasks.normal", partition)
        client._txn_manager.increment_sequence_number(part, 1_000)


async def test_a_client_that_has_lost_its_sequence_is_replaced(
    producer: Producer, kafka_address: str, cell_prefix: str
) -> None:
    await producer.publish_many([a_task() for _ in range(30)])
    lost = client_of(producer)
    lose_sequence(producer, cell_prefix)

    ids = await asyncio.gather(*[producer.publish(a_task()) for _ in range(30)])
    count = await producer.publish_many([a_task() for _ in range(30)])

    found = await records(kafka_address, cell_prefix)
    assert count == 30
    assert len({record.key for record in found}) == 90
    assert {task_id.encode() for task_id in ids} < {record.key for record in found}
    assert client_of(producer) is not lost


async def test_all_that_a_client_has_lost_is_sent_again_at_once_not_each_when_it_is_waited_for(
    producer: Producer, kafka_address: str, cell_prefix: str
) -> None:
    await producer.publish_many([a_task() for _ in range(30)])
    lose_sequence(producer, cell_prefix)
    sent = [await producer.send(a_task()) for _ in range(300)]

    await sent[0]
    await producer.flush()

    # Nobody has waited for the others.
    assert len({record.key for record in await records(kafka_address, cell_prefix)}) == 330
    for acknowledgement in sent:
        await acknowledgement


async def test_what_a_client_has_lost_is_sent_again_though_who_found_it_out_gives_up(
    producer: Producer, kafka_address: str, cell_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = link_of(producer)
    connect = link._connect
    await producer.publish_many([a_task() for _ in range(30)])
    lose_sequence(producer, cell_prefix)
    sent = [await producer.send(a_task()) for _ in range(300)]
    waiter = asyncio.ensure_future(sent[0])

    async def then_give_up() -> Any:
        client = await connect()
        asyncio.get_running_loop().call_soon(waiter.cancel)
        return client

    monkeypatch.setattr(link, "_connect", then_give_up)
    await asyncio.wait([waiter])
    await producer.flush()

    assert len({record.key for record in await records(kafka_address, cell_prefix)}) == 330
    for acknowledgement in sent:
        await acknowledgement


async def test_a_producer_that_stops_while_its_client_is_replaced_leaves_none_behind(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, made, may_go_on = link_of(producer), asyncio.Event(), asyncio.Event()
    connect, clients = link._connect, list[Any]()

    async def slowly() -> Any:
        clients.append(await connect())
        made.set()
        await may_go_on.wait()
        return clients[0]

    monkeypatch.setattr(link, "_connect", slowly)
    renewing = asyncio.create_task(link.renew(client_of(producer)))
    await made.wait()
    await link.stop()
    may_go_on.set()
    await renewing

    assert clients[0]._closed
    assert client_of(producer) is None


async def test_an_acknowledgement_that_nobody_holds_is_let_go(producer: Producer) -> None:
    for _ in range(5_000):
        await producer.send(a_task())

    assert len(link_of(producer)._given) < 2_000


class Leaderless:
    """The cluster as a client sees it that has read, while the only broker was stopping, that nobody leads."""

    def __init__(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._patch.setattr(client.client.cluster, "leader_for_partition", self._leader)

    def _leader(self, _partition: object) -> int:
        return -1

    def end(self) -> None:
        self._patch.undo()


async def test_what_waits_longer_than_its_time_for_a_leader_arrives_and_the_client_keeps_its_sequence(
    kafka_address: str, cell_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Producer(kafka_address, prefix=cell_prefix, timeout_s=1.0) as producer:
        await producer.publish_many([a_task() for _ in range(30)])
        client = client_of(producer)
        away = Leaderless(client, monkeypatch)
        sent = [await producer.send(a_task()) for _ in range(30)]
        unanswered = [await refused_within(5, sent[0]) for _ in range(2)]

        away.end()
        for acknowledgement in sent:
            await acknowledgement
        await producer.publish_many([a_task() for _ in range(30)])

        assert client_of(producer) is client

    assert all("publish again with the same id" in str(error) for error in unanswered)
    assert len(await records(kafka_address, cell_prefix)) == 90
