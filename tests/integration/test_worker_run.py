"""A worker runs tasks from a real cell, and how each may end is seen there."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from taskyard.schemas.codec import JSON, MSGPACK
from taskyard.schemas.task import AgentType, Task
from taskyard.workers.context import Context
from taskyard.workers.errors import GiveUp, Retry
from taskyard.workers.instance import InstanceSpec
from taskyard.workers.worker import Worker
from tests.worker_kit import Yard, eventually, running, yard


class Work(msgspec.Struct):
    text: str = ""
    number: int = 0


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("not even this")


class Answer(msgspec.Struct):
    words: int
    where: str = ""


async def summarise(work: Work, context: Context) -> Answer:
    return Answer(len(work.text.split()), context.instance)


def count(work: Work) -> Answer:
    return Answer(len(work.text.split()), threading.current_thread().name)


@pytest.fixture
async def field(redis_url: str, cell: str) -> AsyncGenerator[Yard]:
    """The cell of this test."""
    async with yard(redis_url, cell) as opened:
        yield opened


def task(agent_type: str, payload: Any = None, **fields: Any) -> Task:
    return Task(type=AgentType(agent_type), payload=JSON.encode_payload(payload or {}), **fields)


def worker(redis_url: str, cell: str, handlers: dict[str, Any], **fields: Any) -> Worker:
    return Worker(
        handlers, redis=redis_url, cell=cell, instances=[InstanceSpec(id="i", capacity={"slots": 4})], **fields
    )


async def test_async_and_sync_handlers_get_typed_payloads_and_their_results_become_outcomes(
    field: Yard, redis_url: str, cell: str
) -> None:
    first = task("summarise", {"text": "one two three"}, tenant="acme", session="s1", priority="high")
    second = task("count", {"text": "one two"})

    async with running(worker(redis_url, cell, {"summarise": summarise, "count": count})):
        await field.put(first, second, instance="i")
        await field.wait_for(first, "finished")
        await field.wait_for(second, "finished")

    outcome = (await field.outcomes())[first.id]
    assert msgspec.json.decode(outcome.result) == {"words": 3, "where": "i"}
    assert (outcome.type, outcome.status, outcome.attempt, outcome.instance) == ("summarise", "succeeded", 1, "i")
    assert (outcome.tenant, outcome.session, outcome.priority) == ("acme", "s1", "high")
    assert 0 < outcome.arrived_ms <= outcome.placed_ms <= outcome.started_ms <= outcome.finished_ms
    in_thread = msgspec.json.decode((await field.outcomes())[second.id].result, type=Answer)
    assert in_thread.words == 2
    assert in_thread.where.startswith("taskyard-handler")


async def test_a_task_in_messagepack_has_its_outcome_in_messagepack(field: Yard, redis_url: str, cell: str) -> None:
    packed = Task(type=AgentType("summarise"), payload=MSGPACK.encode_payload({"text": "a b"}))

    async with running(worker(redis_url, cell, {"summarise": summarise})):
        await field.put(packed, instance="i", headers=(("content-type", b"application/msgpack"),))
        await field.wait_for(packed, "finished")

    (out,) = await field.outgoing()
    assert msgspec.msgpack.decode(MSGPACK.decode_outcome(out.body).result, type=Answer).words == 2


async def test_a_handler_sees_its_attempt_and_headers_and_its_progress_goes_out_with_a_beat(
    field: Yard, redis_url: str, cell: str
) -> None:
    seen: list[Context] = []
    may_end = asyncio.Event()

    async def watched(work: Any, it: Context) -> None:
        seen.append(it)
        it.progress(0.5, "halfway \ud800")
        await may_end.wait()

    one = task("watched", max_attempts=7, deadline_ms=4_000_000_000_000)

    async def is_reported() -> bool:
        (instance,) = await field.view.instances()
        return instance.reported.progress == {one.id: "50% halfway ?"} and instance.reported.running == (1,)

    async with running(worker(redis_url, cell, {"watched": watched}, lease_ms=500)):
        await field.put(one, instance="i", headers=(("traceparent", b"00-1"), ("ce_id", b"7")))
        await eventually(is_reported, "the beat carries the progress")
        may_end.set()
        await field.wait_for(one, "finished")

    (context,) = seen
    assert context.headers == (("traceparent", b"00-1"), ("ce_id", b"7"))
    assert (context.task.id, context.attempt, context.max_attempts) == (one.id, 1, 7)
    assert context.deadline_ms == 4_000_000_000_000


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Retry("not yet", delay_s=300), "not yet"),
        (ValueError("of no use"), "ValueError: of no use"),
        (asyncio.CancelledError(), "CancelledError: the handler was cancelled from inside"),
        (Retry("at the end of time", delay_s=float("inf")), "at the end of time"),
        (SystemExit(3), "SystemExit: 3"),
        (Unspeakable(), "Unspeakable: it cannot be shown"),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_failed_attempt_is_tried_again_later_and_its_cause_kept(
    field: Yard, redis_url: str, cell: str, error: BaseException, cause: str, *, is_async: bool
) -> None:
    async def awaits(work: Work) -> None:
        raise error

    def blocks(work: Work) -> None:
        raise error

    one = task("fails")

    async with running(worker(redis_url, cell, {"fails": awaits if is_async else blocks})):
        await field.put(one, instance="i")
        place = await field.wait_for(one, "later")

    assert place.attempt == 2
    assert place.entry is not None
    assert [(c.attempt, c.instance, c.reason) for c in place.entry.causes] == [(1, "i", cause)]
    if isinstance(error, Retry):
        assert float(place.at) > (time.time() + 200) * 1000


async def test_a_sync_handler_that_lets_an_iterator_run_out_has_failed(field: Yard, redis_url: str, cell: str) -> None:
    def exhausted(work: Work) -> int:
        return next(iter(()))

    one = task("exhausted")

    async with running(worker(redis_url, cell, {"exhausted": exhausted})):
        await field.put(one, instance="i")
        place = await field.wait_for(one, "later")

    assert place.entry is not None
    assert [cause.reason for cause in place.entry.causes] == ["RuntimeError: the handler raised StopIteration"]


async def test_a_task_that_the_handler_gives_up_is_dead_at_once(field: Yard, redis_url: str, cell: str) -> None:
    async def hopeless(work: Work) -> None:
        raise GiveUp("nobody can do this")

    one = task("hopeless", max_attempts=5)

    async with running(worker(redis_url, cell, {"hopeless": hopeless})):
        await field.put(one, instance="i")
        await field.wait_for(one, "dead")

    (out,) = await field.outgoing()
    assert (out.kind, out.reason, out.cause, out.instance) == ("dead", "gave_up", "nobody can do this", "i")


@pytest.mark.parametrize(
    ("payload", "result", "cause"),
    [
        ({"number": "seven"}, None, "payload.number: Expected `int`, got `str`"),
        ({}, object(), "the result of type object cannot be encoded"),
        ({}, "x" * (1 << 20), "the result has 1048578 bytes, at most 1048576"),
    ],
)
async def test_what_no_attempt_can_mend_is_dead_at_once_with_the_reason(
    field: Yard, redis_url: str, cell: str, payload: Any, result: Any, cause: str
) -> None:
    async def returns(work: Work) -> Any:
        return result

    one = task("returns", payload)

    async with running(worker(redis_url, cell, {"returns": returns})):
        await field.put(one, instance="i")
        await field.wait_for(one, "dead")

    (out,) = await field.outgoing()
    assert out.reason == "gave_up"
    assert cause in out.cause


async def test_an_async_attempt_that_takes_too_long_is_cancelled(field: Yard, redis_url: str, cell: str) -> None:
    cancelled = asyncio.Event()

    async def slow(work: Work) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    one = task("slow", timeout_ms=50)

    async with running(worker(redis_url, cell, {"slow": slow})):
        await field.put(one, instance="i")
        place = await field.wait_for(one, "later")
        await cancelled.wait()

    assert place.entry is not None
    assert [cause.reason for cause in place.entry.causes] == ["timed out after 50 ms"]


async def test_a_sync_handler_that_takes_too_long_can_see_it_and_keeps_its_thread(
    field: Yard, redis_url: str, cell: str
) -> None:
    seen = threading.Event()

    def slow(work: Work, context: Context) -> None:
        while not context.is_cancelled:
            time.sleep(0.005)
        seen.set()

    one = task("slow", timeout_ms=50)

    async with running(worker(redis_url, cell, {"slow": slow})):
        await field.put(one, instance="i")
        place = await field.wait_for(one, "later")
        assert await asyncio.to_thread(seen.wait, 10)

    assert place.entry is not None
    assert [cause.reason for cause in place.entry.causes] == ["timed out after 50 ms"]


async def test_the_time_limit_of_a_sync_handler_begins_when_it_has_a_thread(
    field: Yard, redis_url: str, cell: str
) -> None:
    def takes_its_time(work: Work) -> None:
        time.sleep(0.15)

    tasks = [task("slow", timeout_ms=400) for _ in range(4)]

    async with running(worker(redis_url, cell, {"slow": takes_its_time}, threads=1)):
        await field.put(*tasks, instance="i")
        for one in tasks:
            await field.wait_for(one, "finished", "later")

    assert len(await field.outcomes()) == 4


async def test_a_freed_slot_pulls_parked_tasks(field: Yard, redis_url: str, cell: str) -> None:
    tasks = [task("summarise") for _ in range(40)]
    await field.put(*tasks)

    async with running(worker(redis_url, cell, {"summarise": summarise})):
        for one in tasks:
            await field.wait_for(one, "finished")

    assert len(await field.outcomes()) == 40
    assert (await field.view.level()).parked == 0


async def test_two_instances_of_one_process_run_what_each_serves(field: Yard, redis_url: str, cell: str) -> None:
    specs = [
        InstanceSpec(id="a", types=("summarise",), capacity={"slots": 2, "gpu": 1}, labels={"zone": "z"}),
        InstanceSpec(id="b", types=("count",), profile={"model": "m"}),
    ]
    tasks = [task(name) for name in ("summarise", "count") * 10]
    await field.put(*tasks)

    async with running(Worker({"summarise": summarise, "count": count}, redis=redis_url, cell=cell, instances=specs)):
        for one in tasks:
            await field.wait_for(one, "finished")
        offered = {instance.id: instance for instance in await field.view.instances()}

    where = {(outcome.type, outcome.instance) for outcome in (await field.outcomes()).values()}
    assert where == {("summarise", "a"), ("count", "b")}
    assert (offered["a"].capacity, offered["a"].labels) == ({"slots": 2, "gpu": 1}, {"zone": "z"})
    assert offered["b"].profile == {"model": "m"}


async def test_tasks_finish_once_each_while_connections_break(field: Yard, redis_url: str, cell: str) -> None:
    tasks = [task("summarise") for _ in range(1000)]
    await field.put(*tasks)

    async def are_all_out() -> bool:
        if next(breaks, None) is not None:
            await field.connection.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return len(await field.outgoing()) == len(tasks)

    breaks = iter(range(20))
    async with running(worker(redis_url, cell, {"summarise": summarise})):
        await eventually(are_all_out, "all tasks are finished")

    assert set(await field.outcomes()) == {one.id for one in tasks}
