"""Pairs: our side and its baseline in turn, and what they say together."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Sample(NamedTuple):
    """One timed run. per_s: tasks a second. cpu_us: who -> microseconds of processor time a task."""

    per_s: float
    cpu_us: Mapping[str, float]


class Row(NamedTuple):
    """One comparison. must, aim: the design's bounds on the ratio ours / baseline; 0: it names none.

    floor: below this ratio a smoke fails.
    """

    name: str
    what: str
    baseline_name: str
    ours: Callable[[], Sample]
    baseline: Callable[[], Sample]
    must: float = 0.0
    aim: float = 0.0
    floor: float = 0.3


class Measured(NamedTuple):
    """A row with its runs; ours[i] and baseline[i] ran one after the other."""

    row: Row
    ours: Sequence[Sample]
    baseline: Sequence[Sample]

    @property
    def ratios(self) -> list[float]:
        """Ours over the baseline, for each pair."""
        return [ours.per_s / base.per_s for ours, base in zip(self.ours, self.baseline, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(self.ratios)


def measure(row: Row, pairs: int, on_progress: Callable[[str], None]) -> Measured:
    """Run so many pairs. Who goes first changes with each: what the machine does meanwhile then hits both."""
    ours: list[Sample] = []
    baseline: list[Sample] = []
    for number in range(pairs):
        turns = [(row.baseline, baseline), (row.ours, ours)]
        for side, samples in turns if number % 2 == 0 else reversed(turns):
            samples.append(side())
        on_progress(
            f"{row.name} {number + 1}/{pairs}: {ours[-1].per_s:,.0f}/s against {baseline[-1].per_s:,.0f}/s, "
            f"ratio {ours[-1].per_s / baseline[-1].per_s:.2f}"
        )
    return Measured(row, ours, baseline)


def show(found: Sequence[Measured], console: Console) -> None:
    """Print medians, lowest to highest, and where the processor time went."""
    table = Table(title="medians (lowest to highest); CPU: median microseconds a task")
    for heading in ("row", "ours /s", "baseline /s", "ratio", "must / aim", "CPU ours", "CPU baseline"):
        table.add_column(heading, overflow="fold")
    for measured in found:
        row = measured.row
        bounds = f"{row.must:g} / {row.aim:g}" if row.must else ""
        table.add_row(
            f"{row.name}\n{row.what}\nbaseline: {row.baseline_name}",
            _spread([sample.per_s for sample in measured.ours], ",.0f"),
            _spread([sample.per_s for sample in measured.baseline], ",.0f"),
            _spread(measured.ratios, ".2f"),
            bounds,
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
            "must": measured.row.must,
            "aim": measured.row.aim,
            "ratio": measured.ratio,
            "ratios": measured.ratios,
            "ours": [sample._asdict() for sample in measured.ours],
            "baselines": [sample._asdict() for sample in measured.baseline],
        }
        for measured in found
    ]


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}}\n({low:{form}} to {high:{form}})"


def _cpu(samples: Sequence[Sample]) -> str:
    names = samples[0].cpu_us
    return "\n".join(f"{name} {statistics.median([sample.cpu_us[name] for sample in samples]):.1f}" for name in names)
