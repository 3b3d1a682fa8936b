"""What the pictures show: which details become curves and distributions, and where the bounds lie."""

from typing import Any

import msgspec
import pytest

from bench.plot_panels import Figure, Line, Measurement, Panel, Run, figures

NONE: list[dict[str, Any]] = [{}, {}, {}]


def measurement(
    *, ours: list[dict[str, Any]] | None = None, baselines: list[dict[str, Any]] | None = None, is_cost: bool = False
) -> Measurement:
    return Measurement(
        "pull", "a finish that pulls", "one that does not", "us", is_cost, 2.0, 1.5, [2.0, 3.0, 2.5],
        [Run(value, details) for value, details in zip((20.0, 30.0, 25.0), ours or NONE, strict=True)],
        [Run(value, details) for value, details in zip((9.0, 11.0, 10.0), baselines or NONE, strict=True)],
    )  # fmt: skip


def figure_of(row: Measurement) -> Figure:
    return figures([row])[1]


def only(row: Measurement) -> tuple[Panel, dict[str, Line]]:
    """The one panel beside the bars, its lines by their labels."""
    _, panel = figure_of(row).panels
    return panel, {line.label: line for line in panel.lines}


def test_the_bounds_are_multiples_of_the_median_baseline_and_of_a_cost_upper_ones() -> None:
    rate, cost = (figure_of(measurement(is_cost=is_cost)).panels[0] for is_cost in (False, True))

    assert rate.bounds == {"must 2": 20.0, "aim 1.5": 15.0}
    assert cost.bounds == {"must at most 2": 20.0, "aim at most 1.5": 15.0}


def test_absolute_bounds_are_drawn_as_they_are_and_not_beside_the_ratios() -> None:
    overview, figure = figures([msgspec.structs.replace(measurement(is_cost=True), is_absolute=True)])

    assert figure.panels[0].bounds == {"must at most 2": 2.0, "aim at most 1.5": 1.5}
    assert (overview.ratios[0].must, overview.ratios[0].aim) == (0, 0)


def test_a_mapping_of_numbers_is_a_curve_of_medians_with_their_spread_in_order_of_x() -> None:
    runs = [{"us_by_parked": {"1000": low + 10, "100": low}} for low in (1.0, 3.0, 2.0)]

    panel, lines = only(measurement(ours=runs))

    assert (panel.kind, panel.title, panel.x_label) == ("curve", "us_by_parked", "us_by_parked")
    assert lines == {"ours": Line("ours", "ours", [100, 1000], [2, 12], [1, 11], [3, 13])}


def test_the_sides_share_a_panel() -> None:
    runs = [{"us_by_parked": {"1": 1.0, "2": 2.0}}] * 3

    _, lines = only(measurement(ours=runs, baselines=runs))

    assert list(lines) == ["ours", "baseline"]


def test_tables_under_numbers_give_a_panel_for_each_name_and_a_line_for_each_owner() -> None:
    table = {name: {"critical": {"p99_ms": x}, "low": {"p99_ms": 2 * x}} for name, x in (("20%", 1.0), ("80%", 4.0))}

    panel, lines = only(measurement(ours=[{"loads": table}] * 3))

    assert (panel.title, panel.x_label) == ("p99_ms", "loads")
    assert {name: (line.xs, line.ys) for name, line in lines.items()} == {
        "critical": ([20, 80], [1, 4]),
        "low": ([20, 80], [2, 8]),
    }


@pytest.mark.parametrize("samples", [[1.0, 1.0, 2.0, 4.0], [[1.0, 2], [2.0, 1], [4.0, 1]]])
def test_values_and_buckets_give_the_share_that_reaches_each_over_all_runs(samples: list[Any]) -> None:
    panel, lines = only(measurement(ours=[{"histogram": samples}, {}, {"histogram": [8.0] * 4}]))

    assert (panel.kind, panel.x_label) == ("tail", "us")
    assert lines["ours"].xs == [1, 2, 4, 8]
    assert lines["ours"].ys == [1, 6 / 8, 5 / 8, 4 / 8]


def test_of_distributions_under_numbers_only_that_of_the_largest_is_drawn() -> None:
    table = {"80%": {"low": {"waits_ms": [5.0, 6.0]}}, "9%": {"low": {"waits_ms": [1.0]}}}

    panel, lines = only(measurement(ours=[{"loads": table}] * 3))

    assert (panel.title, lines["low"].xs) == ("waits_ms", [5, 6])


def test_lone_numbers_words_and_mappings_by_name_are_left_to_the_table() -> None:
    details = {"p50_ms": 1.0, "slots": 3, "is_warm": True, "why": "noise", "stalls_ms": {"worker": 3.0}, "none": None}

    assert len(figure_of(measurement(ours=[details] * 3)).panels) == 1


def test_the_first_figure_has_the_ratios_of_all_rows() -> None:
    overview = figures([measurement(), measurement(is_cost=True)])[0]

    assert [(ratio.label, ratio.values, ratio.is_cost) for ratio in overview.ratios] == [
        ("pull", [2.0, 3.0, 2.5], False),
        ("pull", [2.0, 3.0, 2.5], True),
    ]


def test_the_file_of_a_run_can_be_read() -> None:
    text = b"""[{"row": "a", "what": "", "baseline": "", "unit": "ms", "is_cost": true, "must": 0, "aim": 0, "ratio": 1,
        "ratios": [1], "ours": [{"value": 1, "cpu_us": {}, "details": {"x": [1]}}], "baselines": [{"value": 1}]}]"""

    read = msgspec.json.decode(text, type=list[Measurement])

    assert read[0].ours == [Run(1.0, {"x": [1]})]
