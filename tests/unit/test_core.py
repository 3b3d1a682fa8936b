"""The core against brute force: load, plan, and what the tick decides."""

import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskyard.dispatcher.core.fleet import Fleet
from taskyard.dispatcher.core.load import WARM_UP_MS, LeastAgentLoad
from taskyard.dispatcher.core.matching import to_hold, to_settle
from taskyard.dispatcher.core.plan import Decision, plan
from taskyard.dispatcher.core.shapes import parse_shape
from taskyard.dispatcher.core.snapshot import InstanceView, Report, ShapeView, State, Vector

NOW_MS = 1_000_000.0
STATES: list[State] = ["open", "open", "open", "cordoned", "held"]
RESOURCES = ("slots", "cpu_milli", "memory_mib", "gpu")


def instance(
    name: str,
    *,
    free: Mapping[str, int],
    capacity: Mapping[str, int] | None = None,
    types: tuple[str, ...] = ("a",),
    headroom: int = 0,
    state: State = "open",
    labels: Mapping[str, str] | None = None,
    report: Report = Report("0-0"),  # noqa: B008 - immutable
    registered_ms: int = 0,
) -> InstanceView:
    return InstanceView(
        id=name,
        tag="abcd",
        epoch="abcdefgh",
        types=types,
        capacity=dict(capacity or free),
        free=dict(free),
        labels=dict(labels or {}),
        profile={},
        state=state,
        reason="",
        headroom=headroom,
        reported=report,
        reported_ms=0,
        lease_until_ms=0,
        registered_ms=registered_ms,
    )


def fleet_of(*views: InstanceView) -> Fleet:
    fleet = Fleet(LeastAgentLoad())
    fleet.replace(views, RESOURCES, now_ms=NOW_MS)
    fleet.policy.bind(RESOURCES)
    return fleet


def planned(shapes: list[str], fleet: Fleet, seed: int = 1, now_ms: float = NOW_MS) -> list[str]:
    decisions = plan(shapes, fleet, now_ms=now_ms, tie=random.Random(seed).random)
    return [decision.candidates[0].id if decision.candidates else decision.reason for decision in decisions]


def placed(decision: Decision) -> tuple[list[str], float, float, int, str]:
    candidates = [candidate.id for candidate in decision.candidates]
    return candidates, decision.load, decision.runner_up_load, decision.pool_size, decision.reason


@st.composite
def instances(draw: st.DrawFn) -> InstanceView:
    slots, cpu, memory = draw(st.integers(1, 6)), draw(st.integers(0, 4_000)), draw(st.integers(0, 4_000))
    return instance(
        "",
        capacity={"slots": slots, "cpu_milli": cpu, "memory_mib": memory},
        free={"slots": draw(st.integers(0, slots)), "cpu_milli": cpu // 2, "memory_mib": memory // 3},
        headroom=min(draw(st.integers(0, 2)), slots - 1),
        state=draw(st.sampled_from(STATES)),
        types=draw(st.sampled_from([("a",), ("b",), ("a", "b")])),
    )


views = st.lists(instances(), min_size=1, max_size=8).map(
    lambda found: [view._replace(id=f"i{n}") for n, view in enumerate(found)]
)
shapes = st.lists(
    st.sampled_from(
        ["n|a|slots=1|", "c|a|slots=1|", "n|b|slots=1|", "n|a|slots=2|", "n|a|cpu_milli=500,slots=1|",
         "c|b|memory_mib=300,slots=1|", "n|a|gpu=1,slots=1|"]
    ),
    max_size=25,
)  # fmt: skip


@given(views=views, wanted=shapes, seed=st.integers(0, 2**32))
def test_the_plan_takes_the_least_loaded_instance_that_fits_at_each_step(
    views: list[InstanceView], wanted: list[str], seed: int
) -> None:
    fleet, oracle = fleet_of(*views), fleet_of(*views)

    decisions = plan(wanted, fleet, now_ms=NOW_MS, tie=random.Random(seed).random)

    for text, decision in zip(wanted, decisions, strict=True):
        pool, shape = oracle.pool(text), parse_shape(text)
        loads = {
            member.id: oracle.policy(member, shape.type, NOW_MS)
            for member in pool.members.values()
            if member.fits(pool.need, is_critical=shape.is_critical)
        }
        assert bool(decision.candidates) == bool(loads)
        if decision.candidates:
            chosen = decision.candidates[0].id
            assert loads[chosen] == pytest.approx(min(loads.values()))
            oracle.instances[chosen].take(pool.need)
        else:
            assert decision.reason


@given(views=views, wanted=shapes)
def test_the_plan_never_takes_more_than_there_is(views: list[InstanceView], wanted: list[str]) -> None:
    fleet = fleet_of(*views)

    planned(wanted, fleet)

    assert all(units >= 0 for member in fleet.instances.values() for units in member.free)


@given(views=views, wanted=shapes, seed=st.integers(0, 2**32))
def test_the_same_batch_view_and_seed_give_the_same_plan(
    views: list[InstanceView], wanted: list[str], seed: int
) -> None:
    assert planned(wanted, fleet_of(*views), seed) == planned(wanted, fleet_of(*views), seed)


@given(views=views, wanted=shapes, seed=st.integers(0, 2**32))
def test_a_batch_is_planned_like_its_tasks_one_after_the_other(
    views: list[InstanceView], wanted: list[str], seed: int
) -> None:
    fleet, tie = fleet_of(*views), random.Random(seed).random

    singly = [decision for text in wanted for decision in plan([text], fleet, now_ms=NOW_MS, tie=tie)]

    at_once = plan(wanted, fleet_of(*views), now_ms=NOW_MS, tie=random.Random(seed).random)
    assert [placed(decision) for decision in at_once] == [placed(decision) for decision in singly]


def test_ties_are_broken_at_random() -> None:
    views = [instance(f"i{n}", free={"slots": 4}) for n in range(8)]

    first = {planned(["n|a|slots=1|"], fleet_of(*views), seed)[0] for seed in range(40)}

    assert len(first) > 3


def test_candidates_are_at_most_three_and_different() -> None:
    fleet = fleet_of(*[instance(f"i{n}", free={"slots": 4}) for n in range(8)])

    (decision,) = plan(["n|a|slots=1|"], fleet, now_ms=NOW_MS, tie=random.Random(1).random)

    assert len({candidate.id for candidate in decision.candidates}) == 3
    assert decision.pool_size == 8


def test_a_refresh_gives_back_what_the_cell_says_is_free() -> None:
    fleet = fleet_of(instance("i", free={"slots": 1}))
    assert planned(["n|a|slots=1|"] * 2, fleet)[0] == "i"

    is_same = fleet.refresh({"i": Vector("abcd", "open", 0, (1,))}, now_ms=NOW_MS)

    assert is_same
    assert planned(["n|a|slots=1|"], fleet, now_ms=NOW_MS + 1) == ["i"]


@given(views=views, wanted=shapes, taken=st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_what_others_placed_meanwhile_is_not_placed_again_even_on_a_heap_that_is_not_rebuilt(
    views: list[InstanceView], wanted: list[str], taken: list[int]
) -> None:
    fleet = fleet_of(*views)
    planned(wanted, fleet)
    left = {name: max(0, i.free[0] - taken[n]) for n, (name, i) in enumerate(fleet.instances.items())}

    fleet.refresh(
        {name: Vector(i.tag, "open", i.headroom, (left[name], *i.free[1:])) for name, i in fleet.instances.items()},
        now_ms=NOW_MS,
    )
    fleet.rebuild_at_ms = NOW_MS + 1_000
    planned(wanted, fleet)

    assert all(units >= 0 for member in fleet.instances.values() for units in member.free)


def test_a_fleet_that_changes_is_planned_on_as_it_is_now() -> None:
    fleet = fleet_of(instance("i1", free={"slots": 9}), instance("i2", free={"slots": 9}))
    planned(["n|a|slots=1|"], fleet)

    again = instance("i2", free={"slots": 9})._replace(tag="wxyz")
    fleet.replace([again, instance("i3", free={"slots": 9})], RESOURCES, now_ms=NOW_MS)

    chosen = planned(["n|a|slots=1|"] * 18, fleet, now_ms=NOW_MS + 1)
    assert sorted(set(chosen)) == ["i2", "i3"]
    assert fleet.instances["i2"].tag == "wxyz"


def test_an_instance_that_is_gone_is_not_chosen_from_a_heap_that_is_not_rebuilt_yet() -> None:
    gone, stays = instance("gone", free={"slots": 9}), instance("stays", free={"slots": 9}, capacity={"slots": 18})
    fleet = fleet_of(gone, stays)
    planned(["n|a|slots=1|"], fleet)

    fleet.replace([stays], RESOURCES, now_ms=NOW_MS)
    fleet.rebuild_at_ms = NOW_MS + 1_000

    assert planned(["n|a|slots=1|"] * 6, fleet) == ["stays"] * 6


def test_many_shapes_do_not_rebuild_their_heaps_all_at_once() -> None:
    fleet = fleet_of(*[instance(f"i{n}", free={"slots": 4}) for n in range(1_000)])
    wanted = [f"n|a|slots={n}|" for n in (1, 2, 3)]
    planned(wanted, fleet)
    fleet.refresh({n: Vector("abcd", "open", 0, (4,)) for n in fleet.instances}, now_ms=NOW_MS)

    planned(wanted, fleet, now_ms=NOW_MS + 100)

    assert [fleet.pool(text).is_stale for text in wanted] == [False, True, True]


def test_heaps_are_rebuilt_though_the_clock_was_set_back() -> None:
    fleet = fleet_of(instance("i", capacity={"slots": 1}, free={"slots": 0}))
    planned(["n|a|slots=1|"], fleet)

    fleet.refresh({"i": Vector("abcd", "open", 0, (1,))}, now_ms=NOW_MS - 600_000)

    assert planned(["n|a|slots=1|"], fleet, now_ms=NOW_MS - 600_000) == ["i"]


def test_of_a_fleet_that_registered_in_the_future_all_are_as_new_and_the_least_loaded_is_chosen() -> None:
    older = instance("older", capacity={"slots": 2}, free={"slots": 1}, registered_ms=int(NOW_MS) + 500_000)
    newer = instance("newer", capacity={"slots": 2}, free={"slots": 2}, registered_ms=int(NOW_MS) + 600_000)

    assert planned(["n|a|slots=1|"], fleet_of(older, newer)) == ["newer"]


def test_a_refresh_that_shows_another_fleet_says_so() -> None:
    fleet = fleet_of(instance("i", free={"slots": 1}))

    same, other_epoch = Vector("abcd", "open", 0, (1,)), Vector("wxyz", "open", 0, (1,))

    assert fleet.refresh({"i": same}, now_ms=NOW_MS)
    assert not fleet.refresh({"i": other_epoch}, now_ms=NOW_MS)
    assert not fleet.refresh({"i": same, "j": same}, now_ms=NOW_MS)
    assert not fleet.refresh({}, now_ms=NOW_MS)


def load_of(view: InstanceView, agent_type: str = "a") -> float:
    fleet = fleet_of(view)
    return fleet.policy(fleet.instances[view.id], agent_type, NOW_MS)


def test_the_load_is_the_designs_formula() -> None:
    half_full = instance(
        "i",
        capacity={"slots": 10, "cpu_milli": 1_000, "memory_mib": 100},
        free={"slots": 5, "cpu_milli": 400, "memory_mib": 90},
        report=Report("0-0", cpu_permille=300, memory_permille=700),
    )

    # Reserved cpu 0.6 is above the reported 0.3; the reported memory 0.7 is above the reserved 0.1.
    assert load_of(half_full) == pytest.approx(0.3 * 0.6 + 0.2 * 0.7 + 0.3 * 0.5 + 0.2 * 0.5)


def test_an_instance_that_runs_more_of_the_same_type_is_busier() -> None:
    mixed = instance(
        "i", capacity={"slots": 10}, free={"slots": 5}, types=("a", "b"), report=Report("0-0", running=(4, 1))
    )

    assert load_of(mixed, "a") == pytest.approx(0.3 * 0.5 * 0.8 + 0.2 * 0.5)
    assert load_of(mixed, "b") == pytest.approx(0.3 * 0.5 * 0.2 + 0.2 * 0.5)


def test_what_fails_fast_does_not_look_idle() -> None:
    assert load_of(instance("i", free={"slots": 4}, report=Report("0-0", errors_permille=500))) == pytest.approx(0.5)


def test_a_new_instance_warms_up() -> None:
    ages = [0, WARM_UP_MS // 2, WARM_UP_MS]

    loads = [load_of(instance("i", free={"slots": 4}, registered_ms=int(NOW_MS) - age)) for age in ages]

    assert loads == sorted(loads, reverse=True)
    assert loads[-1] == 0


def parked(shape: str, *, count: int = 1, key_ms: float = 0, arrived_ms: float = 0) -> ShapeView:
    return ShapeView(shape, count, key_ms, arrived_ms, 1)


def test_instances_with_room_for_what_is_parked_are_settled_the_earliest_first() -> None:
    fleet = fleet_of(
        instance("full", free={"slots": 0}, capacity={"slots": 1}),
        instance("a-open", free={"slots": 1}),
        instance("b-open", free={"slots": 1}, types=("b",)),
    )

    assert to_settle([parked("n|a|slots=1|", key_ms=2), parked("n|b|slots=1|", key_ms=1)], fleet) == [
        ("b-open", "n|b|slots=1|"),
        ("a-open", "n|a|slots=1|"),
    ]
    assert to_settle([parked("n|a|slots=2|")], fleet) == []


def test_an_instance_that_is_held_and_has_room_by_now_is_settled_too() -> None:
    held = instance("i", free={"slots": 2}, headroom=1, state="held")
    waiting = [ShapeView("n|a|slots=2|", 1, 0, NOW_MS, 1), ShapeView("n|a|slots=3|", 1, 0, NOW_MS, 1)]

    assert to_settle(waiting, fleet_of(held)) == [("i", "n|a|slots=2|")]


def test_a_task_that_waits_too_long_gets_the_instance_with_most_room_that_is_large_enough() -> None:
    fleet = fleet_of(
        instance("small", free={"slots": 2}, capacity={"slots": 2}),
        instance("busy", free={"slots": 0}, capacity={"slots": 4}),
        instance("best", free={"slots": 3}, capacity={"slots": 4}),
    )
    # Its slack is longer than that: the wait counts from the arrival.
    big = parked("n|a|slots=4|", key_ms=NOW_MS + 60_000, arrived_ms=NOW_MS - 2_000)

    assert to_hold([big], fleet, now_ms=NOW_MS, hold_after_ms=1_000) == [("n|a|slots=4|", "best")]
    assert to_hold([big], fleet, now_ms=NOW_MS, hold_after_ms=3_000) == []


def test_only_the_oldest_head_of_an_agent_type_gets_a_hold() -> None:
    fleet = fleet_of(instance("i", free={"slots": 1}, capacity={"slots": 4}))
    heads = [parked("n|a|slots=3|", arrived_ms=2), parked("n|a|slots=4|", arrived_ms=1)]

    assert to_hold(heads, fleet, now_ms=NOW_MS, hold_after_ms=1_000) == [("n|a|slots=4|", "i")]
