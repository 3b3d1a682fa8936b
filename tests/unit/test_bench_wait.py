"""Figure 6: the ideal queue by hand, and that ours in virtual time is measured against the same workload."""

import asyncio
from collections.abc import Sequence
from statistics import fmean

import msgspec
import pytest

from bench import heavy_tail, wait
from bench.central_queue import Job, waits_ms
from bench.virtual_yard import VirtualYard
from taskyard.dispatcher.cli.rehearsal.trace import Row
from taskyard.dispatcher.settings import OrderSettings, Settings
from taskyard.schemas.errors import ConfigError
from taskyard.schemas.task import AgentType, Task

NO_HEADROOM = msgspec.structs.replace(Settings(), order=OrderSettings(headroom_permille=0))


def job(at_ms: int, service_ms: float, *, key_ms: float | None = None, agent_type: str = "coder") -> Job:
    key_ms = at_ms if key_ms is None else key_ms
    return Job(at_ms, service_ms, key_ms, Task(type=AgentType(agent_type)), is_failed=False)


@pytest.mark.parametrize(
    ("jobs", "slots", "waits"),
    [
        ([job(0, 100), job(10, 100), job(20, 100)], 1, [0, 90, 180]),
        ([job(0, 100), job(10, 100), job(20, 100)], 2, [0, 0, 80]),
        # The one that came last has the earliest key.
        ([job(0, 100), job(10, 50, key_ms=500), job(20, 50, key_ms=20)], 1, [0, 140, 80]),
        # What ends at the moment of an arrival has ended before it.
        ([job(0, 100), job(100, 100), job(500, 100)], 1, [0, 0, 0]),
        # Of one moment the most urgent goes first.
        ([job(0, 100, key_ms=9), job(0, 40, key_ms=1)], 1, [40, 0]),
    ],
)
def test_the_ideal_queue_gives_each_free_slot_to_the_earliest_key(
    jobs: Sequence[Job], slots: int, waits: list[float]
) -> None:
    assert waits_ms(jobs, {"coder": slots}) == waits


def test_agent_types_do_not_wait_for_each_other_in_the_ideal_queue() -> None:
    jobs = [job(0, 100), job(10, 100, agent_type="writer"), job(20, 100)]

    assert waits_ms(jobs, {"coder": 1, "writer": 1}) == [0, 0, 80]


@pytest.mark.parametrize("seed", [1, 2])
def test_without_headroom_ours_waits_exactly_as_the_ideal_queue_on_instances_of_one_type(seed: int) -> None:
    given = wait.workload(list(heavy_tail.rows(250, seed)), NO_HEADROOM)

    seen = asyncio.run(VirtualYard(given.jobs, given.fleet, NO_HEADROOM, dispatchers=2, seed=seed).run())

    ideal = wait.ideal_waits_ms(given)
    assert fmean(ideal) > 0
    assert fmean(seen.waits_ms) == pytest.approx(fmean(ideal))


def test_the_same_seed_gives_the_same_waits() -> None:
    given = wait.workload(list(heavy_tail.rows(60, 3)), Settings())

    runs = [asyncio.run(VirtualYard(given.jobs, given.fleet, Settings(), dispatchers=2, seed=7).run()) for _ in "ab"]

    assert runs[0] == runs[1]


def test_both_sides_of_a_pair_get_the_same_workload_and_each_pair_another() -> None:
    row = wait.rows(tasks=60)[0]

    ideal = [row.baseline().value for _ in range(2)]
    ours = [row.ours().details["slots"] for _ in range(2)]

    assert ideal[0] != ideal[1]
    assert ours == [wait.slots_of(wait.workload(list(heavy_tail.rows(60, seed)), Settings())) for seed in range(2)]


def test_a_trace_whose_tasks_need_more_than_slots_is_refused() -> None:
    rows = [Row(float(n), 5.0, "any", "normal", "", {"gpu_milli": 500}, is_failed=False) for n in range(5)]

    with pytest.raises(ConfigError, match="more than slots"):
        wait.workload(rows, Settings())
