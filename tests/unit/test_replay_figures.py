"""Figures by hand, the heat of a fleet, and the demo's load."""

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskyard.dispatcher.cli.rehearsal.bursts import average_rate, bursts, fleet
from taskyard.dispatcher.cli.rehearsal.figures import percentile, spread, variation
from taskyard.dispatcher.cli.rehearsal.heat import Heat
from taskyard.schemas.limits import check_task
from taskyard.schemas.priority import PRIORITIES
from taskyard.workers.instance import InstanceSpec


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_the_least_value_that_the_share_does_not_exceed(values: list[float], share: float) -> None:
    ordered = sorted(values)

    found = percentile(ordered, share)

    assert sum(value <= found for value in ordered) >= share * len(ordered)
    assert sum(value < found for value in ordered) < share * len(ordered)


def test_a_spread_of_nothing_is_zero() -> None:
    assert spread([]) == (0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert variation([]) == variation([0.0, 0.0]) == 0.0


def test_the_variation_is_the_deviation_by_the_mean() -> None:
    values = [1.0, 2.0, 3.0, 10.0]

    assert variation(values) == pytest.approx(statistics.pstdev(values) / statistics.mean(values))


def specs(*names: str, **capacity: int) -> list[InstanceSpec]:
    return [InstanceSpec(id=name, types=("a",), capacity=capacity or {"slots": 10}) for name in names]


def test_an_instance_is_hot_if_it_is_full_while_another_of_its_type_is_half_empty() -> None:
    heat = Heat(specs("hot", "cool"))

    for used in (10, 10, 5, 5, 5):
        heat.add({"hot": {"slots": used}, "cool": {"slots": 1}})

    assert heat.spots().hot == ("hot",)
    assert heat.spots().max == pytest.approx(0.7)
    assert heat.spots().min == pytest.approx(0.1)


def test_no_instance_is_hot_where_all_are_full_or_it_is_full_but_seldom() -> None:
    all_full, seldom = Heat(specs("one", "two")), Heat(specs("one", "two"))

    all_full.add({"one": {"slots": 10}, "two": {"slots": 10}})
    seldom.add({"one": {"slots": 10}, "two": {"slots": 1}})
    for _ in range(20):
        seldom.add({"one": {"slots": 2}, "two": {"slots": 1}})

    assert all_full.spots().hot == ()
    assert seldom.spots().hot == ()


def test_the_fullest_resource_is_the_utilisation_of_an_instance() -> None:
    heat = Heat(specs("one", slots=10, cpu_milli=1000, gpu_milli=100))

    heat.add({"one": {"slots": 1, "cpu_milli": 100, "gpu_milli": 80}})

    assert heat.spots().median == pytest.approx(0.8)


def test_an_instance_is_hot_only_if_another_has_room_of_the_same_resource() -> None:
    heat = Heat(specs("one", "two", slots=10, gpu_milli=100))

    heat.add({"one": {"slots": 1, "gpu_milli": 100}, "two": {"slots": 1, "gpu_milli": 60}})

    assert heat.spots().hot == ()


def test_the_same_seed_gives_the_same_load() -> None:
    instances = [spec for host in fleet(3) for spec in host]

    first, second = (list(bursts(instances, seconds=5, rate=0, seed=7, run="r")) for _ in range(2))

    assert first == second
    assert {due.task.priority for due in first} == set(PRIORITIES)
    for due in first:
        check_task(due.task)


@pytest.mark.parametrize("rate", [0.0, 20.0])
def test_the_load_has_the_wanted_rate_on_average(rate: float) -> None:
    instances = [spec for host in fleet(2) for spec in host]

    dues = list(bursts(instances, seconds=240, rate=rate, seed=7, run="r"))

    assert len(dues) / 240 == pytest.approx(rate or average_rate(instances), rel=0.1)


def test_a_load_without_an_end_goes_on() -> None:
    instances = [spec for host in fleet(1) for spec in host]

    dues = list(itertools.islice(bursts(instances, seconds=0, rate=1.0, seed=7, run="r"), 500))

    assert dues[-1].at_s > 200
