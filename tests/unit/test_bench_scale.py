"""The arithmetic of the curves: what a cost is, what a point is, how many tasks large payloads get."""

import pytest

from bench.dispatch import Load
from bench.pairs import Sample
from bench.scale import COST_UNIT, Curve, cost_us, point_of, tasks_of, throughput, traced

CURVE = Curve("scale-instances", "instances", {10: Load(100, 10), 500: Load(100, 500)})


def sample_of(load: Load) -> Sample:
    return Sample(1_000.0 / load.instances, {"dispatcher": load.instances, "valkey": 2.0, "kafka": 99.0})


def test_cost_is_the_time_of_dispatchers_and_valkey_and_not_of_kafka() -> None:
    assert cost_us(Sample(0, {"dispatcher": 3.0, "valkey": 4.0, "kafka": 50.0})) == 7.0


def test_a_curve_is_worth_its_last_point_and_keeps_them_all_with_who_spent_what() -> None:
    found = traced(CURVE, sample_of, cost_us, COST_UNIT)

    assert found.value == 502.0
    assert found.details["instances"] == {
        "10": {"us/task": 12.0, "dispatcher": {"us/task": 10}, "valkey": {"us/task": 2.0}, "kafka": {"us/task": 99.0}},
        "500": {
            "us/task": 502.0,
            "dispatcher": {"us/task": 500},
            "valkey": {"us/task": 2.0},
            "kafka": {"us/task": 99.0},
        },
    }


def test_a_curve_of_throughput_has_the_rate_beside_the_costs() -> None:
    found = traced(point_of(CURVE, 0), sample_of, throughput, "tasks/s")

    assert found.value == 100.0
    assert found.details["instances"] == {
        "10": {"tasks/s": 100.0, "dispatcher": {"us/task": 10}, "valkey": {"us/task": 2.0}, "kafka": {"us/task": 99.0}}
    }


@pytest.mark.parametrize(("at", "x"), [(0, 10), (-1, 500)])
def test_a_point_is_a_curve_of_its_own(at: int, x: int) -> None:
    assert point_of(CURVE, at).loads == {x: CURVE.loads[x]}


@pytest.mark.parametrize(
    ("payload_bytes", "tasks"), [(200, 100_000), (2_000, 100_000), (20_000, 10_000), (200_000, 1_000)]
)
def test_large_payloads_get_fewer_tasks_so_that_a_topic_stays_within_bounds(payload_bytes: int, tasks: int) -> None:
    assert tasks_of(payload_bytes, 100_000) == tasks


def test_a_run_keeps_enough_tasks_to_be_timed() -> None:
    assert tasks_of(200_000, 5_000) == 200


def test_loads_of_the_same_tasks_share_their_topics_and_others_do_not() -> None:
    load = Load(100, 10)

    assert load.prefix == load._replace(instances=20, dispatchers=2, parked=5).prefix
    others = [load._replace(tasks=101), load._replace(payload_bytes=2_000), load._replace(needs=(("gpu", 1),))]
    assert len({other.prefix for other in [load, *others]}) == 4
