"""Pairs: our side and its baseline in turn, and what they say together."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Sample(NamedTuple):
    """One run. value: what its row measures, in the row's unit. cpu_us: who -> microseconds of processor time a task.

    details: what else was seen, name -> value, for the JSON and the plots (units in the names).
    """

    value: float
    cpu_us: Mapping[str, float] = MappingProxyType({})
    details: Mapping[str, object] = MappingProxyType({})


class Row(NamedTuple):
    """One comparison. must, aim: the design's bounds on the ratio ours / baseline; 0: it names none.

    unit: of both sides' values. is_cost: less is better, and the bounds are the most that the ratio may be.
    limit: a smoke fails below this ratio, or above it if it is a cost.
    is_absolute: must, aim and limit are bounds on ours itself, in the unit, and not on the ratio.
    """

    name: str
    what: str
    baseline_name: str
    ours: Callable[[], Sample]
    baseline: Callable[[], Sample]
    must: float = 0.0
    aim: float = 0.0
    limit: float = 0.3
    unit: str = "tasks/s"
    is_cost: bool = False
    is_absolute: bool = False


class Measured(NamedTuple):
    """A row with its runs; ours[i] and baseline[i] ran one after the other."""

    row: Row
    ours: Sequence[Sample]
    baseline: Sequence[Sample]

    @property
    def ratios(self) -> list[float]:
        """Ours over the baseline, for each pair."""
        return [ours.value / base.value for ours, base in zip(self.ours, self.baseline, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(self.ratios)

    @property
    def bounded(self) -> float:
        """What the row's bounds are bounds on: the ratio, or the median of ours."""
        return statistics.median([sample.value for sample in self.ours]) if self.row.is_absolute else self.ratio

    @property
    def is_within_limit(self) -> bool:
        """Whether a smoke may pass."""
        return self.bounded <= self.row.limit if self.row.is_cost else self.bounded >= self.row.limit


def measure(row: Row, pairs: int, on_progress: Callable[[str], None]) -> Measured:
    """Run so many pairs. Who goes first changes with each: what the machine does meanwhile then hits both."""
    ours: list[Sample] = []
    baseline: list[Sample] = []
    for number in range(pairs):
        turns = [(row.baseline, baseline), (row.ours, ours)]
        for side, samples in turns if number % 2 == 0 else reversed(turns):
            samples.append(side())
        on_progress(
            f"{row.name} {number + 1}/{pairs}: {figure(ours[-1].value)} against {figure(baseline[-1].value)} "
            f"{row.unit}, ratio {ours[-1].value / baseline[-1].value:.2f}"
        )
    return Measured(row, ours, baseline)


def show(found: Sequence[Measured], console: Console) -> None:
    """Print medians, lowest to highest, and where the processor time went."""
    table = Table(title="medians (lowest to highest); CPU: median microseconds a task")
    for heading in ("row", "ours", "baseline", "ratio", "must / aim", "CPU ours", "CPU baseline"):
        table.add_column(heading, overflow="fold")
    for measured in found:
        row = measured.row
        table.add_row(
            f"{row.name}\n{row.what}\nbaseline: {row.baseline_name}\nin {row.unit}",
            _spread([sample.value for sample in measured.ours]),
            _spread([sample.value for sample in measured.baseline]),
            _spread(measured.ratios),
            _bounds(row),
            _cpu(measured.ours),
            _cpu(measured.baseline),
            end_section=True,
        )
    console.print(table)


def as_json(found: Sequence[Measured]) -> list[dict[str, object]]:
    """The same with every run, for a file."""
    return [
        {
            "row": measured.row.name,
            "what": measured.row.what,
            "baseline": measured.row.baseline_name,
            "unit": measured.row.unit,
            "is_cost": measured.row.is_cost,
            "is_absolute": measured.row.is_absolute,
            "must": measured.row.must,
            "aim": measured.row.aim,
            "ratio": measured.ratio,
            "ratios": measured.ratios,
            "ours": [_plain(sample) for sample in measured.ours],
            "baselines": [_plain(sample) for sample in measured.baseline],
        }
        for measured in found
    ]


def _plain(sample: Sample) -> dict[str, object]:
    return {"value": sample.value, "cpu_us": dict(sample.cpu_us), "details": dict(sample.details)}


def figure(value: float) -> str:
    """Write a value with the digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _bounds(row: Row) -> str:
    if not row.must:
        return ""
    unit = f" {row.unit}" if row.is_absolute else ""
    return f"{'at most ' if row.is_cost else ''}{row.must:g} / {row.aim:g}{unit}"


def _spread(values: Sequence[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{figure(middle)}\n({figure(low)} to {figure(high)})"


def _cpu(samples: Sequence[Sample]) -> str:
    names = samples[0].cpu_us
    return "\n".join(f"{name} {statistics.median([sample.cpu_us[name] for sample in samples]):.1f}" for name in names)
