"""Kafka's logs change under a dispatcher that reads them: it follows, says so, and no record is lost or taken twice."""

import msgspec
import pytest
import structlog.testing

from taskyard.dispatcher.kafka.history import TopicHistory
from taskyard.dispatcher.kafka.topics import check_topics
from taskyard.dispatcher.service import Dispatcher, watermark_group
from taskyard.dispatcher.settings import IntakeSettings, ParkSettings, Settings
from tests.integration.recovery_kit import add_partitions, delete_records, finish, publish_at, recreate_topic, soon_lost
from tests.integration.yard import Yard, count, task, until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return soon_lost(settings)


async def test_a_partition_that_is_added_is_read_without_a_restart(yard: Yard) -> None:
    await yard.dispatcher()
    await yard.instance("i", slots=100)
    await publish_at(yard, task("before"), partition=0)
    await until(lambda: count(yard, "i", 1), what="the first task is placed")

    await add_partitions(yard, yard.topics.tasks["normal"], 3)
    await publish_at(yard, task("added"), partition=2)

    await until(lambda: count(yard, "i", 2), what="the task of the new partition is placed")


@pytest.mark.parametrize("new", [1, 5], ids=["shorter than before", "longer than before"])
async def test_a_topic_that_is_made_anew_is_read_from_its_own_beginning(yard: Yard, new: int) -> None:
    await yard.dispatcher()
    await yard.instance("i", slots=100)
    for n in range(3):
        await publish_at(yard, task(f"old-{n}"), partition=0)
    await until(lambda: count(yard, "i", 3), what="the old tasks are placed")

    with structlog.testing.capture_logs() as logs:
        await recreate_topic(yard, yard.topics.tasks["normal"])
        for n in range(new):
            await publish_at(yard, task(f"new-{n}"), partition=0)

        await until(lambda: count(yard, "i", 3 + new), what="the new tasks are placed as well", within_s=40)
    assert sorted(await yard.queued("i")) == [f"new-{n}" for n in range(new)] + [f"old-{n}" for n in range(3)]
    told = [line for line in logs if line["event"] == "topic_recreated"]
    assert {line["log_level"] for line in told} == {"error"}


async def test_a_log_that_kafka_has_cut_is_read_on_from_its_end_and_the_loss_is_told(
    yard: Yard, settings: Settings
) -> None:
    await check_topics(settings.kafka, yard.topics, settings.topics)
    history = TopicHistory(settings.kafka, yard.topics, group=watermark_group(settings.cell))
    extents = await history.extents()
    await history.close()
    await yard.cell.open(settings.cell_config())
    # Where the cell would stand if its topics had had ten records each, of which an unclean election has left none.
    await yard.cell.begin(dict.fromkeys(extents, 10))

    with structlog.testing.capture_logs() as logs:
        dispatcher = await yard.dispatcher()
        await yard.instance("i")
        await publish_at(yard, task("t"), partition=0)
        await until(lambda: count(yard, "i", 1), what="the record is read though its offset was applied once")

    told = [line for line in logs if line["event"] == "records_lost" and line["priority"] == "normal"]
    assert {(line["by"], line["partition"], line["applied"]) for line in told} == {
        ("truncation", 0, 10),
        ("truncation", 1, 10),
    }
    assert _lost(dispatcher, "truncation") in (19, 20), (
        "one record may have been published before the partition was taken back"
    )


async def test_what_retention_has_taken_before_it_was_read_is_told_once(yard: Yard, settings: Settings) -> None:
    first = await yard.dispatcher()
    await yard.instance("i")
    await publish_at(yard, task("t0"), partition=0)
    await until(lambda: count(yard, "i", 1), what="the first task is placed")
    await yard.stop(first)
    for n in range(1, 5):
        await publish_at(yard, task(f"t{n}"), partition=0)
    await delete_records(yard, yard.topics.tasks["normal"], 0, before=3)

    with structlog.testing.capture_logs() as logs:
        second = await yard.dispatcher()
        await until(lambda: count(yard, "i", 3), what="what is left is placed")

    told = [line for line in logs if line["event"] == "records_lost"]
    assert [(line["by"], line["partition"], line["applied"]) for line in told] == [("retention", 0, 1)]
    assert sorted(await yard.queued("i")) == ["t0", "t3", "t4"]
    assert _lost(second, "retention") == 2


async def test_a_rebalance_while_a_full_park_keeps_the_lane_waiting_loses_no_task(
    yard: Yard, settings: Settings
) -> None:
    intake = IntakeSettings(batch=1, session_timeout_ms=1_000)
    small = msgspec.structs.replace(settings, park=ParkSettings(tasks=20), intake=intake)
    first = await yard.dispatcher(small)
    for n in range(40):
        await publish_at(yard, task(f"t{n}", priority="low"), partition=n % 2)
    await until(lambda: _is_parked(yard, 16), what="low has filled its share of 20")

    await yard.dispatcher(small)
    await yard.stop(first)
    await yard.dispatcher(small)
    await yard.instance("i", slots=1_000)

    await until(lambda: count(yard, "i", 40), what="all are placed once there is room")
    await finish(yard, "i", {f"t{n}" for n in range(40)})


async def _is_parked(yard: Yard, tasks: int) -> bool:
    return (await yard.view.level()).parked == tasks


def _lost(dispatcher: Dispatcher, by: str) -> float | None:
    return dispatcher.metrics.registry.get_sample_value("taskyard_records_lost_total", {"priority": "normal", "by": by})
