"""The moves of a task between its places, as `library/move.lua` and `library/lease.lua` make them.

Each takes the state and the moment in it. None waits; what one does is done before any other call is looked at.
"""

from bisect import insort

from taskyard.dispatcher.cell.contract import Outgoing, Place
from taskyard.dispatcher.cell.twin_entry import Head, read_head, rewrite
from taskyard.dispatcher.cell.twin_state import SLOTS, Live, TwinState, index_of, number, parse_id
from taskyard.dispatcher.core.shapes import Shape

MAX_SHAPES_SCANNED = 32
"""Heads of one index that one pull looks at."""
MAX_UNSTARTED = 3
"""How often a task may come back unstarted for free."""
LEAVING = "its entries are being taken back"
"""Why an instance is closed that is being taken back; its epoch counts no more."""


def park(state: TwinState, head: Head, entry: bytes) -> None:
    """Park an entry."""
    shape = state.shape(head.shape)
    insort(state.park.setdefault(index_of(shape), {}).setdefault(shape.text, []), (head.key_ms, entry))
    if head.deadline_ms > 0:
        state.deadlines[head.id] = head.deadline_ms
    state.places[head.id] = Place("parked", number(head.key_ms), head.attempt, "", shape.text, "", None)


def unpark(state: TwinState, shape: Shape, row: tuple[float, bytes], task_id: str) -> None:
    """Take an entry out of the park. The hold of a shape that has nothing parked any more ends."""
    rows = state.parked_of(shape)
    rows.remove(row)
    state.deadlines.pop(task_id, None)
    if rows:
        return
    index = index_of(shape)
    del state.park[index][shape.text]
    if not state.park[index]:
        del state.park[index]
    if shape.text in state.holds:
        release(state, state.holds[shape.text])


def release(state: TwinState, instance: str) -> None:
    """End the hold of an instance."""
    live = state.instances[instance]
    state.holds.pop(live.held_for, None)
    live.held_for = ""
    if live.state == "held":
        live.state = "open"
        state.touched[instance] = None


def set_closed(state: TwinState, instance: str, *, is_closed: bool) -> None:
    """Close the instance, or open it; a hold ends either way."""
    live = state.instances[instance]
    if live.state == "held":
        release(state, instance)
    live.state = "cordoned" if is_closed else "open"
    state.touched[instance] = None


def place(state: TwinState, instance: str, head: Head, entry: bytes, via: str) -> str:
    """Reserve the vector and put the entry on the instance's queue. A hold has then served its shape."""
    live, shape = state.instances[instance], state.shape(head.shape)
    for name, units in shape.needs.items():
        live.free[name] -= units
    stream_id = live.queue.add(entry, state.now_ms)
    state.places[head.id] = Place("queued", stream_id, head.attempt, instance, shape.text, via, None)
    state.touched[instance] = None
    if live.state == "held":
        release(state, instance)
    return stream_id


def give(state: TwinState, instance: str, shape: Shape) -> None:
    """Give back the vector of one task."""
    live = state.instances[instance]
    for name, units in shape.needs.items():
        live.free[name] += units
    state.touched[instance] = None


def bury(state: TwinState, head: Head, entry: bytes, *, reason: str, cause: str, instance: str = "") -> None:
    """Send a task to the outbox as dead."""
    state.outbox.add(Outgoing("", "dead", entry, reason, cause, instance), state.now_ms)
    state.remember(head.id, Place("dead", str(state.now_ms), head.attempt, instance, "", "", None))


def place_or_park(state: TwinState, entry: bytes, via: str) -> None:
    """Place an entry for which no plan was made on some open instance, else park it."""
    head = read_head(entry)
    shape = state.shape(head.shape)
    if head.is_late(state.now_ms):
        bury(state, head, entry, reason="deadline", cause="its deadline passed before it was placed")
        return
    instance = None if state.is_behind(shape, head.key_ms) else state.any_open(shape)
    if instance is None:
        park(state, head, entry)
    else:
        place(state, instance, head, entry, via)


def pull(state: TwinState, instance: str, *, limit: int, via: str) -> int:
    """Fill the free capacity with the best parked tasks of all its types; takes at most `limit` out of the park."""
    live = state.instances.get(instance)
    if live is None:
        return 0
    pulled = taken = 0
    while live.state != "cordoned" and live.free[SLOTS] > 0 and taken < limit:
        best = _best(state, live)
        if best is None:
            break
        pulled += _take_first(state, instance, best, via)
        taken += 1
    return pulled


def pull_shape(state: TwinState, instance: str, shape: Shape, *, limit: int, via: str) -> int:
    """Fill the free capacity with parked tasks of one shape; takes at most `limit` out of the park."""
    live = state.instances.get(instance)
    if live is None or shape.type not in live.types or not live.has_labels(shape):
        return 0
    pulled = taken = 0
    while taken < limit and live.fits(shape) and state.parked_of(shape):
        pulled += _take_first(state, instance, shape, via)
        taken += 1
    return pulled


def _take_first(state: TwinState, instance: str, shape: Shape, via: str) -> bool:
    """Take the first task of the shape out of the park. False if it came late and is dead."""
    row = state.parked_of(shape)[0]
    head = read_head(row[1])
    is_late = head.is_late(state.now_ms)
    if is_late:
        bury(state, head, row[1], reason="deadline", cause="its deadline passed while it was parked")
    else:
        place(state, instance, head, row[1], via)
    unpark(state, shape, row, head.id)
    return not is_late


def _best(state: TwinState, live: Live) -> Shape | None:
    """The shape with the earliest head that fits, among the instance's types; of equal ones, critical."""
    best: tuple[float, Shape] | None = None
    for index in [*[f"c|{agent_type}" for agent_type in live.types], *live.types]:
        for key_ms, shape in state.heads(index)[:MAX_SHAPES_SCANNED]:
            if live.fits(shape) and live.has_labels(shape):
                if best is None or key_ms < best[0]:
                    best = key_ms, shape
                break
    return best[1] if best else None


def again(
    state: TwinState, entry: bytes, instance: str, reason: bytes, *, delay_ms: int = 0, started: bool | None
) -> None:
    """A task leaves an instance without success; the attempt counts if it was started.

    started: None if nobody can say; that counts from the fourth time on, for an instance may die of a task before it
    can tell that it has started it. delay_ms: below 0 the cell's backoff.
    """
    head = read_head(entry)
    if started is None:
        head.evictions = min(head.evictions + 1, 255)
        started = head.evictions > MAX_UNSTARTED
    if started:
        head.add_cause(instance, reason, state.now_ms)
        if head.attempt >= head.max_attempts:
            cause = reason.decode(errors="replace")
            bury(state, head, rewrite(head), reason="attempts", cause=cause, instance=instance)
            return
        head.attempt += 1
    following = rewrite(head)
    if not started or delay_ms == 0:
        place_or_park(state, following, "e")
        return
    due_ms = state.now_ms + (_backoff_ms(state, head.attempt) if delay_ms < 0 else delay_ms)
    state.wait(due_ms, following)
    state.places[head.id] = Place("later", number(due_ms), head.attempt, "", head.shape, "", None)


def _backoff_ms(state: TwinState, attempt: int) -> int:
    """Full jitter below a cap that doubles with each attempt."""
    cap_ms = min(state.config.retry_cap_ms, state.config.retry_base_ms * 2 ** (attempt - 2))
    return int(cap_ms * state.random.random())


def take_back(state: TwinState, instance: str, *, limit: int, reason: bytes) -> int:
    """Take back up to `limit` entries, oldest first; at 0 left the instance is gone.

    Entries up to the reported cursor have been read, so their attempt counts. Once begun it is not undone.
    """
    live = state.instances[instance]
    set_closed(state, instance, is_closed=True)
    state.list_open()  # at once: what is taken back must not be placed here again
    live.reason, live.lease_until_ms = LEAVING, 0
    rows = list(live.queue.items.items())[:limit]
    for stream_id, _ in rows:
        del live.queue.items[stream_id]
    for stream_id, entry in rows:
        give(state, instance, state.shape(read_head(entry).shape))
        started = True if parse_id(stream_id) <= parse_id(live.cursor) else None
        again(state, entry, instance, reason, started=started)
    if not live.queue.items:
        del state.instances[instance]
    return len(live.queue.items)


def entry_of(state: TwinState, task_id: str) -> bytes:
    """The entry of a task that has a place."""
    place = state.places[task_id]
    if place.state == "queued":
        return state.instances[place.instance].queue.items[place.at]
    rows = state.parked_of(state.shape(place.shape)) if place.state == "parked" else state.later
    return next(row[1] for row in rows if read_head(row[1]).id == task_id)


def remove(state: TwinState, task_id: str) -> None:
    """Take a task from wherever it is, if anywhere; what it has reserved is given back."""
    place = state.places.get(task_id)
    if place and place.state == "queued":
        del state.instances[place.instance].queue.items[place.at]
        give(state, place.instance, state.shape(place.shape))
    elif place:
        unplace(state, task_id, place)


def unplace(state: TwinState, task_id: str, place: Place) -> bool:
    """Take a task out of the park, or from where it waits for its retry. False if it is in neither."""
    if place.state == "parked":
        shape = state.shape(place.shape)
        row = next((row for row in state.parked_of(shape) if read_head(row[1]).id == task_id), None)
        if row:
            unpark(state, shape, row, task_id)
        return row is not None
    row = next((row for row in state.later if read_head(row[1]).id == task_id), None)
    if row:
        state.later.remove(row)
    return row is not None
