"""The core against an oracle that shares no code with it: plain dicts, the design's rules, every instance looked at."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskyard.dispatcher.core.fleet import Fleet
from taskyard.dispatcher.core.load import LeastAgentLoad
from taskyard.dispatcher.core.matching import to_hold, to_settle
from taskyard.dispatcher.core.order import order_key_ms
from taskyard.dispatcher.core.plan import plan
from taskyard.dispatcher.core.receipt import Receipt, decode_receipt, encode_receipt
from taskyard.dispatcher.core.snapshot import InstanceView, Report, ShapeView
from taskyard.schemas.priority import PRIORITIES, SLACK_MS
from taskyard.schemas.task import AgentType, Task

NOW_MS = 1_000_000.0
RESOURCES = ("slots", "cpu_milli", "memory_mib", "gpu")
HOLD_AFTER_MS = 30_000

units = st.integers(0, 4)
permille = st.integers(0, 1000)


@st.composite
def machines(draw: st.DrawFn) -> InstanceView:
    slots = draw(st.integers(1, 4))
    capacity = {"slots": slots, **draw(st.dictionaries(st.sampled_from(RESOURCES[1:]), st.integers(1, 4)))}
    types = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True).map(tuple))
    return InstanceView(
        id="",
        tag="abcd",
        epoch="abcdefgh",
        types=types,
        capacity=capacity,
        free={name: draw(st.integers(0, most)) for name, most in capacity.items()},
        labels=draw(st.dictionaries(st.just("zone"), st.sampled_from("12"))),
        profile={},
        state=draw(st.sampled_from(["open", "open", "open", "cordoned", "held"])),
        reason="",
        headroom=draw(st.integers(0, slots - 1)),
        reported=Report("0-0", draw(permille), draw(permille), draw(st.sampled_from([0, 300]))),
        reported_ms=0,
        lease_until_ms=0,
        registered_ms=int(NOW_MS) - draw(st.sampled_from([0, 4_000, 60_000])),
    )


fleets = st.lists(machines(), min_size=1, max_size=7).map(
    lambda found: [m._replace(id=f"i{n}") for n, m in enumerate(found)]
)
wants = st.fixed_dictionaries(
    {
        "lane": st.sampled_from("cn"),
        "type": st.sampled_from("abc"),
        "needs": st.dictionaries(st.sampled_from(RESOURCES[1:]), units, max_size=2),
        "slots": st.integers(1, 2),
        "zone": st.sampled_from(["", "", "1", "2"]),
    }
)


def text_of(want: dict[str, Any]) -> str:
    needs = {**want["needs"], "slots": want["slots"]}
    wanted = ",".join(f"{name}={needs[name]}" for name in sorted(needs))
    return f"{want['lane']}|{want['type']}|{wanted}|" + (f"zone={want['zone']}" if want["zone"] else "")


def can_take(view: InstanceView, free: dict[str, int], want: dict[str, Any]) -> bool:
    kept = view.headroom if want["lane"] == "n" else 0
    return (
        view.state == "open"
        and want["type"] in view.types
        and (not want["zone"] or view.labels.get("zone") == want["zone"])
        and free["slots"] - want["slots"] >= kept
        and all(free.get(name, 0) >= need for name, need in want["needs"].items())
    )


def load_of(view: InstanceView, free: dict[str, int]) -> float:
    """0.3 cpu + 0.2 memory + 0.3 same-type share + 0.2 queue, the errors, and 0.2 that fades in the first 10 s."""

    def used(name: str, reported_permille: int) -> float:
        reserved = 1 - free[name] / view.capacity[name] if name in view.capacity else 0.0
        return max(reserved, reported_permille / 1000)

    queue = 1 - free["slots"] / view.capacity["slots"]
    age_ms = NOW_MS - view.registered_ms
    return (
        0.3 * used("cpu_milli", view.reported.cpu_permille)
        + 0.2 * used("memory_mib", view.reported.memory_permille)
        + 0.3 * queue / len(view.types)
        + 0.2 * queue
        + view.reported.errors_permille / 1000
        + 0.2 * max(0.0, 1 - age_ms / 10_000)
    )


def fleet_of(views: list[InstanceView]) -> Fleet:
    fleet = Fleet(LeastAgentLoad())
    fleet.replace(views, RESOURCES, now_ms=NOW_MS)
    return fleet


@given(views=fleets, wanted=st.lists(wants, max_size=12), seed=st.integers(0, 2**32 - 1))
def test_each_task_of_a_batch_goes_to_the_least_loaded_instance_that_can_take_it(
    views: list[InstanceView], wanted: list[dict[str, Any]], seed: int
) -> None:
    decisions = plan([text_of(w) for w in wanted], fleet_of(views), now_ms=NOW_MS, tie=random.Random(seed).random)

    free = {view.id: dict(view.free) for view in views}
    for want, decision in zip(wanted, decisions, strict=True):
        loads = {view.id: load_of(view, free[view.id]) for view in views if can_take(view, free[view.id], want)}
        chosen = [candidate.id for candidate in decision.candidates]
        assert bool(chosen) == bool(loads), (want, decision)
        if not chosen:
            assert decision.reason
            continue
        assert loads[chosen[0]] == pytest.approx(min(loads.values()))
        assert decision.load == pytest.approx(loads[chosen[0]])
        assert len(set(chosen)) == len(chosen) <= 3
        for name, need in {**want["needs"], "slots": want["slots"]}.items():
            if need:
                free[chosen[0]][name] -= need


@given(views=fleets, wanted=st.lists(wants, min_size=1, max_size=8), seed=st.integers(0, 2**32 - 1))
def test_a_receipt_replays_to_the_same_choice(
    views: list[InstanceView], wanted: list[dict[str, Any]], seed: int
) -> None:
    shapes = [text_of(w) for w in wanted]
    first = plan(shapes, fleet_of(views), now_ms=NOW_MS, tie=random.Random(seed).random)
    receipts = [
        encode_receipt(Receipt("p", chosen=d.candidates[0].id if d.candidates else "", seed=seed, index=i))
        for i, d in enumerate(first)
    ]

    for receipt in map(decode_receipt, receipts):
        assert receipt is not None
        again = plan(shapes, fleet_of(views), now_ms=NOW_MS, tie=random.Random(receipt.seed).random)[receipt.index]
        assert (again.candidates[0].id if again.candidates else "") == receipt.chosen


@given(views=fleets, parked=st.lists(wants, max_size=5))
def test_no_shape_stays_parked_beside_an_instance_that_could_take_its_first_task(
    views: list[InstanceView], parked: list[dict[str, Any]]
) -> None:
    waiting = [ShapeView(text_of(want), 1, n, NOW_MS, 1) for n, want in enumerate(parked)]

    pairs = to_settle(waiting, fleet_of(views))

    by_name = {view.id: view for view in views}
    for want in parked:
        able = {view.id for view in views if can_take(view, view.free, want)}
        # Held for whom is not told; whoever it is held for gets the headroom too.
        as_if_open = [view._replace(state="open", headroom=0) for view in views if view.state == "held"]
        held = {view.id for view in as_if_open if can_take(view, view.free, want)}
        told = {instance for instance, shape in pairs if shape == text_of(want)}
        assert told <= able | held
        assert held <= told or told & able
        assert bool(told) == bool(able | held)
    assert all(name in by_name for name, _ in pairs)


@given(
    views=fleets,
    parked=st.lists(st.tuples(wants, st.integers(0, 60_000)), max_size=5, unique_by=lambda row: text_of(row[0])),
)
def test_a_hold_is_for_the_longest_waiting_head_of_a_type_and_on_an_instance_that_can_run_it_when_empty(
    views: list[InstanceView], parked: list[tuple[dict[str, Any], int]]
) -> None:
    waiting = [ShapeView(text_of(want), 1, 0, NOW_MS - waited_ms, 1) for want, waited_ms in parked]

    pairs = to_hold(waiting, fleet_of(views), now_ms=NOW_MS, hold_after_ms=HOLD_AFTER_MS)

    by_name = {view.id: view for view in views}
    for agent_type in "abc":
        own = [(waited_ms, want) for want, waited_ms in parked if want["type"] == agent_type]
        held = [(shape, name) for shape, name in pairs if shape.split("|")[1] == agent_type]
        longest_ms = max((waited_ms for waited_ms, _ in own), default=0)
        assert len(held) <= 1
        assert not held or longest_ms > HOLD_AFTER_MS
        for shape, name in held:
            want = next(want for waited_ms, want in own if text_of(want) == shape and waited_ms == longest_ms)
            view = by_name[name]
            empty = view._replace(free=view.capacity, headroom=0)
            assert can_take(empty, dict(empty.capacity), want)


@given(
    tasks=st.lists(
        st.tuples(st.sampled_from(PRIORITIES), st.integers(0, 10**6), st.sampled_from([0, 0, 500_000])),
        min_size=2,
        max_size=10,
    )
)
def test_a_task_is_passed_only_by_tasks_with_an_earlier_key_and_so_for_a_bounded_time(
    tasks: list[tuple[str, int, int]],
) -> None:
    keys = [
        order_key_ms(
            Task(type=AgentType("a"), priority=priority, deadline_ms=deadline_ms),
            arrived_ms=arrived_ms,
            slack_ms=SLACK_MS,
        )
        for priority, arrived_ms, deadline_ms in tasks
    ]

    for (priority, arrived_ms, deadline_ms), key_ms in zip(tasks, keys, strict=True):
        assert key_ms <= arrived_ms + SLACK_MS[priority]
        assert not deadline_ms or key_ms <= deadline_ms
        # Whatever comes after its slack without an earlier deadline is behind it, critical or not.
        for (_, later_ms, other_deadline_ms), other_ms in zip(tasks, keys, strict=True):
            if later_ms > arrived_ms + SLACK_MS[priority] and not other_deadline_ms:
                assert other_ms > key_ms
