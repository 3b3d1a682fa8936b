"""What a worker refuses to start with, and how it repeats what the cell does not answer."""

import asyncio
import logging
from typing import Any

import pytest

from taskyard.schemas.errors import ConfigError, DependencyError
from taskyard.workers.instance import InstanceSpec
from taskyard.workers.link import Link
from taskyard.workers.load import Load
from taskyard.workers.worker import Worker


async def noop(work: object) -> None: ...


def test_every_fault_of_a_worker_is_listed_at_once() -> None:
    functions: dict[str, Any] = {"noop": noop, "bad": 7}
    specs = [
        InstanceSpec(id="a", types=("other",)),
        InstanceSpec(id="b", capacity={"gpu": 1}),
        InstanceSpec(id="twice"),
        InstanceSpec(id="twice"),
        InstanceSpec(id="pipe|pipe"),
        InstanceSpec(id="none", capacity={"slots": 0}),
    ]

    with pytest.raises(ConfigError) as caught:
        Worker(functions, redis="http://127.0.0.1", instances=specs, lease_ms=100)

    text = str(caught.value)
    for fault in (
        "bad: 7",
        "no handler for other",
        "no slots",
        "occurs 2 times",
        "pipe|pipe",
        "slots: 0",
        "lease_ms",
        "redis:",
    ):
        assert fault in text


def test_instances_by_number_have_ids_of_their_own_and_serve_all_types() -> None:
    worker = Worker({"noop": noop, "other": noop}, instances=3, slots=5)

    assert len({spec.id for spec in worker.instances}) == 3
    assert all(spec.types == ("noop", "other") and spec.capacity == {"slots": 5} for spec in worker.instances)


async def test_a_call_is_repeated_until_it_is_answered_and_the_change_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "taskyard.worker")
    answers = iter([DependencyError("down"), DependencyError("down"), DependencyError("down"), 7])

    async def call() -> int:
        await asyncio.sleep(0)
        answer = next(answers)
        if isinstance(answer, DependencyError):
            raise answer
        return answer

    reply = await Link().answer(call)

    assert reply == 7
    assert [record.message for record in caplog.records] == ["cell_unreachable", "cell_reachable"]


def test_the_load_of_the_machine_is_in_permille() -> None:
    cpu_permille, memory_permille = Load().read()

    assert 0 <= cpu_permille <= 1000
    assert 0 <= memory_permille <= 1000
