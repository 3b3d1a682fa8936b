"""Old unfinished tasks are kept in a topic of their own (real Kafka, real Valkey)."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer

from taskyard.dispatcher.carry import Carry
from taskyard.dispatcher.kafka.history import Mark, TopicHistory
from taskyard.dispatcher.kafka.producer import TopicProducer
from taskyard.dispatcher.kafka.topics import check_topics
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.relay import Relay
from taskyard.dispatcher.service import watermark_group
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.entry import decode_entry
from taskyard.schemas.errors import DependencyError
from tests.contract.rig import Rig, pass_real_time
from tests.integration.recovery_kit import is_begun, lose, soon_lost
from tests.integration.yard import Yard, until

OLD_MS = 3_600_000


async def carried(yard: Yard) -> dict[str, bytes | None]:
    """The last record of each key."""
    consumer: Any = AIOKafkaConsumer(bootstrap_servers=yard.settings.kafka, auto_offset_reset="earliest")
    consumer.subscribe([yard.topics.carried])
    await consumer.start()
    found: dict[str, bytes | None] = {}
    ends = await consumer.end_offsets(consumer.assignment())
    for partition, end in ends.items():
        while await consumer.position(partition) < end:
            for rows in (await consumer.getmany(partition, timeout_ms=200)).values():
                found.update({record.key.decode(): record.value for record in rows})
    await consumer.stop()
    return found


def rig_over(yard: Yard) -> Rig:
    async def now() -> int:
        return (await yard.view.level()).now_ms

    return Rig(yard.cell, yard.view, lambda ms: pass_real_time(now, ms))


def carry_over(yard: Yard, settings: Settings) -> Carry:
    recovery = msgspec.structs.replace(settings.recovery, carry_after_ms=OLD_MS // 2)
    settings = msgspec.structs.replace(settings, recovery=recovery)
    history = TopicHistory(settings.kafka, yard.topics, group=watermark_group(settings.cell))
    return Carry(yard.cell, yard.view, history, TopicProducer(settings.kafka), settings, Metrics(), "me")


async def works(step: Callable[[], Awaitable[None]]) -> None:
    """Take the step again until it works: a new Kafka has no coordinator for its first group at once."""

    async def has_worked() -> bool:
        try:
            await step()
        except DependencyError:
            return False
        return True

    await until(has_worked, what="the step works")


async def test_an_old_task_is_copied_once_and_its_copy_goes_when_it_ends(yard: Yard, settings: Settings) -> None:
    await check_topics(settings.kafka, yard.topics, settings.topics)
    await yard.cell.open(settings.cell_config())
    await yard.cell.begin({})
    rig, metrics = rig_over(yard), Metrics()
    await rig.register("i1", slots=1)
    old_ms = time.time() * 1000 - OLD_MS
    await rig.apply(*[rig.entry(name, arrived_ms=old_ms) for name in ("runs", "waits")], rig.entry("new"), to=["i1"])
    carry = carry_over(yard, settings)
    relay = Relay(yard.cell, TopicProducer(settings.kafka), yard.topics, metrics, "me")

    await works(carry.step)

    copies = await carried(yard)
    assert {name: decode_entry(value or b"").id for name, value in copies.items()} == {"runs": "runs", "waits": "waits"}
    assert min(await yard.view.unfinished()) > time.time() * 1000 - OLD_MS // 2
    await rig.finish("i1", await rig.ending("runs"))
    await relay.step()
    await works(carry.step)
    assert {name: value is None for name, value in (await carried(yard)).items()} == {"runs": True, "waits": False}
    await rig.finish("i1", await rig.ending("waits"))
    await carry.stop()
    await relay.stop()


async def test_a_carried_task_survives_the_loss_of_the_cell_and_one_that_has_ended_does_not_come_back(
    yard: Yard, settings: Settings
) -> None:
    settings = soon_lost(settings, grace_ms=100)
    await yard.dispatcher(settings)
    rig, old_ms = rig_over(yard), time.time() * 1000 - OLD_MS
    await rig.register("i1", slots=1)
    await rig.apply(*[rig.entry(name, arrived_ms=old_ms) for name in ("ends", "waits")], to=["i1"])
    carry = carry_over(yard, settings)
    await until(lambda: yard.cell.lease("carry", "me", ttl_ms=1), what="the dispatcher's own carrying rests")
    await works(carry.step)
    await rig.finish("i1", await rig.ending("ends"))
    await until(lambda: _is_told(yard), what="the end is published")
    await yard.producer.send_and_wait(yard.topics.carried, b"garbage", key=b"garbage")

    await lose(yard)
    await until(lambda: is_begun(yard), what="the cell is recovered")

    assert (await rig.find("waits")).state == "parked"
    assert await yard.view.find("ends") is None
    await rig.register("i1", slots=1)
    await rig.finish("i1", await rig.ending("waits"))
    await until(lambda: _is_gone(yard, "waits"), what="the copy is deleted")
    await carry.stop()


async def test_the_copy_that_a_carrier_left_before_it_was_cut_off_goes_once_its_task_has_ended(
    yard: Yard, settings: Settings
) -> None:
    await check_topics(settings.kafka, yard.topics, settings.topics)
    await yard.cell.open(settings.cell_config())
    await yard.cell.begin({})
    rig, old_ms = rig_over(yard), time.time() * 1000 - OLD_MS
    await rig.register("i1", slots=2)
    await rig.apply(*[rig.entry(name, arrived_ms=old_ms) for name in ("ends", "runs")], to=["i1"])
    for name, entry in zip(("ends", "runs"), await yard.cell.copies(["ends", "runs"]), strict=True):
        await yard.producer.send_and_wait(yard.topics.carried, entry, key=name.encode())
    await rig.finish("i1", await rig.ending("ends"))
    carry = carry_over(yard, settings)

    await works(carry.step)

    assert {name: value is None for name, value in (await carried(yard)).items()} == {"ends": True, "runs": False}
    await rig.finish("i1", await rig.ending("runs"))
    assert [row.kind for row in await yard.cell.outbox(count=9)][-1] == "uncarried", "it was noted that it is carried"
    await carry.stop()


async def test_no_copy_goes_while_the_cell_stands_below_a_stored_watermark(yard: Yard, settings: Settings) -> None:
    await check_topics(settings.kafka, yard.topics, settings.topics)
    await yard.cell.open(settings.cell_config())
    rig, history = rig_over(yard), TopicHistory(settings.kafka, yard.topics, group=watermark_group(settings.cell))
    extents = await history.extents()
    await yard.cell.begin(dict.fromkeys(extents, 5))
    await works(lambda: history.store({name: Mark(6, 0) for name in extents}))
    entry = rig.entry("unknown", arrived_ms=time.time() * 1000 - OLD_MS)
    await yard.producer.send_and_wait(yard.topics.carried, entry, key=b"unknown")
    carry = carry_over(yard, settings)

    await works(carry.step)
    before = await carried(yard)
    await history.store({name: Mark(5, 0) for name in extents})
    await works(carry.step)

    assert before["unknown"] == entry
    assert (await carried(yard))["unknown"] is None
    await history.close()
    await carry.stop()


async def _is_told(yard: Yard) -> bool:
    return await _is_gone(yard, "ends") and await yard.cell.outbox(count=1) == []


async def _is_gone(yard: Yard, name: str) -> bool:
    return (await carried(yard))[name] is None
