"""The twin's recovery: how it begins, what has ended, what is carried (`library/carry.lua`, `tick.lua`)."""

from collections.abc import Mapping, Sequence

from taskyard.dispatcher.cell import twin_moves as moves
from taskyard.dispatcher.cell.contract import Outgoing, Place
from taskyard.dispatcher.cell.recovery import CARRIED_AGE_MS, Incarnation, OldTasks
from taskyard.dispatcher.cell.twin_entry import read_head
from taskyard.dispatcher.cell.twin_state import TwinState
from taskyard.dispatcher.cell.twin_view import TwinView, bucket_ms
from taskyard.schemas.errors import DependencyError


class TwinRecovery(TwinView):
    """The contract's RecoveryCell."""

    def _begin(self) -> TwinState:
        self._state.now_ms = self._clock()
        return self._state

    async def remember(self, task_ids: Sequence[str]) -> int:
        """Note tasks that have ended, in a cell that has not begun."""
        state, count = self._begin(), 0
        if state.is_begun:
            return 0
        for task_id in dict.fromkeys(task_ids):
            if not any(task_id in half for half in state.done):
                moves.remove(state, task_id)
                state.remember(task_id, Place("finished", str(state.now_ms), 0, "", "", "", None))
                count += 1
        state.end_call()
        return count

    async def begin(
        self, applied: Mapping[Incarnation, int], *, until: Mapping[Incarnation, int] = {}, generation: str = ""
    ) -> bool:
        """Let the cell take batches, each partition from this offset on."""
        state = self._begin()
        if state.is_begun or generation not in ("", state.generation):
            return False
        state.replay = dict(until)
        state.applied.update(applied)
        state.is_begun = True
        return True

    async def restore(self, entries: Sequence[bytes]) -> int:
        """Place or park carried tasks again, in a cell that has not begun."""
        state, count = self._begin(), 0
        heads = [read_head(entry) for entry in entries]
        for head in heads:
            state.shape(head.shape)
        if state.is_begun:
            return 0
        for head, entry in zip(heads, entries, strict=True):
            if head.id in state.places:
                self._carry(head.id)
            elif any(head.id in half for half in state.done):
                state.outbox.add(Outgoing("", "uncarried", head.id.encode()), state.now_ms)
            else:
                state.carried.add(head.id)
                moves.place_or_park(state, entry, "c")
                count += 1
        state.end_call()
        return count

    async def old(self, cursor: str, *, before_ms: int) -> OldTasks:  # noqa: ARG002 - one page has them all
        """Scan for old unfinished tasks that are not carried."""
        carried, until_ms = self._state.carried, bucket_ms(before_ms)
        found = [name for name in self._state.places if name not in carried and self._arrival(name) < until_ms]
        return OldTasks("", tuple(found))

    async def copies(self, task_ids: Sequence[str]) -> list[bytes]:
        """Read the entries of these tasks as they are now."""
        return [moves.entry_of(self._state, name) if name in self._state.places else b"" for name in task_ids]

    async def carry(self, task_ids: Sequence[str]) -> tuple[bool, ...]:
        """Note that copies of these tasks are safe elsewhere."""
        if not self._begin().is_begun:
            raise DependencyError("the cell refused it: the cell has not begun")
        return tuple([self._carry(task_id) for task_id in task_ids])

    def _carry(self, task_id: str) -> bool:
        state = self._state
        is_old = task_id in state.places and state.now_ms - self._arrival(task_id) > CARRIED_AGE_MS
        if is_old:
            state.carried.add(task_id)
        return is_old

    def _arrival(self, task_id: str) -> int:
        return bucket_ms(read_head(moves.entry_of(self._state, task_id)).arrived_ms)
