"""Distributions, by hand: the middle, the tail and the spread of a list of numbers."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """A distribution in the unit of its values, and how many there were; all zero if there were none."""

    size: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


def spread(values: Iterable[float]) -> Spread:
    """Describe values. Cost: a sort."""
    found = sorted(values)
    if not found:
        return Spread(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    mean = math.fsum(found) / len(found)
    return Spread(len(found), mean, percentile(found, 0.5), percentile(found, 0.95), percentile(found, 0.99), found[-1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """Take the value that `share` of the ordered values do not exceed (nearest rank); 0 if there are none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def variation(values: Sequence[float]) -> float:
    """The coefficient of variation: standard deviation by mean; 0 if there is no mean."""
    if not values:
        return 0.0
    mean = math.fsum(values) / len(values)
    if not mean:
        return 0.0
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)) / mean
