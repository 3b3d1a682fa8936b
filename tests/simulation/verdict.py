"""The verdict: what must hold while the world is quiet, and once it has ended."""

from collections import defaultdict
from collections.abc import Iterable

from taskyard.schemas.codec import codec_of
from taskyard.schemas.outcome import Outcome
from tests.simulation.sight import Spot
from tests.simulation.world import World

_SETTLED_S = 1.5
"""A parked task beside an instance that fits it for so long was passed by several settles."""
_CALMED_S = 4.0
"""After so long without a fault the dispatchers tick again: their leases have run out, and they see the fleet.

Both together are the bound: what is parked may stay so long after the last fault. Waited for are, side by side, the
lease of a dead ticker (2 s, `tick._LEASE_MS`, and an eighth until another asks again), a loop that has failed many
times (5 s, `repeat._CAP_S`) and a view that came slowly (2 s, `watch._LONGEST_PAUSE_S`); then one after the other a
view and a tick (150 ms each, `_settings`) and the calls of that tick (below 0.1 s). That is 5.4 s at most, of the 5.5 s
that are allowed.
"""


class Watcher:
    """Looks at the world from time to time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._since_s: dict[tuple[str, str], float] = {}

    def look(self) -> None:
        """While nothing is wrong, no first task of a shape stays parked beside an open instance that fits it."""
        if self._world.loop.time() - self._world.disturbed_s < _CALMED_S:
            self._since_s.clear()
            return
        sight, now_s = self._world.ledger.sight, self._world.loop.time()
        heads: dict[str, Spot] = {}
        for spot in sight.spots.values():
            if spot.state == "parked" and spot.place == "0":
                heads[spot.entry.id] = spot
        fitting = {
            (task_id, name)
            for task_id, spot in heads.items()
            for name, site in sight.sites.items()
            if site.fits(spot.shape, is_first_of_hold=site.held_for == spot.entry.shape)
        }
        self._since_s = {pair: self._since_s.get(pair, now_s) for pair in fitting}
        for (task_id, instance), since_s in self._since_s.items():
            if now_s - since_s > _SETTLED_S:
                calm = f"nothing is wrong from {self._world.disturbed_s:.2f} s on"
                what = f"{task_id} is parked beside {instance}, which fits it, from {since_s:.2f} s on; {calm}"
                self._world.violated("6 work-conserving", what)


def judge(world: World) -> None:
    """Judge a world in which everything has been stopped in good order."""
    state = world.server.twin.state
    for name, (owner, until_ms) in state.locks.items():
        holder = world.owners.get(owner)
        if holder in world.stopped and until_ms >= world.server.now_ms() and name not in holder.kept_leases:
            world.violated("no lease is left", f"{name} is still {owner}'s after a clean stop")
    # Of two processes under one id the one that was killed may have had the lease.
    crews = world.present.keys() - world.doubled
    left = state.instances.keys() & {name for crew in crews for name in world.present[crew]}
    if left:
        world.violated("no lease is left", f"{sorted(left)} are registered after a clean stop")
    _judge_outcomes(world)
    _judge_letters(world)
    if world.broken.done():
        world.broken.result()


def _judge_outcomes(world: World) -> None:
    values: defaultdict[str, list[bytes]] = defaultdict(list)
    for value in world.values(world.topics.results):
        values[codec_of(value).decode_outcome(value).id].append(value)
    returned = {(run.task_id, run.attempt) for run in world.runs if run.how == "returned"}
    may_be_lost = world.deleted | (world.vanished if world.befallen.keys() & {"rollback", "lost"} else set[str]())
    for task_id in sorted(world.published):
        found = values.pop(task_id, [])
        if not found and task_id in may_be_lost:
            continue
        if not found:
            world.violated("1 exactly once", f"{task_id} has no outcome; its ends: {world.ledger.ends[task_id]}")
            continue
        outcomes = [codec_of(value).decode_outcome(value) for value in found]
        if len(set(found)) > 1 and task_id not in world.ledger.excused:
            world.violated("1 exactly once", f"{task_id} has several outcomes: {_brief(outcomes)}")
        if len(found) > 1 and not world.befallen and task_id not in world.ledger.excused:
            world.violated("1 exactly once", f"{task_id} was published twice without a fault: {_brief(outcomes)}")
        for outcome in outcomes:
            _judge_outcome(world, outcome, returned)
    if values:
        world.violated("1 exactly once", f"outcomes of tasks that nobody published: {sorted(values)}")


def _judge_outcome(world: World, outcome: Outcome, returned: set[tuple[str, int]]) -> None:
    if outcome.status == "succeeded" and (outcome.id, outcome.attempt) not in returned:
        world.violated("1 exactly once", f"{outcome.id} succeeded in attempt {outcome.attempt}, which never returned")
    is_impossible = outcome.id in world.scene.impossible
    if is_impossible and outcome.status != "dead":
        world.violated("3 capacity", f"{outcome.id} cannot run anywhere, and {outcome.status}")
    if outcome.cause.startswith("age: no instance had room"):
        world.violated("5 bounded wait", f"{outcome.id} was never placed: {outcome.cause}")


def _judge_letters(world: World) -> None:
    """Each poison record has its letter, each dead task too."""
    letters = [codec_of(value).decode_dead_letter(value) for value in world.values(world.topics.dead_letter)]
    told = {(letter.topic, letter.partition, letter.offset) for letter in letters if letter.topic}
    for place in sorted(world.poison - told):
        world.violated("1 exactly once", f"the record {place} was poison and has no dead letter")
    dead = {letter.id for letter in letters if not letter.topic}
    for task_id, ends in world.ledger.ends.items():
        if any(end.status == "dead" for end in ends) and task_id not in dead and task_id not in world.ledger.excused:
            world.violated("2 one place", f"{task_id} is dead and has no letter")


def _brief(outcomes: Iterable[Outcome]) -> str:
    return ", ".join(f"{one.status} {one.attempt} on {one.instance} at {one.finished_ms}" for one in outcomes)
