"""The arithmetic of the benchmarks, and that each peer is complete."""

import json
import re
from pathlib import Path

import pytest

from bench import peers
from bench.pairs import Measured, Row, Sample, as_json, measure


def row_of(ours: list[float], baseline: list[float], calls: list[str]) -> Row:
    def side(name: str, rates: list[float]) -> Sample:
        calls.append(name)
        return Sample(rates.pop(0), {"valkey": 1.0})

    return Row("dispatch", "", "bare loop", lambda: side("ours", ours), lambda: side("baseline", baseline))


def measured(ours: list[float], baseline: list[float]) -> Measured:
    return measure(row_of(ours, baseline, []), len(ours), lambda _: None)


def test_the_ratio_is_the_median_of_the_pairs_not_the_ratio_of_the_medians() -> None:
    found = measured([10, 20, 90], [10, 40, 30])

    assert found.ratios == [1.0, 0.5, 3.0]
    assert found.ratio == 1.0


def test_the_sides_take_turns_in_going_first() -> None:
    calls: list[str] = []

    measure(row_of([1, 1, 1], [1, 1, 1], calls), 3, lambda _: None)

    assert calls == ["baseline", "ours", "ours", "baseline", "baseline", "ours"]


def test_each_pair_is_told_as_it_ends() -> None:
    told: list[str] = []

    measure(row_of([3_000, 1], [1_000, 1], []), 2, told.append)

    assert told == [
        "dispatch 1/2: 3,000 against 1,000 tasks/s, ratio 3.00",
        "dispatch 2/2: 1.00 against 1.00 tasks/s, ratio 1.00",
    ]


def test_the_file_keeps_every_run() -> None:
    found = json.loads(json.dumps(as_json([measured([1, 2], [2, 4])])))

    assert [sample["value"] for sample in found[0]["ours"]] == [1, 2]
    assert [sample["value"] for sample in found[0]["baselines"]] == [2, 4]
    assert found[0]["ratio"] == 0.5


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_has_a_script_and_a_list_that_pins_everything_and_names_no_address(name: str) -> None:
    lines = (Path(peers.__file__).parent / f"{name}.txt").read_text().splitlines()

    wanted = [line for line in lines if not line.startswith("#")]

    assert peers.script(name).is_file()
    assert name in {line.partition("==")[0] for line in wanted}
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in wanted)


@pytest.mark.parametrize(("is_cost", "is_within"), [(False, [True, True, False]), (True, [False, True, True])])
def test_a_smoke_wants_a_rate_above_its_limit_and_a_cost_below(is_cost: bool, is_within: list[bool]) -> None:
    rows = [row_of([ours], [2], [])._replace(is_cost=is_cost, limit=1.0) for ours in (3, 2, 1)]

    assert [measure(row, 1, lambda _: None).is_within_limit for row in rows] == is_within


@pytest.mark.parametrize(("ours", "is_within"), [(400, True), (401, False)])
def test_an_absolute_bound_is_on_ours_whatever_the_ratio(ours: float, is_within: bool) -> None:
    row = row_of([ours], [1], [])._replace(is_cost=True, is_absolute=True, limit=400.0)

    assert measure(row, 1, lambda _: None).is_within_limit == is_within
