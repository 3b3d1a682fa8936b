"""The dispatcher's view of the fleet: what the plan decides on.

Made from the cell's instances, refreshed with its free vectors, and charged with the dispatcher's own placements at
once, so that the next task of a batch sees the one before. One asyncio loop owns it; nothing here waits.
"""

from collections.abc import Iterable, Mapping, Sequence

from taskyard.dispatcher.core.load import LoadPolicy
from taskyard.dispatcher.core.shapes import Shape, parse_shape
from taskyard.dispatcher.core.snapshot import InstanceView, Vector

_MAX_POOLS = 1_000
MISSING = 1 << 30
"""Index of a resource that the cell has never seen: no vector reaches it."""


class Instance:
    """One instance as the plan sees it. Written by Fleet only."""

    __slots__ = (
        "capacity", "charge", "cpu", "errors", "free", "headroom", "id", "is_held", "is_open", "labels", "memory",
        "registered_ms", "shares", "tag", "types",
    )  # fmt: skip

    def __init__(self, view: InstanceView, resources: Sequence[str]) -> None:
        self.id = view.id
        self.tag = view.tag
        self.types = view.types
        self.labels = view.labels
        self.registered_ms = view.registered_ms
        # Goes up with every change: an entry of a heap made before is out of date.
        self.charge = 0
        self.update(view, resources)

    def update(self, view: InstanceView, resources: Sequence[str]) -> None:
        """Take over all that may change during a registration."""
        self.charge += 1
        self.headroom = view.headroom
        self.is_open, self.is_held = view.state == "open", view.state == "held"
        self.capacity = [view.capacity.get(name, 0) for name in resources]
        self.free = [view.free.get(name, 0) for name in resources]
        # As the instance reports itself, 0 to 1.
        self.cpu = view.reported.cpu_permille / 1000
        self.memory = view.reported.memory_permille / 1000
        self.errors = view.reported.errors_permille / 1000
        # Share of each agent type among the tasks here: as last reported, otherwise all the same.
        running = view.reported.running
        total = sum(running)
        self.shares: dict[str, float] = dict.fromkeys(self.types, 1 / max(1, len(self.types)))
        if total and len(running) == len(view.types) > 1:
            self.shares |= {name: count / total for name, count in zip(view.types, running, strict=True)}

    def renew(self, vector: Vector) -> None:
        """Take over what changes with every placement."""
        size, is_open = len(vector.free), vector.state == "open"
        self.is_held = vector.state == "held"
        if is_open != self.is_open or vector.headroom != self.headroom or tuple(self.free[:size]) != vector.free:
            self.charge += 1
            self.free[:size] = vector.free
            self.headroom = vector.headroom
            self.is_open = is_open

    def fits(self, need: Sequence[tuple[int, int]], *, is_critical: bool) -> bool:
        """Whether it has that much free now. need: (index of the resource, units), slots first."""
        free = self.free
        if not self.is_open or free[0] - need[0][1] < (0 if is_critical else self.headroom):
            return False
        if len(need) > 1:
            for index, units in need:  # `all` over a generator takes three times as long
                if index >= len(free) or free[index] < units:
                    return False
        return True

    def has_room(self, need: Sequence[tuple[int, int]]) -> bool:
        """Whether it has that much free, whatever its state and headroom."""
        return all(index < len(self.free) and self.free[index] >= units for index, units in need)

    def take(self, need: Sequence[tuple[int, int]]) -> None:
        """Count a placement."""
        self.charge += 1
        free = self.free
        for index, units in need:
            free[index] -= units


Heap = list[tuple[float, float, int, Instance]]
"""Of one pool: (load, tie, charge, instance)."""


class Pool:
    """The instances that may take tasks of one shape, as a heap by load.

    heap: (load, tie, charge, instance). While the instance's charge is the same the load is true, otherwise it is
    computed anew when it comes to the top. An instance that got idler is further down than it should be, or not there,
    until the plan rebuilds the heap: after a refresh, as often as it can afford.
    reason: why none of the members takes the shape, once that was asked; of this fleet.
    """

    __slots__ = ("heap", "is_new", "is_stale", "members", "need", "reason", "shape")

    def __init__(self, shape: Shape, members: dict[str, Instance], need: tuple[tuple[int, int], ...]) -> None:
        self.shape = shape
        self.members = members
        self.need = need
        self.heap: Heap = []
        self.is_new = True
        self.is_stale = True
        self.reason = ""


class Fleet:
    """All instances of the cell, and a pool for each shape that was asked for."""

    def __init__(self, policy: LoadPolicy) -> None:
        self.policy = policy
        self.resources: tuple[str, ...] = ("slots",)
        self.instances: dict[str, Instance] = {}
        self.seen_ms = 0.0
        # How far the cell's clock is ahead of the monotonic one of this process. Written by `tell_time` alone.
        self._ahead_ms = 0.0
        # No heap is rebuilt before, so that planning for many shapes on a large fleet leaves time for the rest.
        self.rebuild_at_ms = 0.0
        # When one was rebuilt last. A time before that tells that the cell's clock was set back, as by a failover.
        self.rebuilt_ms = 0.0
        self._by_type: dict[str, dict[str, Instance]] = {}
        self._pools: dict[str, Pool] = {}

    def tell_time(self, now_ms: float, *, mono_s: float) -> None:
        """The cell's clock showed now_ms when this process's monotonic one stood at mono_s."""
        self._ahead_ms = now_ms - 1000 * mono_s

    def time_ms(self, mono_s: float) -> float:
        """What the cell's clock shows at mono_s: instances were registered by that, and wall clocks here may differ."""
        return 1000 * mono_s + self._ahead_ms

    def replace(self, views: Iterable[InstanceView], resources: tuple[str, ...], *, now_ms: float) -> None:
        """Take over the whole fleet, as read from the cell at now_ms. Pools are kept: most of it is as it was."""
        if resources != self.resources:
            self._pools = {}  # their needs are indices
            self.resources = resources
        gone = dict(self.instances)
        for view in views:
            known = self.instances.get(view.id)
            if known is not None and known.tag == view.tag:
                known.update(view, resources)
                del gone[view.id]
                continue
            if known is not None:
                self._remove(known)
                del gone[view.id]
            self._add(Instance(view, resources))
        for instance in gone.values():
            self._remove(instance)
        self._turn_stale()
        self.seen_ms = now_ms

    def _add(self, instance: Instance) -> None:
        self.instances[instance.id] = instance
        for name in instance.types:
            self._by_type.setdefault(name, {})[instance.id] = instance
        for pool in self._pools.values():
            if pool.shape.type in instance.types and has_labels(instance, pool.shape):
                pool.members[instance.id] = instance
            pool.reason = ""

    def _remove(self, instance: Instance) -> None:
        instance.is_open = False
        instance.charge += 1  # a heap looks at what has changed since before it takes it, and passes this one over
        del self.instances[instance.id]
        for name in instance.types:
            del self._by_type[name][instance.id]
        for pool in self._pools.values():
            pool.members.pop(instance.id, None)
            pool.reason = ""

    def _turn_stale(self) -> None:
        for pool in self._pools.values():
            pool.is_stale = True

    def refresh(self, vectors: Mapping[str, Vector], *, now_ms: float) -> bool:
        """Take over the free vectors. False if the fleet itself has changed: then `replace` is due."""
        instances = self.instances
        is_same = len(vectors) == len(instances)
        for name, vector in vectors.items():
            instance = instances.get(name)
            if instance is None or instance.tag != vector.tag:
                is_same = False
                continue
            instance.renew(vector)
        self._turn_stale()
        self.seen_ms = now_ms
        return is_same

    def serving(self, agent_type: str) -> Iterable[Instance]:
        """The instances that serve the agent type."""
        return self._by_type.get(agent_type, {}).values()

    def pool(self, text: str) -> Pool:
        """The pool of a shape. Raises ValueError if the text is no shape."""
        found = self._pools.get(text)
        if found is None:
            if len(self._pools) >= _MAX_POOLS:
                self._pools = {}
            found = self._pools[text] = self._made(parse_shape(text))
        return found

    def _made(self, shape: Shape) -> Pool:
        at = {name: index for index, name in enumerate(self.resources)}
        others = [(at.get(name, MISSING), units) for name, units in shape.needs.items() if units and name != "slots"]
        need = ((0, shape.needs.get("slots", 1)), *others)
        members = {i.id: i for i in self.serving(shape.type) if has_labels(i, shape)}
        return Pool(shape, members, need)


def has_labels(instance: Instance, shape: Shape) -> bool:
    """Whether the instance carries every label that the shape asks for, with its value."""
    return all(instance.labels.get(name) == value for name, value in shape.labels.items())
