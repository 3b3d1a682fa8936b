"""Figure 7: what a finish costs the server when it pulls, against one that pulls nothing.

Both sides: the same calls of the worker's client, eight endings each, eight calls in flight, on instances of five
agent types, beside 100,000 parked tasks in 200 shapes. On our side the instances serve those, so each slot that is
freed takes one of them; on the other side the parked ones are of other types, and the instances are filled again
between two measurements. Measured is the processor time of the Valkey process over the finish calls alone.
So nothing but the pulling differs; beside an empty park a finish that pulls nothing is cheaper, and the ratio higher.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from bench.pairs import Row, Sample
from bench.rig import Rig
from bench.stage import Entries, Kind, Placeholder, Stage, kinds, staged
from taskyard.dispatcher.cell.contract import Ending, Finished
from taskyard.schemas.codec import JSON
from taskyard.schemas.entry import decode_entry
from taskyard.schemas.outcome import Outcome

TYPES = 5
SHAPES = 200
ENDINGS = 8
SLOTS = 64
INSTANCES = 40
# What an instance is filled with: its slots less the share that only critical tasks take.
_USUAL = 60
_IN_FLIGHT = 8
_MAX_CPU_MILLI = 100 * SHAPES // TYPES
_ROOMY = {"slots": SLOTS, "cpu_milli": SLOTS * _MAX_CPU_MILLI}
# So that slots and processor time are both used up: the first of a type often does not fit, and others are looked at.
_TIGHT = {"slots": SLOTS, "cpu_milli": _USUAL * _MAX_CPU_MILLI // 2}
_LIMIT = 8.0


def rows(rig: Rig, *, parked: int, finishes: int) -> list[Row]:
    """Figure 7, where whatever is first fits; and where it often does not."""
    base = partial(_run, rig, parked, finishes, _ROOMY, is_pulling=False)
    what = f"a finish that pulls, {parked:,} parked in {SHAPES} shapes, {TYPES} types an instance"
    row = Row(
        "pull", what, "a finish that pulls nothing",
        partial(_run, rig, parked, finishes, _ROOMY, is_pulling=True), base, 2, 1.5,
        limit=_LIMIT, unit="us of Valkey/finish", is_cost=True,
    )  # fmt: skip
    tight = partial(_run, rig, parked, finishes, _TIGHT, is_pulling=True)
    scarce = f"{what}; processor time as scarce as slots"
    return [row, row._replace(name="pull-tight", what=scarce, ours=tight, must=0, aim=0)]


def _run(rig: Rig, parked: int, finishes: int, capacity: dict[str, int], *, is_pulling: bool) -> Sample:
    rig.reset()
    return asyncio.run(_finished(rig, parked, finishes, capacity, is_pulling=is_pulling))


async def _finished(rig: Rig, parked: int, finishes: int, capacity: dict[str, int], *, is_pulling: bool) -> Sample:
    served, others = [f"type-{n}" for n in range(TYPES)], [f"other-{n}" for n in range(TYPES)]
    rounds = max(1, finishes // (INSTANCES * ENDINGS))
    finishes = rounds * INSTANCES * ENDINGS
    async with staged(rig.redis_url, rig.new_name()) as stage:
        if is_pulling:  # in the middle of the run there are as many as wanted
            count = parked + INSTANCES * _USUAL + finishes // 2
            await stage.park(_entries(served, "a"), count)
        else:
            await stage.park(_entries(others, "a"), parked)
        fleet = await stage.register(INSTANCES, served, capacity)
        again = _entries(served, "b")
        if not is_pulling:
            await stage.place(again, fleet, _USUAL)
        cpu_s, pulled = 0.0, 0
        for _ in range(rounds):
            spent_s, came = await _finish_round(rig, stage, fleet)
            cpu_s, pulled = cpu_s + spent_s, pulled + came
            if not is_pulling:
                await stage.place(again, fleet, ENDINGS)
        left = (await stage.view.level()).parked
    _check(pulled, finishes, is_pulling=is_pulling, is_roomy=capacity == _ROOMY)
    cost_us = 1e6 * cpu_s / finishes
    return Sample(cost_us, {"valkey": cost_us}, {"finishes": finishes, "pulled": pulled, "parked_at_end": left})


def _entries(types: Sequence[str], name: str) -> Entries:
    found: list[Kind] = kinds(types, SHAPES // TYPES)
    return Entries(found, name=name)


async def _finish_round(rig: Rig, stage: Stage, fleet: Sequence[Placeholder]) -> tuple[float, int]:
    """End the oldest tasks of each instance; return the server's seconds and how many were pulled."""
    turns = asyncio.Semaphore(_IN_FLIGHT)

    async def finish(instance: Placeholder, endings: list[Ending]) -> int:
        async with turns:
            reply = await stage.cell.finish(instance.id, instance.epoch, endings)
        if not isinstance(reply, Finished) or not all(reply.accepted):
            raise RuntimeError(f"a finish on {instance.id} did not count: {reply}")
        return reply.pulled

    calls = [(instance, await _oldest(stage, instance)) for instance in fleet]
    before_s = rig.valkey_cpu_s()
    pulled = await asyncio.gather(*[finish(*call) for call in calls])
    return rig.valkey_cpu_s() - before_s, sum(pulled)


async def _oldest(stage: Stage, instance: Placeholder) -> list[Ending]:
    found = await stage.view.queue(instance.id, count=ENDINGS)
    if len(found) < ENDINGS:
        raise RuntimeError(f"{instance.id} has {len(found)} tasks, too few for one call")
    entries = [(delivery.stream_id, decode_entry(delivery.entry)) for delivery in found]
    return [
        Ending(entry.id, stream_id, entry.attempt, "succeeded", _outcome(entry.id, instance.id))
        for stream_id, entry in entries
    ]


def _outcome(task_id: str, instance: str) -> bytes:
    now_ms = 1_700_000_000_000  # any; a real one has as many digits
    return JSON.encode_outcome(
        Outcome(
            id=task_id, type="type-0", status="succeeded", attempt=1, instance=instance,
            result=JSON.encode_payload(200), arrived_ms=now_ms, placed_ms=now_ms, started_ms=now_ms, finished_ms=now_ms,
        )
    )  # fmt: skip


def _check(pulled: int, finishes: int, *, is_pulling: bool, is_roomy: bool) -> None:
    """Raise RuntimeError if the run was of something else."""
    if not is_pulling and pulled:
        raise RuntimeError(f"{pulled} tasks were pulled where nothing should be")
    if is_pulling and is_roomy and pulled != finishes:
        raise RuntimeError(f"{pulled} tasks were pulled by {finishes} finishes, wanted one each")
