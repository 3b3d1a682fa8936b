"""What a reading of the cell gives to the core: instances, their free vectors, and what is parked."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

State = Literal["open", "cordoned", "held"]
"""Of an instance: whether something may be placed on it; `held` for one shape only."""


class Report(NamedTuple):
    """What a beat tells: the stream id read up to, and what the instance measures, each 0 to 1000.

    running: tasks on the instance per agent type, in the order of the registration's types.
    progress: what handlers last said of themselves, task id -> text.
    """

    cursor: str
    cpu_permille: int = 0
    memory_permille: int = 0
    errors_permille: int = 0
    running: tuple[int, ...] = ()
    progress: Mapping[str, str] = {}


class InstanceView(NamedTuple):
    """One instance as the cell has it. free and capacity: resource name -> units. used = capacity - free.

    state: `open`, `cordoned` or `held`. headroom: slots that only critical tasks may take. reported: its last beat's.
    """

    id: str
    tag: str
    epoch: str
    types: tuple[str, ...]
    capacity: dict[str, int]
    free: dict[str, int]
    labels: dict[str, str]
    profile: dict[str, str]
    state: State
    reason: str
    headroom: int
    reported: Report
    reported_ms: int
    lease_until_ms: int
    registered_ms: int


class Vector(NamedTuple):
    """The part of an instance that changes with every placement: read often, for all instances at once.

    free: units in the order of `Fleet.resources`.
    """

    tag: str
    state: State
    headroom: int
    free: tuple[int, ...]


class ShapeView(NamedTuple):
    """Parked tasks of one shape: how many, key and arrival of the first. instances: how many serve its agent type."""

    shape: str
    parked: int
    head_key_ms: float
    head_arrived_ms: float
    instances: int
