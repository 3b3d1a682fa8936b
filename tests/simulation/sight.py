"""What the checker sees of a cell: where every task is and what every instance holds, recomputed from the raw state."""

from functools import lru_cache
from typing import NamedTuple

from taskyard.dispatcher.cell.twin_state import TwinState
from taskyard.dispatcher.core.shapes import Shape, parse_shape
from taskyard.schemas.entry import Entry, decode_entry

decoded = lru_cache(maxsize=20_000)(decode_entry)
shape_of = lru_cache(maxsize=1_000)(parse_shape)


class Spot(NamedTuple):
    """Where one task is. at: the instance or the shape; place: the stream id, or the order in the park."""

    state: str
    at: str
    place: str
    entry: Entry

    @property
    def shape(self) -> Shape:
        """What it needs."""
        return shape_of(self.entry.shape)


class Site(NamedTuple):
    """One instance. used: the sum over its queue."""

    epoch: str
    state: str
    reason: str
    held_for: str
    headroom: int
    types: tuple[str, ...]
    labels: dict[str, str]
    capacity: dict[str, int]
    free: dict[str, int]
    used: dict[str, int]
    lease_until_ms: int

    def fits(self, shape: Shape, *, is_first_of_hold: bool = False) -> bool:
        """Whether a task of the shape may be placed here now, by the rules of the design (section 5)."""
        is_open = self.state == "open" or (self.state == "held" and is_first_of_hold)
        has_labels = all(self.labels.get(name) == value for name, value in shape.labels.items())
        spare = 0 if shape.is_critical or is_first_of_hold else self.headroom
        if not is_open or not has_labels or shape.type not in self.types:
            return False
        needs = {"slots": 1, **shape.needs}
        return self.free["slots"] - needs["slots"] >= spare and all(
            units <= self.free.get(name, 0) for name, units in needs.items()
        )


class Sight(NamedTuple):
    """The cell at one moment. twice: tasks that are in two places."""

    spots: dict[str, Spot]
    sites: dict[str, Site]
    applied: dict[str, int]
    twice: list[str]

    def parked(self, shape: str) -> list[Spot]:
        """What is parked of a shape."""
        return [spot for spot in self.spots.values() if spot.state == "parked" and spot.entry.shape == shape]


def look(state: TwinState) -> Sight:
    """See all of it. Cost: about 1 us a task."""
    spots: dict[str, Spot] = {}
    twice: list[str] = []
    sites: dict[str, Site] = {}

    def note(spot: Spot) -> None:
        if spot.entry.id in spots:
            twice.append(spot.entry.id)
        spots[spot.entry.id] = spot

    for name, live in state.instances.items():
        used: dict[str, int] = {}
        for stream_id, raw in live.queue.items.items():
            entry = decoded(raw)
            note(Spot("queued", name, stream_id, entry))
            for resource, units in shape_of(entry.shape).needs.items():
                used[resource] = used.get(resource, 0) + units
        sites[name] = Site(
            live.epoch, live.state, live.reason, live.held_for, live.headroom, live.types, live.labels,
            live.capacity, dict(live.free), used, live.lease_until_ms,
        )  # fmt: skip
    for shapes in state.park.values():
        for text, rows in shapes.items():
            for place, (_, raw) in enumerate(rows):
                note(Spot("parked", text, str(place), decoded(raw)))
    for due_ms, raw in state.later:
        note(Spot("later", "", str(due_ms), decoded(raw)))
    return Sight(spots, sites, dict(state.applied), twice)
