"""The unfinished watermark on real Kafka and Valkey: no unfinished task is ever below it."""

import random
from collections.abc import AsyncGenerator

import pytest

from taskyard.dispatcher.cell.recovery import BUCKET_MS
from taskyard.dispatcher.kafka.history import TopicHistory
from taskyard.dispatcher.kafka.marks import read_offsets
from taskyard.dispatcher.kafka.topics import check_topics
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.service import Dispatcher, watermark_group
from taskyard.dispatcher.settings import Settings
from taskyard.dispatcher.watermark import Watermark
from tests.integration.recovery_kit import (
    create_topics_stamped_by_producers,
    finish_some,
    lose,
    publish_at,
    recreate_topic,
    soon_lost,
)
from tests.integration.yard import Yard, count, task, until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return soon_lost(settings)


@pytest.fixture
async def history(yard: Yard) -> AsyncGenerator[TopicHistory]:
    """The history of the yard, as one more dispatcher sees it."""
    made = TopicHistory(yard.settings.kafka, yard.topics, group=watermark_group(yard.settings.cell))
    yield made
    await made.close()


async def test_no_unfinished_task_is_below_the_stored_watermark_at_any_moment(yard: Yard) -> None:
    chance = random.Random(5)
    await create_topics_stamped_by_producers(yard)
    dispatcher = await yard.dispatcher()
    await yard.instance("i", slots=1_000)
    now_ms = (await yard.view.level()).now_ms
    offsets: dict[str, tuple[int, int]] = {}
    seen: set[tuple[tuple[int, int], ...]] = set()

    for n in range(120):
        # Each in a bucket of its own, and some much later than they say.
        at_ms = now_ms + (n - 200 - chance.choice((0, 0, 0, 7))) * BUCKET_MS
        offsets[f"t{n}"] = (n % 2, await publish_at(yard, task(f"t{n}"), partition=n % 2, at_ms=at_ms))
        await finish_some(yard, "i", chance)
        marks = await _marks(yard)
        seen.add(tuple(sorted(marks.items())))
        below = [name for name in await yard.queued("i") if offsets[name][1] < marks[offsets[name][0]]]
        assert not below, (below, marks)
        if n % 20 == 19:  # as fast as the machine is
            seen.add(await until(lambda: _moved(yard, seen), what="it has moved"))

    assert len(seen) > 5, "it has moved"
    await until(lambda: _all_finished(yard), what="all are finished")
    await until(lambda: _is_at(yard, 60, 60), what="it is at the end once nothing is unfinished")
    assert await _value(dispatcher, "taskyard_watermark_behind_records") == 0


async def test_it_waits_until_the_outcomes_of_what_has_ended_are_published(
    yard: Yard, history: TopicHistory, settings: Settings
) -> None:
    dispatcher = await yard.dispatcher()
    await yard.instance("i")
    await publish_at(yard, task("t"), partition=0)
    await until(lambda: count(yard, "i", 1), what="the task is placed")
    await yard.stop(dispatcher)  # nobody publishes outcomes from now on
    watermark = Watermark(yard.cell, yard.view, history, settings, Metrics(), "own")

    await yard.finish_all("i")
    await watermark.step()
    unpublished = await _marks(yard)
    (outgoing,) = await yard.cell.outbox(count=10)
    await yard.cell.trim([outgoing.stream_id])
    await watermark.step()

    assert unpublished[0] == 0
    assert (await _marks(yard))[0] == 1
    await watermark.stop()


async def test_one_that_was_measured_before_the_cell_was_lost_is_not_stored_afterwards(
    yard: Yard, history: TopicHistory, settings: Settings
) -> None:
    dispatcher = await yard.dispatcher()
    await yard.instance("i")
    await publish_at(yard, task("t"), partition=0)
    await until(lambda: count(yard, "i", 1), what="the task is placed")
    await yard.stop(dispatcher)
    watermark = Watermark(yard.cell, yard.view, history, settings, Metrics(), "own")
    await yard.finish_all("i")
    await watermark.step()

    await lose(yard)
    await watermark.step()

    assert (await _marks(yard))[0] == 0, "the outcome of the task was lost with the cell"
    await watermark.stop()


async def test_a_replay_ends_although_its_topic_is_made_anew_meanwhile(
    yard: Yard, history: TopicHistory, settings: Settings
) -> None:
    await check_topics(settings.kafka, yard.topics, settings.topics)
    extents = await history.extents()
    normal = next(n for n, e in extents.items() if (e.topic, e.partition) == (yard.topics.tasks["normal"], 0))
    await yard.cell.open(settings.cell_config())
    await yard.cell.begin(dict.fromkeys(extents, 0), until={normal: 3})
    assert (await yard.cell.open(settings.cell_config())).replaying

    await recreate_topic(yard, yard.topics.tasks["normal"])
    await yard.dispatcher()

    await until(lambda: _is_replayed(yard), what="the replay is over")
    await publish_at(yard, task("new"), partition=0)
    await yard.instance("i")
    await until(lambda: count(yard, "i", 1), what="the new task is placed")
    await yard.finish_all("i")
    await until(lambda: _is_at(yard, 1, 0), what="the watermark moves")


async def _is_replayed(yard: Yard) -> bool:
    return not (await yard.cell.open(yard.settings.cell_config())).replaying


async def _moved(yard: Yard, seen: set[tuple[tuple[int, int], ...]]) -> tuple[tuple[int, int], ...]:
    """The marks, if they have not been seen yet."""
    marks = tuple(sorted((await _marks(yard)).items()))
    return () if marks in seen else marks


async def _marks(yard: Yard) -> dict[int, int]:
    stored = await read_offsets(yard.settings.kafka, watermark_group(yard.settings.cell))
    return {p: offset for (topic, p), (offset, _) in stored.items() if topic == yard.topics.tasks["normal"]}


async def _is_at(yard: Yard, *offsets: int) -> bool:
    return await _marks(yard) == dict(enumerate(offsets))


async def _all_finished(yard: Yard) -> bool:
    await yard.finish_all("i")
    return not await yard.view.unfinished()


async def _value(dispatcher: Dispatcher, name: str) -> float | None:
    return dispatcher.metrics.registry.get_sample_value(name)
