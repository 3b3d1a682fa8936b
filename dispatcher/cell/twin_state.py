"""What the twin holds: instances with their queues, the park, what waits for its retry, places, outbox.

Only `twin_moves` and `twin` write here. Times are Unix ms.
"""

import random
import re
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from taskyard.dispatcher.cell.contract import CellConfig, Outgoing, Place
from taskyard.dispatcher.core.shapes import Shape, parse_shape
from taskyard.dispatcher.core.snapshot import Report, State
from taskyard.schemas.errors import DependencyError

SLOTS = "slots"
OPEN_TRIES = 8
"""Members of the open set that one placement tries."""

_ID = re.compile(r"(\d+)-?(\d*)").fullmatch
_Item = TypeVar("_Item")


def index_of(shape: Shape) -> str:
    """The index that its head is in: when only headroom is left, a pull looks at those of critical shapes alone."""
    return f"c|{shape.type}" if shape.is_critical else shape.type


def parse_id(stream_id: str) -> tuple[int, int]:
    """Parse a stream id, `ms-sequence` or ms alone; what is none is the very first."""
    found = _ID(stream_id)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


class Stream(Generic[_Item]):
    """Items under ids that only grow, like a stream of the server."""

    def __init__(self) -> None:
        self.items: dict[str, _Item] = {}
        self._last = (0, 0)

    def add(self, item: _Item, now_ms: int) -> str:
        """Add an item and return its id."""
        last_ms, last = self._last
        self._last = (now_ms, 0) if now_ms > last_ms else (last_ms, last + 1)
        stream_id = "{}-{}".format(*self._last)
        self.items[stream_id] = item
        return stream_id

    def behind(self, cursor: str) -> Iterator[tuple[str, _Item]]:
        """Iterate over what comes after the cursor, oldest first."""
        after = parse_id(cursor)
        return ((stream_id, item) for stream_id, item in self.items.items() if parse_id(stream_id) > after)


@dataclass(slots=True)
class Live:
    """One registered instance."""

    epoch: str
    types: tuple[str, ...]
    capacity: dict[str, int]
    labels: dict[str, str]
    lease_ms: int
    profile: dict[str, str]
    registered_ms: int
    lease_until_ms: int
    headroom: int
    free: dict[str, int]
    """By the resources that the cell knew when it registered."""
    is_spared: bool = False
    """Whether the lease was lengthened without a beat."""
    state: State = "open"
    reason: str = ""
    recalled: str = "0-0"
    held_for: str = ""
    report: Report | None = None
    reported_ms: int = 0
    queue: Stream[bytes] = field(default_factory=Stream[bytes])

    @property
    def cursor(self) -> str:
        """The stream id up to which it has said to have read."""
        return self.report.cursor if self.report else "0-0"

    def has_room(self, shape: Shape) -> bool:
        """Whether that much is free, whatever the state and the headroom."""
        return all(units <= self.free.get(name, 0) for name, units in shape.needs.items())

    def fits(self, shape: Shape) -> bool:
        """Whether a task of the shape may be placed on it. Labels and types are not looked at."""
        if self.state == "cordoned" or (self.state == "held" and self.held_for != shape.text):
            return False
        # A hold gives the headroom too: a task of an instance's whole size would never fit beside it.
        headroom = 0 if shape.is_critical or self.state == "held" else self.headroom
        if self.free[SLOTS] - shape.needs[SLOTS] < headroom:
            return False
        return self.has_room(shape)

    def could_run(self, shape: Shape) -> bool:
        """Whether it can run tasks of the shape when it is empty."""
        is_large = all(units <= self.capacity.get(name, 0) for name, units in shape.needs.items())
        return is_large and shape.type in self.types and self.has_labels(shape)

    def has_labels(self, shape: Shape) -> bool:
        """Whether it has the labels that the shape asks for."""
        return all(self.labels.get(name) == value for name, value in shape.labels.items())


class TwinState:
    """The state of one cell, and the moment of the call that changes it."""

    def __init__(self, chance: random.Random) -> None:
        self.random = chance
        self.now_ms = 0
        self.evict_ms: int | None = None
        """When evict was last called."""
        self.config = CellConfig()
        self.generation = ""
        self.applied: dict[str, int] = {}
        self.resources = [SLOTS]
        self.instances: dict[str, Live] = {}
        self.park: dict[str, dict[str, list[tuple[float, bytes]]]] = {}
        """Index -> shape -> (key, entry) in order; nothing empty is kept."""
        self.open_sets: dict[str, dict[str, None]] = {}
        """Agent type -> instances. They follow at the end of a call: what it frees is found by its own pull only."""
        self.touched: dict[str, None] = {}
        self.unserved: dict[str, int] = {}
        """Agent type that tasks wait for -> since when it is known that no instance serves it."""
        self.deadlines: dict[str, float] = {}
        self.later: list[tuple[float, bytes]] = []
        self.places: dict[str, Place] = {}
        """Of queued, parked and waiting tasks, without the entry."""
        self.done: list[dict[str, Place]] = [{}, {}]
        self.is_begun = False
        self.replay: dict[str, int] = {}
        """Partition -> offset up to which records are read again; empty when all of them are."""
        self.carried: set[str] = set()
        self._done_began_ms: int | None = None
        self.holds: dict[str, str] = {}
        self.outbox: Stream[Outgoing] = Stream()
        self.locks: dict[str, tuple[str, int]] = {}
        self._shapes: dict[str, Shape] = {}

    @property
    def parked(self) -> int:
        """How many tasks are parked."""
        return sum(len(rows) for shapes in self.park.values() for rows in shapes.values())

    @property
    def parked_bytes(self) -> int:
        """How many bytes they have."""
        return sum(len(row[1]) for shapes in self.park.values() for rows in shapes.values() for row in rows)

    def shape(self, text: str) -> Shape:
        """Parse a shape. A need of nothing is no need. Raises DependencyError if it is none."""
        known = self._shapes.get(text)
        if known:
            return known
        try:
            shape = parse_shape(text)
        except ValueError as error:
            raise DependencyError(f"the cell refused the shape {text!r}: {error}") from error
        if SLOTS not in shape.needs:
            raise DependencyError(f"the cell refused the shape {text!r}: it has no slots")
        needs = {name: units for name, units in shape.needs.items() if units or name == SLOTS}
        self._shapes[text] = shape._replace(needs=needs)
        return self._shapes[text]

    def heads(self, index: str) -> list[tuple[float, Shape]]:
        """List the shapes of an index that have parked tasks, by the key of their first task."""
        found = [(rows[0][0], self.shape(text)) for text, rows in self.park.get(index, {}).items()]
        return sorted(found, key=lambda row: (row[0], row[1].text.encode()))

    def parked_of(self, shape: Shape) -> list[tuple[float, bytes]]:
        """List what is parked of a shape, the first to leave first."""
        return self.park.get(index_of(shape), {}).get(shape.text, [])

    def is_behind(self, shape: Shape, key_ms: float) -> bool:
        """Whether a parked task of the shape goes before one with this key."""
        rows = self.parked_of(shape)
        return bool(rows) and rows[0][0] <= key_ms

    def any_open(self, shape: Shape) -> str | None:
        """Choose at random some instance of the open set that fits; tries a bounded number."""
        members = list(self.open_sets.get(shape.type, ()))
        for name in self.random.sample(members, min(OPEN_TRIES, len(members))):
            live = self.instances[name]
            if live.fits(shape) and live.has_labels(shape):
                return name
        return None

    def wait(self, due_ms: float, entry: bytes) -> None:
        """Keep an entry until its retry is due."""
        insort(self.later, (due_ms, entry))

    def remember(self, task_id: str, place: Place) -> None:
        """Remember how a task ended."""
        self.places.pop(task_id, None)
        self.done[0][task_id] = place
        if task_id in self.carried:
            self.carried.remove(task_id)
            self.outbox.add(Outgoing("", "uncarried", task_id.encode()), self.now_ms)

    def end_call(self) -> None:
        """End a call: what it has changed comes into the indices."""
        self.list_open()

    def rotate_done(self) -> None:
        """Forget the older half of the ended tasks once the newer is full or old."""
        began_ms = self._done_began_ms
        if any(self.applied.get(name, 0) < end for name, end in self.replay.items()):
            return
        self.replay = {}
        if not self.is_begun or not self.done[0]:
            return
        if began_ms is None:
            self._done_began_ms = self.now_ms
        is_old = began_ms is not None and self.now_ms - began_ms > self.config.done_age_ms
        if is_old or len(self.done[0]) >= self.config.done_limit / 2:
            self.done = [{}, self.done[0]]
            self._done_began_ms = self.now_ms

    def list_open(self) -> None:
        """Let the open sets follow the instances that have changed."""
        for name in self.touched:
            live = self.instances.get(name)
            for agent_type in live.types if live else ():
                members = self.open_sets.setdefault(agent_type, {})
                if live and live.state == "open" and live.free[SLOTS] > 0:
                    members[name] = None
                else:
                    members.pop(name, None)
        self.touched.clear()


def number(value: float) -> str:
    """Format a number as the library does: it reads back as the same double."""
    return format(value, ".17g")
