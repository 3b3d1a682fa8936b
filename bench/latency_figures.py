"""The arithmetic of the latency rows: when tasks are due, and what their latencies come to. No I/O."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_NS_PER_MS = 1e6
_NS_PER_S = 1e9
# A rank that fewer samples than this would reach is the maximum under another name.
_ENOUGH_FOR_P999 = 1_000
# Buckets of the histogram: four to a doubling, so that a plot with a logarithmic axis has even steps.
_FIRST_BUCKET_MS = 0.1
_BUCKETS_PER_DOUBLING = 4
# What is left out at each end when a rate is measured: the start, and the last tasks, when slots stay empty.
_MIDDLE = (0.2, 0.8)


class Spread(NamedTuple):
    """What many latencies come to. p999_ms: None with fewer than a thousand of them.

    histogram: (upper bound in ms, how many in the bucket), from the first bucket that has any to the last.
    """

    samples: int
    p50_ms: float
    p99_ms: float
    p999_ms: float | None
    max_ms: float
    histogram: list[tuple[float, int]]


def spread(latencies_ns: Iterable[int]) -> Spread:
    """Summarise latencies. Raises ValueError if there are none."""
    ordered = sorted(latencies_ns)
    if not ordered:
        raise ValueError("no latency was measured")
    ms = [value / _NS_PER_MS for value in ordered]
    p999_ms = nearest_rank(ms, 999) if len(ms) >= _ENOUGH_FOR_P999 else None
    return Spread(len(ms), nearest_rank(ms, 500), nearest_rank(ms, 990), p999_ms, ms[-1], _histogram(ms))


def nearest_rank(ordered: Sequence[float], permille: int) -> float:
    """Return the smallest value that so many of a thousand do not exceed. ordered: ascending, not empty."""
    return ordered[max(0, -(-len(ordered) * permille // 1000) - 1)]


def _histogram(values_ms: Sequence[float]) -> list[tuple[float, int]]:
    counts: dict[int, int] = {}
    for value_ms in values_ms:
        doublings = math.log2(max(value_ms, _FIRST_BUCKET_MS) / _FIRST_BUCKET_MS)
        bucket = math.ceil(_BUCKETS_PER_DOUBLING * doublings)
        counts[bucket] = counts.get(bucket, 0) + 1
    buckets = range(min(counts), max(counts) + 1)
    return [(_FIRST_BUCKET_MS * 2 ** (b / _BUCKETS_PER_DOUBLING), counts.get(b, 0)) for b in buckets]


def count_of(per_s: float, seconds: float) -> int:
    """How many tasks a stream has in so much time."""
    return max(1, round(per_s * seconds))


def schedule(rates: Mapping[str, float], seconds: float, every_ms: int = 0) -> list[tuple[int, str]]:
    """Say when each task is due, in ns from the start, and of which stream it is: each at a steady pace.

    rates: name -> tasks a second. The streams begin apart, so that they do not send at the same moments.
    every_ms: if not 0, those of so much time are due together at its end.
    """
    due: list[tuple[int, str]] = []
    for place, (name, per_s) in enumerate(rates.items()):
        phase = place / len(rates)
        due += [(round((k + phase) * _NS_PER_S / per_s), name) for k in range(count_of(per_s, seconds))]
    step_ns = int(every_ms * _NS_PER_MS)
    return sorted((-(-due_ns // step_ns) * step_ns if step_ns else due_ns, name) for due_ns, name in due)


def middle_rate(started_ns: Iterable[int]) -> float:
    """Return starts a second, while all slots were in use: between a fifth and four fifths of them."""
    ordered = sorted(started_ns)
    first, last = (int(len(ordered) * share) for share in _MIDDLE)
    if last <= first or ordered[last] == ordered[first]:
        raise ValueError(f"{len(ordered)} starts are too few to measure a rate")
    return (last - first) / ((ordered[last] - ordered[first]) / _NS_PER_S)
