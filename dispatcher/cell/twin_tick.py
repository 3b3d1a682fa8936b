"""The dispatcher's half of the twin: apply, and what is done from time to time (`library/apply.lua`, `tick.lua`)."""

import random
from collections.abc import Callable, Sequence

from taskyard.dispatcher.cell import twin_headroom as headroom
from taskyard.dispatcher.cell import twin_moves as moves
from taskyard.dispatcher.cell.contract import (
    MAX_BATCH,
    Applied,
    Batch,
    CellConfig,
    Fenced,
    Full,
    OnSent,
    Outgoing,
    Planned,
    Recovering,
)
from taskyard.dispatcher.cell.recovery import Incarnation, Opening
from taskyard.dispatcher.cell.twin_entry import read_head
from taskyard.dispatcher.cell.twin_recovery import TwinRecovery
from taskyard.dispatcher.cell.twin_state import TwinState, parse_id
from taskyard.dispatcher.core.shapes import Shape

UNREAD = "not reading"
"""Why an instance is closed that beats but does not read."""
AWAY_MS = 1_000
"""No evict for longer: no dispatcher reached the cell, so workers may not have reached it either."""
SPARE_MS = 10_000
"""Time for them to beat again."""
HEADS_PER_INDEX = 64
"""Shapes of one index that one expire looks at."""
FEW = 100
"""Entries of the outbox that weigh little, whatever is in them."""


def _weight(row: Outgoing) -> int:
    return len(row.body) + len(row.cause)


class TwinTick(TwinRecovery):
    """The contract's DispatcherCell, without cordon."""

    def __init__(self, chance: random.Random, clock: Callable[[], int]) -> None:
        """Make an empty cell. clock: Unix ms, read once a call."""
        super().__init__(TwinState(chance), clock)

    async def open(self, config: CellConfig) -> Opening:
        """Store the config, return the generation: a twin has one history."""
        state = self._begin()
        before, state.config = state.config.headroom_permille, config
        if config.headroom_permille != before:
            headroom.share_out(state)
        state.generation = state.generation or f"{state.random.getrandbits(64):016x}"
        return Opening(state.generation, state.is_begun, dict(state.replay))

    async def applied(self, partitions: Sequence[Incarnation]) -> dict[Incarnation, int]:
        """Tell up to which offset each partition has been applied; one that never was is absent."""
        return {name: self._state.applied[name] for name in partitions if name in self._state.applied}

    async def apply(self, batch: Batch, *, on_sent: OnSent | None = None) -> Applied | Fenced | Full | Recovering:
        """Make a batch take effect, exactly once. Raises ValueError above MAX_BATCH tasks (a caller's bug)."""
        if len(batch.tasks) > MAX_BATCH:
            raise ValueError(f"{len(batch.tasks)} tasks in one batch; at most {MAX_BATCH}")
        state = self._begin()
        if not state.is_begun:
            return Recovering()
        refused = self._fence(batch) or self._full(batch.parked_permille)
        if refused:
            return refused
        if on_sent is not None:
            on_sent()
        application = _Application(state, batch)
        results = "".join([application.take(planned) for planned in batch.tasks])
        for instance in application.pullers:
            moves.pull(state, instance, limit=len(batch.tasks), via="s")
        for letter in batch.refused:
            state.outbox.add(Outgoing("", "refused", bytes(letter)), state.now_ms)
        state.end_call()
        state.applied.update({partition: end for partition, _, end in batch.ranges})
        return Applied(results, state.parked, len(state.outbox.items), state.now_ms)

    def _fence(self, batch: Batch) -> Fenced | None:
        offsets = {
            r.partition: self._state.applied[r.partition] for r in batch.ranges if r.partition in self._state.applied
        }
        # A partition that was never applied starts at 0, or where an empty range has said that its log begins: whoever
        # stands elsewhere knows a history that this cell has not.
        stands = all(
            offsets[name] == start if name in offsets else start in (0, end) for name, start, end in batch.ranges
        )
        return None if stands else Fenced(offsets)

    def _full(self, parked_permille: int) -> Full | None:
        state, config = self._state, self._state.config
        # What waits for its retry is parked again when that is due.
        level = Full(state.parked + len(state.later), state.parked_bytes, len(state.outbox.items))
        share = parked_permille / 1000
        is_full = (
            level.parked >= config.parked_limit * share
            or level.parked_bytes >= config.parked_bytes_limit * share
            or level.outbox >= config.outbox_limit
            or (level.outbox > FEW and sum(map(_weight, state.outbox.items.values())) >= config.outbox_bytes_limit)
        )
        return level if is_full else None

    async def evict(self, *, limit: int) -> tuple[str, int] | None:
        """Take back a page of the instance whose lease ran out first."""
        state = self._begin()
        self._spare()
        expired = [(live.lease_until_ms, name.encode(), name) for name, live in state.instances.items()]
        expired = [row for row in expired if row[0] <= state.now_ms]
        if not expired:
            return None
        instance = min(expired)[2]
        left = moves.take_back(state, instance, limit=limit, reason=b"the lease ran out")
        state.end_call()
        return instance, left

    def _spare(self) -> None:
        # Nobody reached the cell for a while: a lease that ran out meanwhile, or will soon, is no sign of death. Once.
        state = self._state
        before_ms, state.evict_ms = state.evict_ms, state.now_ms
        if before_ms is None or state.now_ms - before_ms <= AWAY_MS:
            return
        state.unserved.clear()
        for live in state.instances.values():
            if before_ms < live.lease_until_ms <= state.now_ms + SPARE_MS and not live.is_spared:
                live.lease_until_ms, live.is_spared = state.now_ms + SPARE_MS, True

    async def recall(self, instances: Sequence[str], *, min_age_ms: int, limit: int) -> int:
        """Take back what these instances have not read for min_age_ms, and close them."""
        state, count = self._begin(), 0
        for instance in instances:
            if count < limit:
                count += self._recall(instance, min_age_ms, limit - count)
        state.end_call()
        return count

    def _recall(self, instance: str, min_age_ms: int, limit: int) -> int:
        state = self._state
        live = state.instances.get(instance)
        if live is None or live.report is None:
            return 0
        newest_ms = live.reported_ms - min_age_ms
        rows = [row for row in live.queue.behind(live.cursor) if parse_id(row[0])[0] <= newest_ms][:limit]
        if rows:
            live.reason = live.reason or UNREAD  # closed by a person, it is not opened by reading
            live.recalled = rows[-1][0]
            moves.set_closed(state, instance, is_closed=True)
        for stream_id, entry in rows:
            del live.queue.items[stream_id]
            moves.give(state, instance, state.shape(read_head(entry).shape))
            moves.again(state, entry, instance, UNREAD.encode(), started=False)
        return len(rows)

    async def settle(self, matches: Sequence[tuple[str, str]], *, limit: int) -> int:
        """Let these instances pull, then take what fits of the shape."""
        state, count = self._begin(), 0
        for instance, text in matches:
            if count >= limit:
                break
            count += moves.pull(state, instance, limit=limit - count, via="s")
            count += moves.pull_shape(state, instance, state.shape(text), limit=limit - count, via="s")
        state.end_call()
        return count

    async def due(self, *, limit: int) -> int:
        """Place or park tasks whose backoff is over."""
        state = self._begin()
        rows = [row for row in state.later if row[0] <= state.now_ms][:limit]
        for row in rows:
            state.later.remove(row)
            moves.place_or_park(state, row[1], "d")
        state.end_call()
        return len(rows)

    async def expire(self, *, limit: int) -> int:
        """Dead-letter parked tasks that waited too long."""
        state = self._begin()
        late = sorted((at, task_id) for task_id, at in state.deadlines.items() if at < state.now_ms)[:limit]
        count = 0
        for _, task_id in late:
            if task_id in state.deadlines:
                place = state.places[task_id]
                count += self._expire_late(state.shape(place.shape), float(place.at), limit - count)
        state.rotate_done()
        self._note_unserved()
        for index in sorted(state.park):
            for _, shape in state.heads(index)[:HEADS_PER_INDEX]:
                count += self._expire_aged(shape, limit - count)
        state.end_call()
        return count

    def _expire_late(self, shape: Shape, key_ms: float, limit: int) -> int:
        # Those of the same key together, as the library does, which has to look through them.
        state = self._state
        rows = [row for row in state.parked_of(shape) if row[0] == key_ms and read_head(row[1]).is_late(state.now_ms)]
        for row in rows[:limit]:
            head = read_head(row[1])
            moves.unpark(state, shape, row, head.id)
            moves.bury(state, head, row[1], reason="deadline", cause="its deadline passed while it was parked")
        return len(rows[:limit])

    def _note_unserved(self) -> None:
        state = self._state
        served = {agent_type for live in state.instances.values() for agent_type in live.types}
        waiting = {index.removeprefix("c|") for index in state.park}
        state.unserved = {name: min(state.unserved.get(name, state.now_ms), state.now_ms) for name in waiting - served}

    def _expire_aged(self, shape: Shape, limit: int) -> int:
        state, config, count = self._state, self._state.config, 0
        since_ms = state.unserved.get(shape.type)
        unserved = f"no instance serves the agent type {shape.type}"
        cause = "no instance had room for it in time" if since_ms is None else unserved
        for row in state.parked_of(shape)[:limit]:
            head = read_head(row[1])
            is_old = head.arrived_ms + config.parked_age_ms <= state.now_ms
            begins_ms = None if since_ms is None else max(head.arrived_ms, since_ms)
            if not is_old and (begins_ms is None or begins_ms + config.unknown_type_age_ms > state.now_ms):
                break
            moves.unpark(state, shape, row, head.id)
            moves.bury(state, head, row[1], reason="age", cause=cause)
            count += 1
        return count

    async def hold(self, shape: str, instance: str) -> bool:
        """Keep the instance for the first task of the shape."""
        state = self._begin()
        live = state.instances.get(instance)
        if live is None or live.state != "open" or shape in state.holds or not state.parked_of(state.shape(shape)):
            return False
        if not live.could_run(state.shape(shape)):
            return False
        state.holds[shape] = instance
        live.state, live.held_for = "held", shape
        state.touched[instance] = None
        moves.pull(state, instance, limit=1, via="s")
        state.end_call()
        return True

    async def lease(self, name: str, owner: str, *, ttl_ms: int) -> bool:
        """Take, renew or give back a lease."""
        state = self._begin()
        holder, until_ms = state.locks.get(name, ("", 0))
        if holder not in ("", owner) and state.now_ms <= until_ms:
            return False
        if ttl_ms > 0:
            state.locks[name] = owner, state.now_ms + ttl_ms
            return True
        state.locks.pop(name, None)
        return False

    async def outbox(self, *, count: int) -> list[Outgoing]:
        """Read the oldest entries of the outbox."""
        rows = list(self._state.outbox.items.items())[:count]
        return [outgoing._replace(stream_id=stream_id) for stream_id, outgoing in rows]

    async def newest_outgoing(self) -> str:
        """Return the stream id of the newest entry of the outbox."""
        return next(reversed(self._state.outbox.items), "")

    async def trim(self, stream_ids: Sequence[str]) -> int:
        """Remove entries from the outbox."""
        return sum([self._state.outbox.items.pop(stream_id, None) is not None for stream_id in stream_ids])


class _Application:
    """One batch on its way into the state. pullers: candidates of tasks that had to wait behind a parked one."""

    def __init__(self, state: TwinState, batch: Batch) -> None:
        # Parse everything before anything is written.
        self._heads = {planned.entry: read_head(planned.entry) for planned in batch.tasks}
        self._shapes = [state.shape(text) for text in batch.shapes]
        self._state = state
        self._instances = batch.instances
        self._full_shapes: set[str] = set()
        self.pullers: dict[str, None] = {}

    def take(self, planned: Planned) -> str:
        """Place or park one task, unless it is known."""
        state, head = self._state, self._heads[planned.entry]
        if head.id in state.places or any(head.id in half for half in state.done):
            return "k"
        if head.is_late(state.now_ms):
            cause = "its deadline had passed when it arrived"
            moves.bury(state, head, planned.entry, reason="deadline", cause=cause)
            return "x"
        shape = self._shapes[planned.shape]
        candidates = [(str(n), name) for n, name in enumerate(self._valid(planned), 1) if name]
        if state.is_behind(shape, head.key_ms):
            self.pullers.update(dict.fromkeys(name for _, name in candidates))
        else:
            fitting = ((n, name) for n, name in candidates if state.instances[name].fits(shape))
            via, instance = next(fitting, None) or ("o", self._any_open(shape))
            if instance:
                moves.place(state, instance, head, planned.entry, via)
                return via
        moves.park(state, head, planned.entry)
        return "p"

    def _valid(self, planned: Planned) -> list[str | None]:
        # One that has registered anew since the plan is no candidate any more.
        pairs = [self._instances[i] for i in planned.candidates]
        live = self._state.instances
        return [name if name in live and live[name].epoch[:4] == tag else None for name, tag in pairs]

    def _any_open(self, shape: Shape) -> str | None:
        if shape.text in self._full_shapes:  # asked once a call
            return None
        instance = self._state.any_open(shape)
        if instance is None:
            self._full_shapes.add(shape.text)
        return instance
