"""The dispatcher's view of the fleet: what the plan decides on.

Made from the cell's instances, refreshed with its free vectors, and charged with the dispatcher's own placements at
once, so that the next task of a batch sees the one before. One asyncio loop owns it; nothing here waits.
"""

from collections.abc import Iterable, Mapping, Sequence

from taskyard.dispatcher.core.load import LoadPolicy
from taskyard.dispatcher.core.shapes import Shape, parse_shape
from taskyard.dispatcher.core.snapshot import InstanceView, Vector

MISSING = 1 << 30
"""Index of a resource that the cell has never seen: no vector reaches it."""


class Instance:
    """One instance as the plan sees it. Written by Fleet only."""

    __slots__ = (
        "capacity", "charge", "cpu", "errors", "free", "headroom", "id", "is_open", "labels", "memory", "registered_ms",
        "shares", "tag", "types",
    )  # fmt: skip

    def __init__(self, view: InstanceView, resources: Sequence[str]) -> None:
        self.id = view.id
        self.tag = view.tag
        self.types = view.types
        self.labels = view.labels
        self.headroom = view.headroom
        self.is_open = view.state == "open"
        self.capacity = [view.capacity.get(name, 0) for name in resources]
        self.free = [view.free.get(name, 0) for name in resources]
        self.registered_ms = view.registered_ms
        # How often something was placed on it: an entry of a heap made before is out of date.
        self.charge = 0
        # As the instance reports itself, 0 to 1.
        self.cpu = view.reported.cpu_permille / 1000
        self.memory = view.reported.memory_permille / 1000
        self.errors = view.reported.errors_permille / 1000
        # Share of each agent type among the tasks here, as last reported; one type needs no report.
        running = view.reported.running
        total = sum(running)
        self.shares: dict[str, float] = {}
        if total and len(running) == len(view.types) > 1:
            self.shares = {name: count / total for name, count in zip(view.types, running, strict=True)}

    def fits(self, need: Sequence[tuple[int, int]], *, is_critical: bool) -> bool:
        """Whether it has that much free now. need: (index of the resource, units), slots first."""
        free = self.free
        if not self.is_open or free[0] - need[0][1] < (0 if is_critical else self.headroom):
            return False
        if len(need) == 1:
            return True
        return all(index < len(free) and free[index] >= units for index, units in need[1:])

    def take(self, need: Sequence[tuple[int, int]]) -> None:
        """Count a placement."""
        self.charge += 1
        for index, units in need:
            self.free[index] -= units


class Pool:
    """The instances that may take tasks of one shape, as a heap by load. Rebuilt by the plan after each refresh.

    heap: (load, tie, charge, instance). The load is true if the instance's charge is still the same; otherwise too low,
    since between two refreshes instances only fill up.
    """

    __slots__ = ("heap", "is_stale", "members", "need", "shape")

    def __init__(self, shape: Shape, members: list[Instance], need: tuple[tuple[int, int], ...]) -> None:
        self.shape = shape
        self.members = members
        self.need = need
        self.heap: list[tuple[float, float, int, Instance]] = []
        self.is_stale = True


class Fleet:
    """All instances of the cell, and a pool for each shape that was asked for."""

    def __init__(self, policy: LoadPolicy) -> None:
        self.policy = policy
        self.resources: tuple[str, ...] = ("slots",)
        self.instances: dict[str, Instance] = {}
        self.seen_ms = 0.0
        self._by_type: dict[str, list[Instance]] = {}
        self._pools: dict[str, Pool] = {}

    def replace(self, views: Iterable[InstanceView], resources: tuple[str, ...], *, now_ms: float) -> None:
        """Take over the whole fleet, as read from the cell at now_ms."""
        self.resources = resources
        self.instances = {view.id: Instance(view, resources) for view in views}
        self._by_type = {}
        for instance in self.instances.values():
            for name in instance.types:
                self._by_type.setdefault(name, []).append(instance)
        self._pools = {}
        self.seen_ms = now_ms

    def refresh(self, vectors: Mapping[str, Vector], *, now_ms: float) -> bool:
        """Take over the free vectors. False if the fleet itself has changed: then `replace` is due."""
        instances = self.instances
        is_same = len(vectors) == len(instances)
        for name, vector in vectors.items():
            instance = instances.get(name)
            if instance is None or instance.tag != vector.tag:
                is_same = False
                continue
            instance.free[: len(vector.free)] = vector.free
            instance.headroom = vector.headroom
            instance.is_open = vector.state == "open"
        for pool in self._pools.values():
            pool.is_stale = True
        self.seen_ms = now_ms
        return is_same

    def pool(self, text: str) -> Pool:
        """The pool of a shape. Raises ValueError if the text is no shape."""
        found = self._pools.get(text)
        if found is None:
            found = self._pools[text] = self._made(parse_shape(text))
        return found

    def _made(self, shape: Shape) -> Pool:
        at = {name: index for index, name in enumerate(self.resources)}
        others = [(at.get(name, MISSING), units) for name, units in shape.needs.items() if units and name != "slots"]
        need = ((0, shape.needs.get("slots", 1)), *others)
        members = [i for i in self._by_type.get(shape.type, ()) if has_labels(i, shape)]
        return Pool(shape, members, need)


def has_labels(instance: Instance, shape: Shape) -> bool:
    """Whether the instance carries every label that the shape asks for, with its value."""
    return all(instance.labels.get(name) == value for name, value in shape.labels.items())
