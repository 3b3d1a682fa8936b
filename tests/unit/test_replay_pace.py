"""The pace of a replay: compression, the fleet made to measure, copies on a given fleet, the ideal queue."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskyard.dispatcher.cli.rehearsal.pace import ideal, made_to_measure, on_fleet, plan, played_s, runnable
from taskyard.dispatcher.cli.rehearsal.trace import ANY, Row
from taskyard.schemas.limits import check_task
from taskyard.workers.instance import InstanceSpec


def row(at_s: float, service_s: float, *, kind: str = "a", **needs: int) -> Row:
    return Row(at_s, service_s, kind, "normal", "", needs, is_failed=False)


def steady(count: int, *, gap_s: float, service_s: float, kind: str = "a") -> list[Row]:
    return [row(number * gap_s, service_s, kind=kind) for number in range(count)]


def test_the_fleet_is_made_to_be_offered_the_wanted_load() -> None:
    rows = steady(2_000, gap_s=10, service_s=100)

    pace, fleet = made_to_measure(rows, utilisation=0.85, seconds=60, speed=None)

    assert pace.seconds == pytest.approx(60)
    assert pace.offered["slots"] == pytest.approx(0.85, abs=0.03)
    assert sum(spec.capacity["slots"] for spec in fleet) == math.ceil(2_000 * 0.5 / 60 / 0.85)
    assert max(spec.capacity["slots"] for spec in fleet) - min(spec.capacity["slots"] for spec in fleet) <= 1


def test_services_are_never_shortened_to_less_than_half_a_second_on_average() -> None:
    pace, _ = made_to_measure(steady(100, gap_s=1_000, service_s=20), utilisation=0.85, seconds=10, speed=None)

    assert pace.arrival_speed > pace.service_speed
    assert 20 / pace.service_speed == pytest.approx(0.5)


def test_arrivals_and_services_are_compressed_alike_where_services_stay_long_enough() -> None:
    pace, _ = made_to_measure(steady(100, gap_s=1, service_s=20), utilisation=0.85, seconds=50, speed=None)

    assert pace.service_speed == pytest.approx(pace.arrival_speed)


def test_a_given_speed_decides_how_long_the_arrivals_take() -> None:
    pace, _ = made_to_measure(steady(101, gap_s=1, service_s=20), utilisation=0.85, seconds=50, speed=4.0)

    assert pace.seconds == pytest.approx(25)


FLEET = [
    InstanceSpec(id=f"n{number}", types=(ANY,), capacity={"slots": 32, "cpu_milli": 32_000, "gpu_milli": 4_000})
    for number in range(10)
]


@given(st.integers(20, 200), st.floats(1, 1e6), st.floats(1, 1e4), st.floats(0.3, 0.95))
def test_a_given_fleet_is_offered_the_wanted_load_of_its_fullest_resource(
    count: int, span_s: float, service_s: float, utilisation: float
) -> None:
    rows = [row(n * span_s / count, service_s, kind=ANY, cpu_milli=1_000, gpu_milli=500) for n in range(count)]

    pace = on_fleet(rows, FLEET, utilisation=utilisation, seconds=60)

    assert max(pace.offered.values()) == pytest.approx(utilisation)
    assert pace.offered["gpu_milli"] == max(pace.offered.values())


def test_the_longest_services_are_cut_and_counted() -> None:
    rows = [row(n, 10.0 if n < 90 else 1e6, kind=ANY, gpu_milli=1_000) for n in range(100)]

    pace = on_fleet(rows, FLEET, utilisation=0.85, seconds=60)

    assert (pace.longest_s, pace.cut) == (10.0, 10)
    assert played_s(rows[-1], pace) == played_s(rows[0], pace)


def test_each_copy_of_the_trace_is_shifted_and_nothing_comes_after_the_end() -> None:
    rows = [row(n, 5.0, kind=ANY, gpu_milli=500) for n in range(30)]
    pace = on_fleet(rows, FLEET, utilisation=0.9, seconds=60)

    dues = list(plan(rows, pace, run="r"))

    assert pace.copies > 1
    assert len(dues) == len({due.task.id for due in dues}) == 30 * pace.copies
    assert [due.at_s for due in dues] == sorted(due.at_s for due in dues)
    assert 0 <= dues[0].at_s <= dues[-1].at_s <= 60
    halves = [sum(due.at_s < 30 for due in dues), sum(due.at_s >= 30 for due in dues)]
    assert abs(halves[0] - halves[1]) <= 30


def test_every_planned_task_is_within_the_limits_of_the_wire() -> None:
    rows = [row(n, 5.0, kind=ANY, cpu_milli=1_000, gpu_milli=500) for n in range(30)]

    for due in plan(rows, on_fleet(rows, FLEET, utilisation=0.9, seconds=60), run="r"):
        check_task(due.task)


def test_a_task_that_fits_no_empty_instance_is_not_runnable() -> None:
    rows = [
        row(0, 1, kind=ANY, gpu_milli=4_000), row(1, 1, kind=ANY, gpu_milli=5_000), row(2, 1, kind="other"),
        row(3, 1, kind=ANY, disk_mib=1),
    ]  # fmt: skip

    assert runnable(rows, FLEET) == rows[:1]


def test_the_ideal_queue_waits_only_for_slots() -> None:
    rows = [row(0, 10), row(0, 10), row(0, 10), row(100, 10)]
    pace, _ = made_to_measure(rows, utilisation=0.85, seconds=100, speed=None)
    fleet = [InstanceSpec(id="one", types=("a",), capacity={"slots": 2})]

    waits = ideal(rows, pace, fleet)

    assert waits is not None
    assert waits.size == 4
    assert waits.max == pytest.approx(10_000)
    assert waits.mean == pytest.approx(2_500)


def test_there_is_no_ideal_queue_where_instances_share_types() -> None:
    rows = [row(0, 10), row(1, 10)]
    pace, _ = made_to_measure(rows, utilisation=0.85, seconds=100, speed=None)

    assert ideal(rows, pace, [InstanceSpec(id="one", types=("a", "b"), capacity={"slots": 2})]) is None
