"""The cell in memory: the same contract and the same semantics as the function library, to simulate and to read.

Deterministic, given a clock and a source of chance. What holds after every call, here and there:

1. A batch takes effect with its offsets or not at all: a refused one has changed nothing.
2. A task that is known is in exactly one place: on a queue, parked, waiting for its retry, or ended and remembered.
3. An entry is on a queue exactly while its vector is taken from that instance: capacity - free is the sum over the
   queue, and 0 <= free <= capacity.
4. Whoever has not the current epoch changes nothing. Of each placement one finish counts.
5. Of a shape, the park is left in order of (key, entry); a new task does not pass an earlier one of its shape.
6. A shape has one hold at most, an instance too, and only an instance that is `held` has one.

The order of writes. Here a call is one step. In the library an error would leave the first half of a call, so there
everything is parsed and checked first, and what is written follows the worse failure:
- the offset last: a torn batch is refused nowhere and comes again, and what has its place by then is skipped as known.
  The offset first would lose the other half;
- a new entry before its place in `where`: torn, an entry without a place holds capacity, which the audit counts as
  misplaced. A place without an entry would be a task that nobody runs and that no replay brings back;
- the outbox before the entry is deleted: torn, an outcome comes out twice, with the same id and attempt, instead of
  never;
- a closing instance leaves the open sets before its entries are taken back, or they would be placed on it again;
- what a finish frees is given back before it pulls, and the open sets are written last: until then no other call can
  see the capacity, so the pull has the first choice and nothing that is parked is passed by.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence

from taskyard.dispatcher.cell import twin_headroom as headroom
from taskyard.dispatcher.cell import twin_moves as moves
from taskyard.dispatcher.cell.contract import (
    Beaten,
    Delivery,
    Ending,
    Evicting,
    Finished,
    Outgoing,
    Place,
    Refused,
    Registered,
    Registration,
    Resynced,
    Running,
)
from taskyard.dispatcher.cell.twin_audit import TwinAudit
from taskyard.dispatcher.cell.twin_entry import Head, read_head, rewrite
from taskyard.dispatcher.cell.twin_state import SLOTS, Live, parse_id
from taskyard.dispatcher.cell.twin_tick import UNREAD, TwinTick
from taskyard.dispatcher.cell.twin_view import bucket_ms
from taskyard.dispatcher.core.snapshot import Report
from taskyard.schemas.errors import DependencyError

PAGE = 200
"""Entries that one call takes back, and tasks that an instance pulls when it opens."""
PULL_MARGIN = 64
"""Parked tasks that one finish may take beyond the endings it counts."""
RESUMING = "resuming"
"""Why an instance is closed that has not told yet what it runs."""
_MAX_RESOURCES = 16
_MAX_UNITS = 2**31 - 1
_EPOCH = re.compile(r"[A-Za-z0-9._-]{4,}").fullmatch
_NAME = re.compile(r"[^|=,\x00-\x1f\x7f]{1,512}").fullmatch
_POLL_S = 0.001


def _check_offer(instance: str, epoch: str, registration: Registration) -> None:
    types, capacity, labels, lease_ms, _ = registration
    names = (instance, *types, *capacity, *labels, *labels.values())
    units = (*capacity.values(), lease_ms)
    are_types = 0 < len(types) == len(set(types))
    if not are_types or not all(map(_NAME, names)) or not all(0 <= n <= _MAX_UNITS for n in units):
        raise DependencyError("the cell refused it: not an instance's id, types, capacity, labels, lease and profile")
    if SLOTS not in capacity or not _EPOCH(epoch):
        raise DependencyError("the cell refused it: an instance has slots, and an epoch of at least four characters")


class TwinCell(TwinTick, TwinAudit):
    """The contract's WorkerCell, DispatcherCell and FleetView, in memory."""

    async def register(
        self, instance: str, epoch: str, registration: Registration, *, is_resuming: bool = False
    ) -> Registered | Evicting:
        """Offer an instance's capacity. Raises DependencyError if the cell has no room for a new resource."""
        state = self._begin()
        before = state.instances.get(instance)
        if before and before.epoch == epoch and before.reason != moves.LEAVING:
            before.lease_until_ms, before.is_spared = state.now_ms + before.lease_ms, False
            return Registered(state.generation, state.now_ms, "0-0")
        _check_offer(instance, epoch, registration)
        self._add_resources(registration.capacity)
        if before:
            left = moves.take_back(state, instance, limit=PAGE, reason=b"the instance registered anew")
            if left:
                state.end_call()
                return Evicting(left)
        state.instances[instance] = self._live(instance, epoch, registration)
        for agent_type in registration.types:
            state.unserved.pop(agent_type, None)
        state.touched[instance] = None
        if is_resuming:
            state.instances[instance].reason = RESUMING
            moves.set_closed(state, instance, is_closed=True)
        else:
            moves.pull(state, instance, limit=PAGE, via="g")
        state.end_call()
        return Registered(state.generation, state.now_ms, "0-0")

    def _add_resources(self, capacity: Mapping[str, int]) -> None:
        known = self._state.resources
        added = sorted(capacity.keys() - set(known))
        if len(known) + len(added) > _MAX_RESOURCES:
            raise DependencyError(f"the cell refused it: more than {_MAX_RESOURCES} resource names in this cell")
        known.extend(added)

    def _live(self, instance: str, epoch: str, registration: Registration) -> Live:
        types, capacity, labels, lease_ms, profile = registration
        now_ms = self._state.now_ms
        return Live(
            epoch, tuple(types), dict(capacity), dict(labels), lease_ms, dict(profile), now_ms, now_ms + lease_ms,
            headroom.of(self._state, instance, capacity[SLOTS]),
            {name: capacity.get(name, 0) for name in self._state.resources},
        )  # fmt: skip

    def _refusal(self, instance: str, epoch: str) -> Refused | None:
        live = self._state.instances.get(instance)
        if live is None:
            return Refused("unknown")
        return None if live.epoch == epoch else Refused("stale")

    async def beat(self, instance: str, epoch: str, report: Report) -> Beaten | Refused:
        """Renew the lease and tell the report. An instance closed for not reading that has read since opens again."""
        state = self._begin()
        refused = self._refusal(instance, epoch)
        if refused:
            return refused
        live = state.instances[instance]
        if live.reason == moves.LEAVING:
            return Refused("stale")
        live.lease_until_ms, live.reported_ms = state.now_ms + live.lease_ms, state.now_ms
        live.report, live.is_spared = report, False
        if live.reason == UNREAD and parse_id(live.recalled) <= parse_id(report.cursor):
            self._open(instance)
        return Beaten(state.generation, state.now_ms, live.reason, live.recalled)

    def _open(self, instance: str) -> None:
        self._state.instances[instance].reason = ""
        moves.set_closed(self._state, instance, is_closed=False)
        moves.pull(self._state, instance, limit=PAGE, via="g")
        self._state.end_call()

    async def cordon(self, instance: str, reason: str) -> bool:
        """Close the instance for a reason, or with an empty one open it."""
        self._begin()
        return self._cordon(instance, reason)

    async def close_instance(self, instance: str, epoch: str, reason: str) -> bool:
        """Quiet: nothing more is placed on it."""
        self._begin()
        return self._refusal(instance, epoch) is None and self._cordon(instance, reason)

    def _cordon(self, instance: str, reason: str) -> bool:
        live = self._state.instances.get(instance)
        if live is None or live.reason == moves.LEAVING:
            return False
        if reason:
            live.reason = reason
            moves.set_closed(self._state, instance, is_closed=True)
            self._state.end_call()
        else:
            self._open(instance)
        return True

    async def leave(self, instance: str, epoch: str) -> Evicting | Refused:
        """Unregister, a page at a time; Evicting(0) means gone."""
        state = self._begin()
        refused = self._refusal(instance, epoch)
        if refused:
            return refused
        left = moves.take_back(state, instance, limit=PAGE, reason=b"the instance left")
        state.end_call()
        return Evicting(left)

    async def read(self, cursors: Mapping[str, str], *, count: int, block_ms: int) -> list[Delivery]:
        """Read entries behind the cursors. block_ms is the event loop's time; simulations do not wait (0)."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + block_ms / 1000
        found = self._behind(cursors, count)
        while cursors and not found and loop.time() < give_up_s:
            await asyncio.sleep(_POLL_S)
            found = self._behind(cursors, count)
        return found

    def _behind(self, cursors: Mapping[str, str], count: int) -> list[Delivery]:
        found: list[Delivery] = []
        for instance, cursor in cursors.items():
            live = self._state.instances.get(instance)
            rows = list(live.queue.behind(cursor))[:count] if live else []
            found += [Delivery(instance, stream_id, entry) for stream_id, entry in rows]
        return found

    async def finish(self, instance: str, epoch: str, endings: Sequence[Ending]) -> Finished | Refused:
        """End attempts; what they free takes the best parked tasks."""
        state = self._begin()
        refused = self._refusal(instance, epoch)
        if refused:
            return refused
        # An ending that was given back and placed here again in the same call has another stream id by then.
        counted = [self._end(instance, ending) for ending in endings]
        pulled = moves.pull(state, instance, limit=sum(counted) + PULL_MARGIN, via="u") if any(counted) else 0
        accepted = tuple([is_in or self._end_late(instance, e) for is_in, e in zip(counted, endings, strict=True)])
        state.end_call()
        return Finished(accepted, pulled)

    def _end_late(self, instance: str, ending: Ending) -> bool:
        """Let a success count whose entry is not here: the first finish of the current attempt wins."""
        state, task_id = self._state, ending.task_id
        place = state.places.get(task_id)
        is_over = any(task_id in half for half in state.done)
        if ending.how != "succeeded" or is_over or (place and place.attempt != ending.attempt):
            return False
        moves.remove(state, task_id)
        state.outbox.add(Outgoing("", "outcome", bytes(ending.detail)), state.now_ms)
        ended = Place("finished", str(state.now_ms), ending.attempt, instance, "", "", None)
        state.remember(task_id, ended)
        return True

    def _end(self, instance: str, ending: Ending) -> bool:
        state = self._state
        place, live = state.places.get(ending.task_id), state.instances[instance]
        claimed = ("queued", ending.stream_id, ending.attempt, instance)
        if place is None or (place.state, place.at, place.attempt, place.instance) != claimed:
            return False
        entry = live.queue.items.pop(place.at)
        if ending.how == "succeeded":
            state.outbox.add(Outgoing("", "outcome", bytes(ending.detail)), state.now_ms)
            ended = Place("finished", str(state.now_ms), place.attempt, instance, "", "", None)
            state.remember(ending.task_id, ended)
        elif ending.how == "gave_up":
            head = read_head(entry)
            head.add_cause(instance, ending.detail, state.now_ms)
            cause = ending.detail.decode(errors="replace")
            moves.bury(state, head, rewrite(head), reason="gave_up", cause=cause, instance=instance)
        elif ending.how == "unstarted":
            moves.again(state, entry, instance, ending.detail, started=False)
        else:
            moves.again(state, entry, instance, ending.detail, delay_ms=ending.delay_ms, started=True)
        moves.give(state, instance, state.shape(place.shape))
        return True

    async def resync(
        self, instance: str, epoch: str, running: Sequence[Running], *, is_last: bool = True
    ) -> Resynced | Refused:
        """Tell a cell that may have gone back in time what this instance runs."""
        state = self._begin()
        refused = self._refusal(instance, epoch)
        if refused:
            return refused
        for told in running:
            state.shape(read_head(told.entry).shape)  # an entry that is none fails before anything is changed
        stream_ids = tuple([self._resync(instance, told) for told in running])
        if is_last and state.instances[instance].reason == RESUMING:
            self._open(instance)
        state.end_call()
        return Resynced(state.generation, stream_ids)

    def _is_same(self, place: Place, head: Head) -> bool:
        """Whether it is this attempt of this record: another one of the same id has another arrival."""
        there = read_head(moves.entry_of(self._state, head.id))
        return place.attempt == head.attempt and bucket_ms(there.arrived_ms) == bucket_ms(head.arrived_ms)

    def _resync(self, instance: str, told: Running) -> str | None:
        state, task_id = self._state, told.task_id
        place, head = state.places.get(task_id), read_head(told.entry)
        if place and place.state == "queued":
            return place.at if (place.instance, place.attempt) == (instance, told.attempt) else None
        if task_id in state.done[0] or task_id in state.done[1]:
            return None
        is_its_own = (head.id, head.attempt) == (task_id, told.attempt)
        if not is_its_own or not state.instances[instance].has_room(state.shape(head.shape)):
            return None
        if place and not (self._is_same(place, head) and moves.unplace(state, task_id, place)):
            return None
        return moves.place(state, instance, head, told.entry, "r")
