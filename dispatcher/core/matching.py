"""What the tick decides: which instances should pull, and which one is held for a task that waits too long."""

from collections.abc import Iterable, Sequence

from taskyard.dispatcher.core.fleet import Fleet, Instance, Pool
from taskyard.dispatcher.core.snapshot import ShapeView

_SETTLED_AT_ONCE = 200


def to_settle(parked: Sequence[ShapeView], fleet: Fleet) -> list[tuple[str, str]]:
    """Pairs (instance, shape) that match now, the earliest tasks first; empty if all is settled.

    An instance that is held is matched too, since the view does not tell for which shape: for another it takes nothing.
    """
    found: list[tuple[str, str]] = []
    for view in sorted(parked, key=lambda view: view.head_key_ms):
        pool = fleet.pool(view.shape)
        left = view.parked
        for instance in pool.members.values():
            if left <= 0 or len(found) >= _SETTLED_AT_ONCE:
                break
            is_held = instance.is_held and instance.has_room(pool.need)
            if is_held:
                found.append((instance.id, view.shape))
            elif instance.fits(pool.need, is_critical=pool.shape.is_critical):
                found.append((instance.id, view.shape))
                left -= max(1, instance.free[0] // pool.need[0][1])
    return found


def to_hold(parked: Iterable[ShapeView], fleet: Fleet, *, now_ms: float, hold_after_ms: int) -> list[tuple[str, str]]:
    """Pairs (shape, instance) to hold: of each agent type the head that waits longest, if it waits for too long.

    The instance is the one with the most of what the shape needs free, among those large enough when empty.
    """
    oldest: dict[str, ShapeView] = {}
    for view in parked:
        agent_type = view.shape.split("|", 2)[1]
        if agent_type not in oldest or view.head_arrived_ms < oldest[agent_type].head_arrived_ms:
            oldest[agent_type] = view
    pairs: list[tuple[str, str]] = []
    for view in oldest.values():
        chosen = _most_room(fleet.pool(view.shape)) if now_ms - view.head_arrived_ms > hold_after_ms else None
        if chosen is not None:
            pairs.append((view.shape, chosen.id))
    return pairs


def _most_room(pool: Pool) -> Instance | None:
    large = [
        i for i in pool.members.values() if i.is_open and all(_could(i, index, units) for index, units in pool.need)
    ]
    return max(large, key=lambda i: min(i.free[index] / max(units, 1) for index, units in pool.need), default=None)


def _could(instance: Instance, index: int, units: int) -> bool:
    return index < len(instance.capacity) and instance.capacity[index] >= units
