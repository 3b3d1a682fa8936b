"""Reading the twin: the contract's FleetView."""

from collections import Counter
from collections.abc import Callable

from taskyard.dispatcher.cell.contract import Delivery, Drift, Level, Place
from taskyard.dispatcher.cell.recovery import BUCKET_MS
from taskyard.dispatcher.cell.twin_entry import read_head
from taskyard.dispatcher.cell.twin_state import Live, TwinState
from taskyard.dispatcher.core.snapshot import InstanceView, Report, ShapeView, Vector
from taskyard.schemas.entry import Entry, decode_entry


class TwinView:
    """All readings of the twin. Each is of one moment."""

    def __init__(self, state: TwinState, clock: Callable[[], int]) -> None:
        self._state = state
        self._clock = clock

    async def level(self) -> Level:
        """Tell how full the cell is."""
        state = self._state
        return Level(
            state.parked,
            state.parked_bytes,
            len(state.later),
            len(state.outbox.items),
            len(state.instances),
            self._clock(),
        )

    async def unfinished(self) -> dict[int, int]:
        """Count the unfinished tasks by the arrival of their records."""
        state = self._state
        queued = [entry for live in state.instances.values() for entry in live.queue.items.values()]
        parked = [row[1] for shapes in state.park.values() for rows in shapes.values() for row in rows]
        waiting = [row[1] for row in state.later]
        heads = [read_head(entry) for entry in (*queued, *parked, *waiting)]
        return dict(Counter([bucket_ms(head.arrived_ms) for head in heads if head.id not in state.carried]))

    async def resources(self) -> tuple[str, ...]:
        """Tell the names of the resources, in the order of the vectors."""
        return tuple(self._state.resources)

    async def vectors(self) -> dict[str, Vector]:
        """Tell what is free of each instance."""
        return {
            name: Vector(live.epoch[:4], live.state, live.headroom, self._in_order(live))
            for name, live in self._state.instances.items()
        }

    def _in_order(self, live: Live) -> tuple[int, ...]:
        return tuple(live.free[name] for name in self._state.resources if name in live.free)

    async def instances(self) -> list[InstanceView]:
        """Tell all instances."""
        return [_seen(name, live) for name, live in self._state.instances.items()]

    async def shapes(self) -> list[ShapeView]:
        """Tell the shapes that have parked tasks."""
        state = self._state
        serving = [agent_type for live in state.instances.values() for agent_type in live.types]
        return [
            ShapeView(
                shape.text,
                len(state.parked_of(shape)),
                key_ms,
                decode_entry(state.parked_of(shape)[0][1]).arrived_ms,
                serving.count(shape.type),
            )
            for index in sorted(state.park)
            for key_ms, shape in state.heads(index)
        ]

    async def find(self, task_id: str) -> Place | None:
        """Tell where a task is; None if the cell does not know it (any more)."""
        state = self._state
        place = state.places.get(task_id)
        if place is None:
            return state.done[0].get(task_id) or state.done[1].get(task_id)
        if place.state == "queued":
            return place._replace(entry=decode_entry(state.instances[place.instance].queue.items[place.at]))
        rows = state.parked_of(state.shape(place.shape)) if place.state == "parked" else state.later
        return place._replace(entry=next((e for e in (decode_entry(row[1]) for row in rows) if e.id == task_id), None))

    async def queue(self, instance: str, *, count: int) -> list[Delivery]:
        """Tell the oldest entries of an instance's queue."""
        live = self._state.instances.get(instance)
        rows = list(live.queue.items.items())[:count] if live else []
        return [Delivery(instance, stream_id, entry) for stream_id, entry in rows]

    async def parked(self, shape: str, *, count: int) -> list[Entry]:
        """Tell the first parked tasks of a shape."""
        return [decode_entry(entry) for _, entry in self._state.parked_of(self._state.shape(shape))[:count]]

    async def audit(self, instance: str) -> Drift:
        """Compare an instance's queue with its vector and the places. An unknown instance has no drift."""
        state = self._state
        live = state.instances.get(instance)
        if live is None:
            return Drift(instance, {}, 0)
        drift = {name: live.capacity.get(name, 0) - free for name, free in live.free.items()}
        misplaced = 0
        for stream_id, entry in live.queue.items.items():
            head = read_head(entry)
            for name, units in state.shape(head.shape).needs.items():
                drift[name] -= units
            place = state.places.get(head.id)
            if place is None or place.state != "queued" or (place.instance, place.at) != (instance, stream_id):
                misplaced += 1
        return Drift(instance, drift, misplaced)


def bucket_ms(arrived_ms: float) -> int:
    """The start of the bucket in which a record arrived."""
    return int(arrived_ms // BUCKET_MS * BUCKET_MS)


def _seen(name: str, live: Live) -> InstanceView:
    return InstanceView(
        id=name,
        tag=live.epoch[:4],
        epoch=live.epoch,
        types=live.types,
        capacity=dict(live.capacity),
        free={resource: live.free[resource] for resource in live.capacity},
        labels=dict(live.labels),
        profile=dict(live.profile),
        state=live.state,
        reason=live.reason,
        headroom=live.headroom,
        reported=live.report or Report("0-0"),
        reported_ms=live.reported_ms,
        lease_until_ms=live.lease_until_ms,
        registered_ms=live.registered_ms,
    )
