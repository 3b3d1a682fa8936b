"""Shapes: the class of tasks that the same instances can run.

Text form, as the function library reads it: `lane|type|name=units,…|label=value,…`, names sorted, slots always there.
Lane `c` (critical) may use headroom, `n` may not. Tenant and session are no part of it, and requirements are rounded
up to classes: a fleet has dozens of shapes, not thousands.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from taskyard.schemas.task import Task

_STEPS_PER_OCTAVE = 8
_DECIMAL_DIGITS = 2
# A vector counts in 32 bits.
_MAX_UNITS = 2**31 - 1


class Shape(NamedTuple):
    """A parsed shape. needs: resource name -> units."""

    text: str
    is_critical: bool
    type: str
    needs: dict[str, int]
    labels: dict[str, str]


def shape_text(task: Task) -> str:
    """Name the shape of a task whose fields are of the wire's form (`schemas.limits`)."""
    lane = "c" if task.priority == "critical" else "n"
    if not task.requirements and not task.constraints:
        return f"{lane}|{task.type}|slots=1|"
    needs, labels = tuple(task.requirements.items()), tuple(task.constraints.items())
    return f"{lane}|{task.type}|{_needs_text(needs)}|{_labels_text(labels)}"


# What tasks ask for comes again and again, and to round and sort it takes microseconds. Entries have up to 8 KB.
@lru_cache(maxsize=1024)
def _needs_text(requirements: tuple[tuple[str, int], ...]) -> str:
    needs = {"slots": 1, **dict(requirements)}
    return ",".join(f"{name}={_rounded(name, needs[name])}" for name in sorted(needs))


@lru_cache(maxsize=1024)
def _labels_text(constraints: tuple[tuple[str, str], ...]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(constraints))


def parse_shape(text: str) -> Shape:
    """Parse a shape's text. Raises ValueError if it is none."""
    lane, agent_type, needs, labels = text.split("|")
    return Shape(
        text,
        lane == "c",
        agent_type,
        {name: int(units) for name, units in _pairs(needs).items()},
        _pairs(labels),
    )


def class_units(units: int) -> int:
    """Round up to the next class: a number of two decimal digits or of eight steps in an octave, whichever is nearer.

    Both, because what people write is one or the other (1500, 96000; 2048, 393216), and those must stay as they are: a
    task that wants a whole machine would fit none if its need grew. At most 1/8 more than wanted.
    """
    decimal = 10 ** max(0, len(str(units)) - _DECIMAL_DIGITS)
    binary = max(1, (1 << units.bit_length() - 1) // _STEPS_PER_OCTAVE) if units else 1
    return min(-(-units // decimal) * decimal, -(-units // binary) * binary, max(units, _MAX_UNITS))


def _rounded(name: str, units: int) -> int:
    return units if name == "slots" else class_units(units)


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split(",") if pair)


Offer = tuple[tuple[str, ...], Mapping[str, int], Mapping[str, str]]
"""What an instance offers: agent types, capacity, labels."""


def why_none(shape: Shape, offers: Sequence[Offer]) -> str:
    """Say why none of these instances takes a task of this shape now."""
    serving = [offer for offer in offers if shape.type in offer[0]]
    if not serving:
        return f"no instance serves the agent type {shape.type}"
    labelled = [offer for offer in serving if all(offer[2].get(n) == v for n, v in shape.labels.items())]
    if not labelled:
        return "no instance of the type has the labels " + ",".join(f"{n}={v}" for n, v in shape.labels.items())
    if not any(all(offer[1].get(n, 0) >= units for n, units in shape.needs.items()) for offer in labelled):
        return "no instance of the type is that large: " + ",".join(f"{n}={u}" for n, u in shape.needs.items())
    return "all instances that could run it are full or closed"
