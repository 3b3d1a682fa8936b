"""Is memory flat? The slope of its floor over the second half of a run, and whether that is more than noise.

The first half is warm-up: pools and caches fill, arenas are taken once. The rest is parted into ten blocks, and of each
only the lowest sample counts: garbage that waits, tables that are copied and buffers come and go on top of what a
process needs, and a leak raises what it needs. Through the ten floors goes a straight line. Its growth counts only if
it is beyond the line's own uncertainty, one-sided at 95 %, so that one late step is not taken for a slope.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

SPAN_S = 600.0
"""What growth is told for."""

_BLOCKS = 10
# Student's t, one-sided 95 %, with the eight degrees of freedom that a line leaves to ten points.
_T = 1.860
_SHARE = 0.02
# A small process may grow by a few pages more: at 1,000 tasks a second this is still less than a byte for each.
_FREE_BYTES = 512 << 10


class Flatness(NamedTuple):
    """What was found. Growth and allowance in bytes in ten minutes. uncertain: what growth has to exceed besides."""

    level_bytes: float
    growth_bytes: float
    uncertain_bytes: float
    allowed_bytes: float

    @property
    def is_flat(self) -> bool:
        """Whether what is surely growth is no more than allowed: 2 %, or half a MiB if that is more."""
        return self.growth_bytes - self.uncertain_bytes <= self.allowed_bytes


def flatness(samples: Sequence[tuple[float, float]]) -> Flatness:
    """Judge samples (seconds, bytes), in order. Raises ValueError if the second half has fewer than ten."""
    middle_s = (samples[0][0] + samples[-1][0]) / 2 if samples else 0.0
    late = [sample for sample in samples if sample[0] >= middle_s]
    if len(late) < _BLOCKS:
        raise ValueError(f"{len(late)} samples in the second half; judging needs {_BLOCKS} at least: a longer run")
    floors = [
        min(late[len(late) * block // _BLOCKS : len(late) * (block + 1) // _BLOCKS], key=lambda sample: sample[1])
        for block in range(_BLOCKS)
    ]
    slope, error = _line(floors)
    level = statistics.median([size for _, size in floors])
    return Flatness(level, SPAN_S * slope, SPAN_S * _T * error, max(_SHARE * level, _FREE_BYTES))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The slope of the line with the least squares, and its standard error."""
    slope, intercept = statistics.linear_regression([x for x, _ in points], [y for _, y in points])
    mean_x = statistics.fmean([x for x, _ in points])
    residual = math.fsum((y - slope * x - intercept) ** 2 for x, y in points)
    spread = math.fsum((x - mean_x) ** 2 for x, _ in points)
    return slope, math.sqrt(residual / (len(points) - 2) / spread)
