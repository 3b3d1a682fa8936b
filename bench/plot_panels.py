"""What the pictures show: from the rows of a run to panels of bars and lines. No I/O, no drawing.

Of a row's details become panels:
    mapping number -> number                a curve
    mapping number -> table, and deeper     a curve for each number in the tables; those of one name share a panel
    list of numbers                         their distribution
    list of [upper bound, how many]         the same; inside of tables only that of the largest number
A key such as "80%" counts as a number. What is left (lone numbers, mappings by name) a table shows better.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec

Details = Mapping[str, Any]
_SIDES = ("ours", "baseline")
# Of a distribution: 50 points for each power of ten of its tail.
_STEP = 10 ** (-1 / 50)


class Run(msgspec.Struct):
    """One run of a side."""

    value: float
    details: dict[str, Any] = {}


class Measurement(msgspec.Struct):
    """One row of the JSON, as `pairs.as_json` writes it."""

    row: str
    what: str
    baseline: str
    unit: str
    is_cost: bool
    must: float
    aim: float
    ratios: list[float]
    ours: list[Run]
    baselines: list[Run]
    is_absolute: bool = False


class Bar(msgspec.Struct, frozen=True):
    """One side: every run."""

    label: str
    values: list[float]


class Line(msgspec.Struct, frozen=True):
    """Points in order of x. low, high: over the runs; the same as ys if there was one."""

    label: str
    side: str
    xs: list[float]
    ys: list[float]
    low: list[float]
    high: list[float]


class Panel(msgspec.Struct, frozen=True):
    """kind: `bars` (bars, bounds), `curve` or `tail` (lines; share above x, both axes logarithmic)."""

    kind: str
    title: str
    unit: str
    bars: list[Bar] = []
    bounds: dict[str, float] = {}
    lines: list[Line] = []
    x_label: str = ""


class Ratio(msgspec.Struct, frozen=True):
    """One row of the picture of all ratios. must, aim: 0: none."""

    label: str
    values: list[float]
    must: float
    aim: float
    is_cost: bool


class Figure(msgspec.Struct, frozen=True):
    """One picture: panels, or ratios."""

    name: str
    title: str
    panels: list[Panel]
    ratios: list[Ratio] = []


def figures(rows: Sequence[Measurement]) -> list[Figure]:
    """Make a figure of each row, and one of all ratios, `ratios`."""
    # Bounds on the value say nothing about the ratio.
    ratios = [
        Ratio(row.row, row.ratios, *((0, 0) if row.is_absolute else (row.must, row.aim)), row.is_cost) for row in rows
    ]
    overview = Figure(
        "ratios",
        "ours / baseline: each run a dot, the line their median; arrows point to where it should be",
        [],
        ratios,
    )
    return [overview, *[Figure(row.row, row.what, [bars(row), *panels(row)]) for row in rows]]


def bars(row: Measurement) -> Panel:
    """Both sides. Bounds on the ratio are drawn as multiples of the baseline's median."""
    base = 1.0 if row.is_absolute else statistics.median([run.value for run in row.baselines])
    least = "at most " if row.is_cost else ""
    bounds = {f"{name} {least}{factor:g}": factor * base for name, factor in _bounds(row).items()}
    sides = [Bar("ours", [run.value for run in row.ours]), Bar("baseline", [run.value for run in row.baselines])]
    title = f"{statistics.median(row.ratios):.2f} x the baseline: {row.baseline}"
    return Panel("bars", title, row.unit, sides, bounds)


def _bounds(row: Measurement) -> dict[str, float]:
    return {name: factor for name, factor in (("must", row.must), ("aim", row.aim)) if factor}


def panels(row: Measurement) -> list[Panel]:
    """Make the panels of a row's details, of both sides together."""
    curves: defaultdict[tuple[str, str], list[Line]] = defaultdict(list)
    tails: defaultdict[tuple[str, str], list[Line]] = defaultdict(list)
    for side, runs in zip(_SIDES, (row.ours, row.baselines), strict=True):
        for name in dict.fromkeys(name for run in runs for name in run.details):
            found = [run.details[name] for run in runs if name in run.details]
            for (panel, label), values in _curves(name, found).items():
                curves[panel, name].append(_curve(label or side, side, values))
            for (panel, label), samples in _samples(name, found).items():
                tails[panel, name].append(_tail(label or side, side, samples))
    return [
        *[Panel("curve", panel, panel, lines=_named(lines), x_label=x) for (panel, x), lines in curves.items()],
        *[
            # A name without a unit, such as `histogram`, has the row's.
            Panel("tail", panel, panel, lines=_named(lines), x_label=panel if "_" in panel else row.unit)
            for (panel, _), lines in tails.items()
        ],
    ]


def _named(lines: list[Line]) -> list[Line]:
    """Put the side into the labels if both sides have some."""
    if len({line.side for line in lines}) == 1:
        return lines
    return [
        line if line.label == line.side else msgspec.structs.replace(line, label=f"{line.side}, {line.label}")
        for line in lines
    ]


Place = tuple[str, str]
"""Title of the panel, label of the line; no label: the side's name."""


def _curves(name: str, runs: Sequence[Any]) -> dict[Place, list[dict[float, float]]]:
    """Find the curves in one detail: per place and run x -> y."""
    found: defaultdict[Place, list[dict[float, float]]] = defaultdict(list)
    for detail in runs:
        by_place: defaultdict[Place, dict[float, float]] = defaultdict(dict)
        for x, below in _numbered(detail):
            for path, leaf in _leaves(below):
                if isinstance(leaf, int | float):
                    # A lone number is the detail itself; in a table the last name says what it is.
                    by_place[path[-1] if path else name, " ".join(path[:-1])][x] = leaf
        for place, points in by_place.items():
            found[place].append(points)
    return {place: curves for place, curves in found.items() if max(map(len, curves)) > 1}


def _samples(name: str, runs: Sequence[Any]) -> dict[Place, list[tuple[float, float]]]:
    """Find the distributions in one detail: per place (value, weight), all runs together."""
    found: defaultdict[Place, list[tuple[float, float]]] = defaultdict(list)
    for detail in runs:
        numbered = _numbered(detail)
        for path, leaf in _leaves(numbered[-1][1] if numbered else detail):
            if isinstance(leaf, list):
                # Under a number are tables, whose last name says what it is; else the names say whose.
                place = (path[-1], " ".join(path[:-1])) if numbered and path else (name, " ".join(path))
                found[place] += _weighted(cast("list[Any]", leaf))
    return {place: samples for place, samples in found.items() if samples}


def _numbered(detail: Any) -> list[tuple[float, Any]]:
    """The pairs of a mapping whose keys are all numbers; of anything else none."""
    if not isinstance(detail, dict):
        return []
    pairs = cast("dict[str, Any]", detail)
    try:
        return sorted(((float(key.rstrip("% ")), below) for key, below in pairs.items()), key=lambda pair: pair[0])
    except ValueError:
        return []


def _leaves(below: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(below, dict):
        for name, deeper in cast("dict[str, Any]", below).items():
            yield from _leaves(deeper, (*path, name))
    elif not isinstance(below, bool):
        yield path, below


def _weighted(leaf: list[Any]) -> list[tuple[float, float]]:
    """Values with how many they stand for; [] if it is something else."""
    pairs: list[tuple[float, float]] = []
    for item in leaf:
        match item:
            case bool():
                return []
            case int() | float():
                pairs.append((item, 1))
            case [int() | float() as bound, int() | float() as weight]:
                pairs.append((bound, weight))
            case _:
                return []
    return pairs


def _curve(label: str, side: str, runs: Sequence[Mapping[float, float]]) -> Line:
    """The median over the runs at each x, and the spread."""
    xs = sorted({x for run in runs for x in run})
    columns = [[run[x] for run in runs if x in run] for x in xs]
    return Line(
        label, side, xs, [statistics.median(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns]
    )


def _tail(label: str, side: str, samples: Sequence[tuple[float, float]]) -> Line:
    """The share of the samples that reach each value, at values that are a few percent of it apart."""
    weights: defaultdict[float, float] = defaultdict(float)
    for value, weight in samples:
        weights[value] += weight
    total = left = sum(weights.values())
    xs: list[float] = []
    shares: list[float] = []
    for value in sorted(weights):
        if left > 0 and (not shares or left / total <= shares[-1] * _STEP):
            xs.append(value)
            shares.append(left / total)
        left -= weights[value]
    return Line(label, side, xs, shares, shares, shares)
