"""Redis loses everything: each task still has exactly one outcome, and what runs is not run again."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from taskyard.dispatcher.cell.contract import Batch, Fenced, Range, Recovering
from taskyard.dispatcher.kafka.history import Extent, TopicHistory
from taskyard.dispatcher.kafka.marks import read_offsets
from taskyard.dispatcher.kafka.producer import TopicProducer
from taskyard.dispatcher.kafka.topics import check_topics
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.recovery import Recovery
from taskyard.dispatcher.service import watermark_group
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.codec import JSON
from taskyard.schemas.outcome import DeadLetter, Outcome
from taskyard.workers.instance import InstanceSpec
from taskyard.workers.worker import Worker
from tests.integration.recovery_kit import ended, finish, has_ended, is_begun, lose, publish_at, soon_lost
from tests.integration.yard import WITHIN_S, Yard, count, get, open_yard, task, until
from tests.worker_kit import running


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return soon_lost(settings)


class Agents:
    """Handlers that count how often each task was started; `slow` waits until it is let go."""

    def __init__(self) -> None:
        self.started: Counter[str] = Counter()
        self.is_let_go = asyncio.Event()

    async def quick(self, name: str) -> None:
        """End at once."""
        self.started[name] += 1

    async def slow(self, name: str) -> None:
        """Take long."""
        self.started[name] += 1
        await self.is_let_go.wait()

    async def has_started(self, *names: str) -> bool:
        """Whether all of them were started."""
        return set(names) <= self.started.keys()

    def worker(self, yard: Yard) -> Worker:
        """One instance for each type, with a slot for two tasks."""
        specs = [InstanceSpec(id=name, types=(name,), capacity={"slots": 2}) for name in ("quick", "slow")]
        handlers = {"quick": self.quick, "slow": self.slow}
        settings = yard.settings
        return Worker(handlers, redis=settings.redis, cell=settings.cell, instances=specs, lease_ms=1_000)


async def publish(yard: Yard, agent_type: str, *names: str) -> None:
    """Publish tasks whose payload is their name."""
    await yard.publish(*[task(n, agent_type=agent_type, payload=JSON.encode_payload(n)) for n in names])


@pytest.mark.parametrize("also_library", [False, True], ids=["its keys", "and the library"])
async def test_each_task_of_a_lost_cell_has_one_outcome_and_what_runs_is_not_started_again(
    yard: Yard, *, also_library: bool
) -> None:
    agents, slow = Agents(), [f"slow-{n}" for n in range(5)]
    dispatcher = await yard.dispatcher()
    async with running(agents.worker(yard)):
        await yard.instance("idle", types=("idle",))
        await publish(yard, "quick", "q1", "q2", "q3")
        await publish(yard, "slow", *slow)
        await publish(yard, "idle", "queued")
        await publish(yard, "nobody", "parked")
        await until(lambda: has_ended(yard, "q1", "q2", "q3"), what="the quick ones have ended")
        await until(lambda: agents.has_started("slow-0"), what="slow ones run")
        ran = set(agents.started)

        await lose(yard, also_library=also_library)
        await until(lambda: _is_lost(yard), what="a dispatcher or worker has found the cell lost")
        await publish(yard, "quick", "later")
        await until(lambda: is_begun(yard), what="the cell is recovered")
        await yard.instance("idle", types=("idle",))
        await yard.instance("nobody", types=("nobody",))
        await until(lambda: has_ended(yard, "later"), what="what was published meanwhile has ended")

        assert all(agents.started[name] == 1 for name in ran), agents.started
        agents.is_let_go.set()
        await until(lambda: has_ended(yard, *slow), what="the slow ones have ended")
        for instance in ("idle", "nobody"):
            await until(lambda name=instance: count(yard, name, 1), what="what was queued or parked is placed again")
            await yard.finish_all(instance)
        await until(lambda: has_ended(yard, "queued", "parked"), what="all have ended")

    assert set((await ended(yard)).values()) == {1}
    assert set(agents.started.values()) == {1}
    assert dispatcher.metrics.registry.get_sample_value("taskyard_recoveries_total") == 1


async def test_a_task_that_a_worker_finishes_while_the_cell_has_not_begun_is_not_run_again(yard: Yard) -> None:
    agents = Agents()
    await yard.dispatcher()
    async with running(agents.worker(yard)):
        await publish(yard, "slow", "a", "b")
        await until(lambda: agents.has_started("a", "b"), what="both run")

        await lose(yard)
        agents.is_let_go.set()
        await until(lambda: has_ended(yard, "a", "b"), what="both outcomes are published")
        is_early = not await is_begun(yard)
        await until(lambda: is_begun(yard), what="the cell is recovered")
        await publish(yard, "slow", "c")
        await until(lambda: has_ended(yard, "c"), what="the next has ended")

    assert is_early
    assert await ended(yard) == Counter(a=1, b=1, c=1)
    assert agents.started == Counter(a=1, b=1, c=1)


class StuckHistory(TopicHistory):
    """Tells one page of outcomes, and then nothing more."""

    async def outcomes(self, since_ms: int) -> AsyncGenerator[list[bytes]]:
        """Yield a page, then wait for ever."""
        async for page in super().outcomes(since_ms):
            yield page
            await asyncio.Event().wait()


async def test_a_dispatcher_that_dies_in_the_middle_leaves_the_cell_to_another_which_begins_again(
    yard: Yard, settings: Settings
) -> None:
    dispatcher = await yard.dispatcher()
    await yard.instance("i", slots=100)
    await yard.publish(*[task(f"t{n}") for n in range(20)])
    await until(lambda: count(yard, "i", 20), what="all are placed")
    await finish(yard, "i", {f"t{n}" for n in range(10)})
    await until(lambda: has_ended(yard, *[f"t{n}" for n in range(10)]), what="half have ended")
    await yard.stop(dispatcher)
    await lose(yard)

    history = StuckHistory(settings.kafka, yard.topics, group=watermark_group(settings.cell))
    own = soon_lost(settings, grace_ms=0)
    stuck = Recovery(yard.cell, history, TopicProducer(own.kafka), own, Metrics(), "stuck", asyncio.Event())
    await stuck.step()
    dying = asyncio.create_task(stuck.step(), name="dying")
    await until(lambda: yard.connection.command("HLEN", f"{yard.connection.root}:done0"), what="some are remembered")
    dying.cancel()
    await asyncio.wait([dying])
    await history.close()
    was_begun = await is_begun(yard)
    await yard.dispatcher()
    await yard.instance("i", slots=100)

    assert not was_begun
    await until(lambda: count(yard, "i", 10), what="those that had not ended are placed again")
    await yard.finish_all("i")
    await until(lambda: has_ended(yard, *[f"t{n}" for n in range(20)]), what="all have ended")
    assert set((await ended(yard)).values()) == {1}


async def test_where_recovery_is_not_automatic_the_cell_waits_and_the_command_recovers_it(settings: Settings) -> None:
    async with open_yard(soon_lost(settings, automatic=False)) as yard:
        with structlog.testing.capture_logs() as logs:
            dispatcher = await yard.dispatcher()
            await yard.publish(task("t"))
            await yard.instance("i")
            await until(lambda: count(yard, "i", 1), what="the task is placed")

            await lose(yard)
            await until(lambda: _is_in(logs, "cell_lost"), what="it is logged")
        (line,) = [line for line in logs if line["event"] == "cell_lost"]
        _, ready = await asyncio.to_thread(get, dispatcher.http_port, "/ready")
        shown = json.loads(await _recover(yard, "--json"))
        told = await _recover(yard)
        started = json.loads(await _recover(yard, "--start", "--json"))
        await yard.instance("i")

        assert (line["log_level"], line["records"]) == ("error", 1)
        assert "taskyard recover --start" in line["next"]
        assert not json.loads(ready)["history"]
        assert (shown["begun"], shown["records"], started["begun"]) == (False, 1, True)
        assert "has lost its history; `taskyard recover --start` recovers it" in told
        assert "1 records are read again" in told
        await until(lambda: count(yard, "i", 1), what="the task is placed again")
        await until(lambda: _has_history(dispatcher.http_port), what="/ready tells it")


async def test_the_command_shows_each_partition_and_has_nothing_to_do_for_a_cell_at_work(yard: Yard) -> None:
    await yard.dispatcher()
    await yard.instance("i")
    for n in range(3):
        await publish_at(yard, task(f"t{n}"), partition=1)
    await until(lambda: count(yard, "i", 3), what="all are placed")

    found = json.loads(await _recover(yard, "--json"))
    told = await _recover(yard, "--start")

    rows = {(row["topic"], row["partition"]): row for row in found["partitions"]}
    row = rows[yard.topics.tasks["normal"], 1]
    assert len(rows) == 8
    assert {name: row[name] for name in ("begin", "watermark", "applied", "end", "lag")} == {
        "begin": 0, "watermark": 0, "applied": 3, "end": 3, "lag": 0,
    }  # fmt: skip
    assert "nothing to be done" in told


async def test_records_of_others_on_the_results_topic_are_passed_over(yard: Yard) -> None:
    dispatcher = await yard.dispatcher()
    await yard.instance("i")
    await yard.publish(task("t1"), task("t2"))
    await until(lambda: count(yard, "i", 2), what="both are placed")
    await finish(yard, "i", {"t1"})
    await until(lambda: has_ended(yard, "t1"), what="one has ended")
    foreign = {"id": "t2", "kind": "something", "v": 1}
    odd = Outcome(id="x y" * 1_000, type="a", status="succeeded", attempt=1)
    refused = DeadLetter(reason="invalid", record=b"?")

    for value in (b"", b"{", b"\xff\xfe", b'"t2"', JSON.encode_payload(foreign), JSON.encode_outcome(odd), None):
        await yard.publish_raw(yard.topics.results, value, key=b"t2")
    await yard.publish_raw(yard.topics.dead_letter, JSON.encode_dead_letter(refused))
    await lose(yard)
    await until(lambda: _is_lost(yard), what="the cell is found lost")
    await until(lambda: is_begun(yard), what="the cell is recovered")
    await yard.instance("i")

    await until(lambda: count(yard, "i", 1), what="the unfinished one is placed again")
    assert await yard.queued("i") == ["t2"]
    assert dispatcher.health.is_live


async def test_a_lane_that_stands_where_the_lost_history_was_is_sent_back(yard: Yard) -> None:
    await yard.dispatcher()
    await yard.instance("i")
    await publish_at(yard, task("t1"), partition=1)
    await until(lambda: count(yard, "i", 1), what="it is placed")
    extents = await _history_extents(yard)
    name = next(n for n, e in extents.items() if (e.topic, e.partition) == (yard.topics.tasks["normal"], 1))
    late = Batch((Range(name, 1, 2),), (), (), ())

    await lose(yard)
    early = await yard.cell.apply(late)
    await until(lambda: is_begun(yard), what="the cell is recovered")

    assert early == Recovering()
    assert isinstance(await yard.cell.apply(late), Fenced)


async def test_a_new_cell_has_a_watermark_from_its_beginning_on(yard: Yard, settings: Settings) -> None:
    await check_topics(settings.kafka, yard.topics, settings.topics)
    recovery = Recovery(
        yard.cell, _history(yard), TopicProducer(settings.kafka), settings, Metrics(), "own", asyncio.Event()
    )

    await recovery.step()

    assert await is_begun(yard)
    assert len(await read_offsets(settings.kafka, watermark_group(settings.cell))) == 4 * settings.topics.partitions
    await recovery.stop()


def _history(yard: Yard) -> TopicHistory:
    return TopicHistory(yard.settings.kafka, yard.topics, group=watermark_group(yard.settings.cell))


async def _history_extents(yard: Yard) -> dict[str, Extent]:
    history = _history(yard)
    try:
        return await history.extents()
    finally:
        await history.close()


async def _is_lost(yard: Yard) -> bool:
    return not await is_begun(yard)


async def _has_history(port: int) -> bool:
    _, body = await asyncio.to_thread(get, port, "/ready")
    return json.loads(body)["history"]


async def _recover(yard: Yard, *words: str) -> str:
    """What `taskyard recover` prints."""
    settings = yard.settings
    where = {"KAFKA": settings.kafka, "REDIS": settings.redis, "CELL": settings.cell, "PREFIX": settings.prefix}
    ours = {**where, "RECOVERY_AUTOMATIC": str(settings.recovery.automatic).lower(), "RECOVERY_GRACE_MS": "0"}
    outside = {name: value for name, value in os.environ.items() if not name.startswith("TASKYARD_")}
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("taskyard"), "recover", *words,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=outside | {f"TASKYARD_{n}": v for n, v in ours.items()},
    )  # fmt: skip
    told, faults = await asyncio.wait_for(process.communicate(), WITHIN_S)
    assert process.returncode == 0, faults.decode()
    return told.decode() + ("" if "--json" in words else faults.decode())


async def _is_in(logs: Sequence[Mapping[str, Any]], event: str) -> bool:
    return any(line["event"] == event for line in logs)
