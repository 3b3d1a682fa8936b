"""The ledger: follows every call of the cell and says which promise of the design (section 8) it has broken.

It keeps its own account, from calls, replies and the raw queues: of what the twin itself counts it believes nothing.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from taskyard.dispatcher.cell.contract import Applied, Batch, Ending, Finished, Outgoing
from taskyard.dispatcher.cell.twin_state import TwinState
from taskyard.schemas.codec import codec_of
from tests.simulation.broker import Broker
from tests.simulation.sight import Sight, Site, Spot, decoded, look


class End(NamedTuple):
    """One end of a task, as it came into the outbox."""

    at_s: float
    attempt: int
    status: str


class Ledger:
    """Told of each call after it was executed. report: takes (invariant, what is wrong)."""

    def __init__(
        self, state: Callable[[], TwinState], broker: Broker, now_s: Callable[[], float],
        report: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self._state = state
        self._broker = broker
        self._now_s = now_s
        self._report = report
        self._last = look(state())
        self._outbox_to = (0, 0)
        self.ends: defaultdict[str, list[End]] = defaultdict(list)
        # (task id, attempt) -> when a finish of it was accepted.
        self.accepted: dict[tuple[str, int], float] = {}
        # Tasks whose end was lost when the cell went back: they may end once more.
        self.excused: set[str] = set()
        self._is_lost = False

    @property
    def sight(self) -> Sight:
        """The cell after the last call."""
        return self._last

    def rolled_back(self, to_s: float) -> None:
        """The cell has gone back to that moment."""
        for task_id, ends in self.ends.items():
            if any(end.at_s >= to_s for end in ends):
                self.excused.add(task_id)
        self.accepted = {key: at_s for key, at_s in self.accepted.items() if at_s < to_s}
        self._last = look(self._state())
        self._outbox_to = max((_parts(row) for row in self._state().outbox.items), default=(0, 0))

    def lost(self, published: set[str]) -> None:
        """The cell has lost everything. published: tasks whose outcomes are on Kafka; all others may end once more."""
        self.excused |= self.ends.keys() - published
        self.accepted = {}
        self._is_lost, self._outbox_to = True, (0, 0)
        self._last = look(self._state())

    def executed(self, name: str, arguments: Sequence[Any], end: Any) -> None:
        """Check one call."""
        before, after = self._last, look(self._state())
        self._last = after
        ended = self._new_ends()
        for task_id in after.twice:
            self._report("2 one place", f"{task_id} is in two places after {name}")
        self._check_sites(name, after)
        allowed = self._arrived(name, arguments, end, before, ended)
        ended |= self._taken_away(name, arguments, before)
        self._check_conservation(name, before, after, allowed, ended)
        self._check_offsets(name, end, before, after)
        if name == "finish":
            self._check_finish(arguments, end, before)
        if name != "resync":
            self._check_order(name, before, after)
            # A hold may be served by the call that takes it.
            self._check_room(name, before, after, ended, held=arguments[1] if name == "hold" else "")

    def _taken_away(self, name: str, arguments: Sequence[Any], before: Sight) -> set[str]:
        """The tasks that `remember` may take from where they are: their outcomes are on Kafka."""
        taken = before.spots.keys() & set(arguments[0]) if name == "remember" else set[str]()
        for task_id in taken:
            if not self._has_ended(task_id):
                self._report("1 exactly once", f"{task_id} is remembered, and has never ended")
        return taken

    def _new_ends(self) -> set[str]:
        """The tasks that came into the outbox with this call."""
        found: set[str] = set()
        for stream_id, row in self._state().outbox.items.items():
            if _parts(stream_id) <= self._outbox_to:
                continue
            self._outbox_to = _parts(stream_id)
            end = _end(self._now_s(), row)
            if end is None:
                continue
            task_id = end[0]
            if task_id in found:
                self._report("1 exactly once", f"{task_id} ended twice in one call")
            found.add(task_id)
            if not self._may_end(task_id, end[1]):
                self._report("1 exactly once", f"{task_id} ended again: {end[1]} after {self.ends[task_id]}")
            self.ends[task_id].append(end[1])
        return found

    def _may_end(self, task_id: str, end: End) -> bool:
        before = self.ends[task_id]
        # A worker that was never told that its finish counted tells it once more to a cell that has lost it.
        is_same = self._is_lost and end[1:] in {one[1:] for one in before}
        return not before or task_id in self.excused or is_same

    def _check_sites(self, name: str, after: Sight) -> None:
        for instance, site in after.sites.items():
            for resource, free in site.free.items():
                capacity, used = site.capacity.get(resource, 0), site.used.get(resource, 0)
                if not 0 <= used <= capacity or capacity - free != used:
                    what = f"{instance} {resource}: capacity {capacity}, free {free}, on its queue {used}, after {name}"
                    self._report("3 capacity", what)

    def _arrived(self, name: str, arguments: Sequence[Any], end: Any, before: Sight, ended: set[str]) -> set[str]:
        """The tasks that this call may have brought."""
        if name == "resync":
            told = {running.task_id for running in arguments[2]}
            if not self._state().is_begun:
                # A worker that was away for long tells of a task that has ended since, and the cell cannot know yet.
                self.excused |= told - before.spots.keys()
            return told
        if name == "restore":
            return {decoded(entry).id for entry in arguments[0]}
        if name != "apply" or not isinstance(end, Applied):
            return set()
        batch: Batch = arguments[0]
        self._check_records(batch, before)
        allowed: set[str] = set()
        for planned, result in zip(batch.tasks, end.results, strict=True):
            task_id = decoded(planned.entry).id
            if result != "k":
                had_ended = len(self.ends.get(task_id, ())) > (task_id in ended)
                is_ended = had_ended and task_id not in self.excused
                if task_id in before.spots or task_id in allowed or is_ended:
                    self._report("1 exactly once", f"{task_id} was taken though it is known: {result}")
                allowed.add(task_id)
            elif task_id not in before.spots and task_id not in allowed and not self._has_ended(task_id):
                self._report("1 exactly once", f"{task_id} was skipped as known, and is nowhere")
        return allowed

    def _has_ended(self, task_id: str) -> bool:
        return bool(self.ends.get(task_id))

    def _check_records(self, batch: Batch, before: Sight) -> None:
        """The batch begins where its partitions stand, and brings exactly what the log has in its ranges."""
        count, ids = 0, {decoded(planned.entry).id for planned in batch.tasks}
        for incarnation, start, end in batch.ranges:
            stand = before.applied.get(incarnation, start)
            if stand != start:
                self._report("1 exactly once", f"{incarnation} stands at {stand} and took records from {start} on")
            topic_id, _, partition = incarnation.rpartition(":")
            topic = self._broker.by_id(topic_id)
            if topic is None or topic_id in self._broker.past:
                return  # deleted; records of its next life may go by its id, until that is noticed
            log = topic.logs[int(partition)]
            if end > len(log):
                self._report("1 exactly once", f"{incarnation} is applied up to {end}, the log ends at {len(log)}")
            if end < start:  # taken back to the end of a log that was cut
                continue
            count += end - start
            wires = {decoded(p.entry).wire for p in batch.tasks}
            strange = [r.offset for r in log[start:end] if r.value not in wires and is_task(r.value, r.headers)]
            if strange:
                self._report("1 exactly once", f"{incarnation}: records {strange} are not in their batch")
        if count != len(batch.tasks) + len(batch.refused):
            what = f"{count} records in its ranges, {len(batch.tasks)} tasks and {len(batch.refused)} refused"
            self._report("1 exactly once", f"a batch with {what}: {sorted(ids)}")

    def _check_conservation(
        self, name: str, before: Sight, after: Sight, allowed: set[str], ended: set[str]
    ) -> None:  # fmt: skip
        there, was = after.spots.keys(), before.spots.keys()
        if there & ended:
            self._report("2 one place", f"{sorted(there & ended)} ended and are still there, after {name}")
        if lost := was - there - ended:
            self._report("2 one place", f"{sorted(lost)} are gone after {name}")
        if strange := there - was - allowed:
            self._report("2 one place", f"{sorted(strange)} came from nowhere, after {name}")
        if lost := allowed - there - ended if name == "apply" else None:
            self._report("2 one place", f"{sorted(lost)} were applied and are nowhere")
        for task_id, spot in after.spots.items():
            if spot.entry.attempt > spot.entry.max_attempts:
                self._report("4 attempts", f"{task_id} is in attempt {spot.entry.attempt} after {name}")

    def _check_offsets(self, name: str, end: Any, before: Sight, after: Sight) -> None:
        if name == "begin" or (name == "apply" and isinstance(end, Applied)):
            return
        if before.applied != after.applied:
            self._report("1 exactly once", f"{name} moved offsets: {before.applied} to {after.applied}")
        if name == "apply" and before.spots != after.spots:
            self._report("1 exactly once", f"a batch that was answered {end} has changed something")

    def _check_finish(self, arguments: Sequence[Any], end: Any, before: Sight) -> None:
        instance, epoch, endings = arguments
        site = before.sites.get(instance)
        if not isinstance(end, Finished):
            return
        if site is None or site.epoch != epoch:
            self._report("4 epoch", f"{instance} finished with the epoch {epoch}, current: {site and site.epoch}")
        counted = [one for one, is_counted in zip(endings, end.accepted, strict=True) if is_counted]
        # What one of them has ended goes on as the next attempt, which another one of the same call may end.
        begun = {(one.task_id, one.attempt + 1) for one in counted if one.how != "succeeded"}
        for ending in counted:
            self._check_accepted(ending, before, is_begun=(ending.task_id, ending.attempt) in begun)

    def _check_accepted(self, ending: Ending, before: Sight, *, is_begun: bool) -> None:
        spot = before.spots.get(ending.task_id)
        if spot is not None and spot.entry.attempt != ending.attempt and not is_begun:
            what = f"{ending.task_id} is in attempt {spot.entry.attempt}, a finish of {ending.attempt} was accepted"
            self._report("4 attempts", what)
        if ending.how == "unstarted":
            return
        key = ending.task_id, ending.attempt
        if key in self.accepted and ending.task_id not in self.excused:
            self._report("4 attempts", f"a second finish of {key} was accepted")
        self.accepted[key] = self._now_s()

    def _check_order(self, name: str, before: Sight, after: Sight) -> None:
        """Nothing new is on a queue while an earlier one of its shape stayed in the park."""
        for spot in _new(before, after):
            for waiting in after.parked(spot.entry.shape):
                was = before.spots.get(waiting.entry.id)
                if was and was.state == "parked" and waiting.entry.key_ms < spot.entry.key_ms:
                    what = f"{spot.entry.id} ({spot.entry.key_ms}) passed {waiting.entry.id} ({waiting.entry.key_ms})"
                    self._report("5 order", f"{what} of {spot.entry.shape}, in {name}")

    def _check_room(self, name: str, before: Sight, after: Sight, ended: set[str], *, held: str) -> None:
        """What is new on a queue respects headroom and holds."""
        # A late success ends a task that the same call has just placed: it has served its hold.
        served = {before.spots[task_id].entry.shape for task_id in ended & before.spots.keys()}
        came: defaultdict[str, list[Spot]] = defaultdict(list)
        for spot in _new(before, after):
            came[spot.at].append(spot)
        for instance, spots in came.items():
            site, was = after.sites[instance], before.sites.get(instance)
            was = was if was and was.epoch == site.epoch else None
            if was and was.state == "held" and was.held_for not in served:
                self._check_hold(name, was, spots, after)
            elif was and was.state == site.state == "cordoned":
                self._report("4 closed", f"{spots[0].entry.id} came onto the closed {instance} in {name}")
            critical = sum(spot.shape.needs.get("slots", 1) for spot in spots if spot.shape.is_critical)
            others = [spot.entry.id for spot in spots if not spot.shape.is_critical]
            is_held = instance == held or (was is not None and "held" in (was.state, site.state))
            if others and not is_held and site.free["slots"] + critical < site.headroom:
                what = f"{others} on {instance}, {site.free['slots']} slots free"
                self._report("6 headroom", f"{what}, headroom {site.headroom}, in {name}")

    def _check_hold(self, name: str, was: Site, spots: list[Spot], after: Sight) -> None:
        first = min(spots, key=lambda spot: _parts(spot.place))
        if first.entry.shape != was.held_for and after.parked(was.held_for):
            self._report("6 hold", f"{first.entry.id} came onto an instance held for {was.held_for}, in {name}")


def _new(before: Sight, after: Sight) -> list[Spot]:
    """What has come onto a queue."""
    return [
        spot
        for task_id, spot in after.spots.items()
        if spot.state == "queued"
        and ((was := before.spots.get(task_id)) is None or (was.at, was.place) != (spot.at, spot.place))
    ]


def _end(now_s: float, row: Outgoing) -> tuple[str, End] | None:
    if row.kind == "outcome":
        outcome = codec_of(row.body).decode_outcome(row.body)
        return outcome.id, End(now_s, outcome.attempt, outcome.status)
    if row.kind == "dead":
        entry = decoded(row.body)
        return entry.id, End(now_s, entry.attempt, "dead")
    return None


def is_task(value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> bool:
    """Whether a record of the workload was meant as a task."""
    return value is not None and ("poison", b"1") not in headers


def _parts(stream_id: str) -> tuple[int, int]:
    ms, _, sequence = stream_id.partition("-")
    return int(ms), int(sequence or 0)
