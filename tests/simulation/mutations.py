"""Planted bugs: each is one change of one line of the product, and the simulation must find it."""

from typing import NamedTuple


class Mutation(NamedTuple):
    """What to write instead of `old`, which occurs once in the file. seeds: in so many it must be found."""

    name: str
    path: str
    old: str
    new: str
    seeds: int = 200


MUTATIONS = (
    Mutation(
        "a batch is taken wherever its partition stands",
        "dispatcher/cell/twin_tick.py",
        "refused = self._fence(batch) or self._full(",
        "refused = self._full(",
    ),
    Mutation(
        "a finished task is not known any more",
        "dispatcher/cell/twin_tick.py",
        "if head.id in state.places or any(head.id in half for half in state.done):",
        "if head.id in state.places:",
    ),
    Mutation(
        "an old epoch is as good as the current one",
        "dispatcher/cell/twin.py",
        'return None if live.epoch == epoch else Refused("stale")',
        "return None",
    ),
    Mutation(
        "finish does not give back",
        "dispatcher/cell/twin.py",
        "        moves.give(state, instance, state.shape(place.shape))\n        return True",
        "        return True",
    ),
    Mutation(
        "finish gives back twice",
        "dispatcher/cell/twin.py",
        "        moves.give(state, instance, state.shape(place.shape))\n        return True",
        "        moves.give(state, instance, state.shape(place.shape))\n"
        "        moves.give(state, instance, state.shape(place.shape))\n        return True",
    ),
    Mutation(
        "low priorities take the headroom",
        "dispatcher/cell/twin_state.py",
        'headroom = 0 if shape.is_critical or self.state == "held" else self.headroom',
        "headroom = 0",
    ),
    Mutation(
        "a hold holds for nobody",
        "dispatcher/cell/twin_state.py",
        'if self.state == "cordoned" or (self.state == "held" and self.held_for != shape.text):',
        'if self.state == "cordoned":',
    ),
    Mutation(
        "a new task passes those that are parked",
        "dispatcher/cell/twin_state.py",
        "return bool(rows) and rows[0][0] <= key_ms",
        "return False",
    ),
    Mutation(
        "any attempt may finish late",
        "dispatcher/cell/twin.py",
        'if ending.how != "succeeded" or is_over or (place and place.attempt != ending.attempt):',
        'if ending.how != "succeeded" or is_over:',
    ),
    Mutation(
        "nobody is evicted",
        "dispatcher/tick.py",
        "        await self._evict()\n",
        "",
    ),
    Mutation(
        "the relay trims before it publishes",
        "dispatcher/relay.py",
        "                await self._publish_in_order([record for row in outgoing for record in self.records(row)])\n"
        "                await self._cell.trim([row.stream_id for row in outgoing])\n",
        "                await self._cell.trim([row.stream_id for row in outgoing])\n"
        "                await self._publish_in_order([record for row in outgoing for record in self.records(row)])\n",
    ),
    Mutation(
        "the lanes do not go back with the history",
        "dispatcher/recovery.py",
        "            self.on_other_history()\n",
        "            pass\n",
    ),
    Mutation(
        "a recovery does not ask what has ended",
        "dispatcher/recovery.py",
        "            count += await self._cell.remember(task_ids[first : first + _REMEMBERED_AT_ONCE])\n",
        "            count += len(task_ids[first : first + _REMEMBERED_AT_ONCE])\n",
    ),
    Mutation(
        "the watermark is what is applied",
        "dispatcher/watermark.py",
        "Mark(min(at, first.get(name, at)), since_ms)",
        "Mark(at, since_ms)",
    ),
    Mutation(
        "intake goes by the offsets of the group",
        "dispatcher/intake.py",
        "{p: applied.get(self._incarnation(p), beginnings.get(p, 0)) for p in ours}",
        "{p: max(self._committed.get(p, 0), applied.get(self._incarnation(p), beginnings.get(p, 0))) for p in ours}",
    ),
    Mutation(
        "a drain leaves its lease behind",
        "dispatcher/tick.py",
        "await self._lease.give_back()",
        "pass",
    ),
)


HUNT = """
import sys
from tests.simulation.run import case, play, simulation
with simulation():
    for seed in range(int(sys.argv[1])):
        violation = play(case(seed)).violation
        if violation is not None:
            print(f"{seed + 1} {violation}")
            break
"""
"""A program: how many seeds it took, and what was broken; nothing if all promises held."""
