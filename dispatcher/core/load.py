"""Load policies: how busy an instance is for a task of an agent type. 0 is idle; the plan takes the smallest."""

from collections.abc import Sequence
from typing import Protocol


class Loaded(Protocol):
    """What a policy may look at. cpu, memory, errors: reported, 0 to 1.

    shares: each of its agent types -> the share of its tasks among all here; they add up to 1.
    """

    capacity: list[int]
    free: list[int]
    cpu: float
    memory: float
    errors: float
    shares: dict[str, float]
    registered_ms: int


class LoadPolicy(Protocol):
    """A pure function of the instance, with a name for the receipt."""

    name: str

    def bind(self, resources: Sequence[str]) -> None:
        """Learn the order of the resources in capacity and free. Called whenever it changes."""
        ...

    def __call__(self, instance: Loaded, agent_type: str, now_ms: float) -> float:
        """Return the load of the instance for a task of this type."""
        ...


WARM_UP_MS = 10_000
"""For how long a new instance counts as busier than it is, so that it is not flooded before its caches are warm."""

_WARM_UP_LOAD = 0.2


class LeastAgentLoad:
    """`0.3 cpu + 0.2 memory + 0.3 same-type share + 0.2 queue` (the project's founding document; design, section 5).

    cpu, memory: the larger of reported and reserved (cpu_milli, memory_mib, if the instance declares them).
    same-type share: the slots that tasks of this agent type take, of all slots. With several types on an instance the
    taken slots are divided as the instance last reported, evenly if it has not. queue: slots reserved, of all slots:
    what is on a queue holds capacity, so the slots are the queue's bound.
    On top: the share of failed attempts, because what fails fast looks idle; and a warm-up that fades.
    """

    name = "least-agent-load"

    def __init__(self) -> None:
        self._cpu = self._memory = 0

    def bind(self, resources: Sequence[str]) -> None:
        """Find cpu_milli and memory_mib among the resources; 0 stands for absent, since slots come first."""
        at = {name: index for index, name in enumerate(resources)}
        self._cpu, self._memory = at.get("cpu_milli", 0), at.get("memory_mib", 0)

    def __call__(self, instance: Loaded, agent_type: str, now_ms: float) -> float:
        """Return the load; 0 idle, 1 full, more while it fails or warms up."""
        capacity, free = instance.capacity, instance.free
        queue = 1 - free[0] / capacity[0]
        cpu, memory = instance.cpu, instance.memory
        index = self._cpu
        if index and capacity[index]:
            reserved = 1 - free[index] / capacity[index]
            cpu = reserved if reserved > cpu else cpu  # noqa: FURB136 - to call max takes three times as long
        index = self._memory
        if index and capacity[index]:
            reserved = 1 - free[index] / capacity[index]
            memory = reserved if reserved > memory else memory  # noqa: FURB136
        same_type = queue * instance.shares[agent_type]
        load = 0.3 * cpu + 0.2 * memory + 0.3 * same_type + 0.2 * queue + instance.errors
        age_ms = now_ms - instance.registered_ms
        if age_ms >= WARM_UP_MS:
            return load
        # Below 0 if the cell's clock was set back, by a failover: then all are new.
        return load + _WARM_UP_LOAD * (1 - max(0.0, age_ms) / WARM_UP_MS)
