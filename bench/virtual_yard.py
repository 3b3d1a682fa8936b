"""Ours in virtual time: the real plan, view of the fleet, tick and in-memory cell, on services whose length is known.

Deciding takes no time here, nor does the way to a worker: what is left is the wait that the placing itself causes, by
a view that is a little old, by headroom, and by what is parked. The real loops in real time are `taskyard replay`.
"""

import heapq
import random
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from bench.central_queue import Job
from taskyard.dispatcher.arrivals import Arrival
from taskyard.dispatcher.batches import batch_of
from taskyard.dispatcher.cell.contract import Applied, Ending, Finished, Registration
from taskyard.dispatcher.cell.twin import TwinCell
from taskyard.dispatcher.core.fleet import Fleet
from taskyard.dispatcher.core.load import WARM_UP_MS, LeastAgentLoad
from taskyard.dispatcher.core.plan import plan
from taskyard.dispatcher.core.shapes import shape_text
from taskyard.dispatcher.intake import Chunk
from taskyard.dispatcher.lane import PARKED_PERMILLE
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.settings import Settings
from taskyard.dispatcher.tick import Tick
from taskyard.schemas.entry import decode_entry
from taskyard.schemas.priority import PRIORITIES
from taskyard.workers.instance import InstanceSpec

# Nobody beats: the leases outlast every run.
_LEASE_MS = 2**31 - 1
# The instances have warmed up when the first task comes.
_BEGIN_MS = 1_700_000_000_000
_AT_ONCE = 1_000
# At one moment: what ends first frees its slot for what comes; a reading of the fleet sees neither half done.
_END, _VIEW, _TICK, _ARRIVE = range(4)


class Seen(NamedTuple):
    """What came of a run. waits_ms: of each job, in order. parked: how many had to wait in the park.

    elsewhere: how many came onto another open instance than those planned, which the plan's view did not show as free.
    """

    waits_ms: list[float]
    parked: int
    elsewhere: int


class VirtualYard:
    """One run, for one call of `run`. Everything is written by it."""

    def __init__(
        self, jobs: Sequence[Job], fleet: Sequence[InstanceSpec], settings: Settings, *, dispatchers: int, seed: int
    ) -> None:
        self._jobs = jobs
        self._specs = fleet
        self._settings = settings
        self._chance = random.Random(seed)
        self._now_ms = float(-WARM_UP_MS)
        self._cell = TwinCell(random.Random(seed + 1), lambda: _BEGIN_MS + int(self._now_ms))
        # Each dispatcher knows its own placements at once, those of the others with its next reading.
        self._fleets = [Fleet(LeastAgentLoad()) for _ in range(dispatchers)]
        self._tick = Tick(self._cell, self._cell, self._fleets[0], settings, Metrics(), "wait")
        self._epochs = {spec.id: f"{number:08x}" for number, spec in enumerate(fleet)}
        self._cursors = dict.fromkeys(self._epochs, "0-0")
        self._numbers: dict[str, int] = {job.task.id: number for number, job in enumerate(jobs)}
        self._waits_ms: dict[int, float] = {}
        self._left = len(jobs)
        self._parked = self._elsewhere = 0
        # (moment, kind, a number that keeps the order, what else is to be known)
        self._events: list[tuple[float, int, int, tuple[str, Ending] | int]] = []

    async def run(self) -> Seen:
        """Play all jobs to their end. Raises RuntimeError if one was not run exactly once."""
        await self._open()
        arrivals = [list(group) for _, group in groupby(self._jobs, lambda job: job.at_ms)]
        for number, moment in enumerate(arrivals):
            self._at(moment[0].at_ms, _ARRIVE, number)
        while self._left:
            self._now_ms, kind, _, about = heapq.heappop(self._events)
            if isinstance(about, tuple):
                await self._end(*about)
            elif kind == _ARRIVE:
                await self._arrive(arrivals[about])
            elif kind == _VIEW:
                await self._look(about)
            else:
                await self._do_tick()
        if len(self._waits_ms) != len(self._jobs):
            raise RuntimeError(f"{len(self._waits_ms)} of {len(self._jobs)} tasks were run")
        return Seen([self._waits_ms[number] for number in range(len(self._jobs))], self._parked, self._elsewhere)

    def _at(self, ms: float, kind: int, about: int) -> None:
        heapq.heappush(self._events, (ms, kind, about, about))

    async def _open(self) -> None:
        await self._cell.open(self._settings.cell_config())
        await self._cell.begin({})
        for spec in self._specs:
            offer = Registration(spec.types, spec.capacity, spec.labels, _LEASE_MS)
            await self._cell.register(spec.id, self._epochs[spec.id], offer)
        self._now_ms = 0.0
        views, resources = await self._cell.instances(), await self._cell.resources()
        for number, fleet in enumerate(self._fleets):
            fleet.replace(views, resources, now_ms=_BEGIN_MS)
            # They do not read at the same moments.
            self._at(self._settings.tick.view_ms * (1 + number / len(self._fleets)), _VIEW, number)
        self._at(self._settings.tick.period_ms, _TICK, 0)

    async def _look(self, dispatcher: int) -> None:
        """Refresh one dispatcher's view."""
        self._fleets[dispatcher].refresh(await self._cell.vectors(), now_ms=_BEGIN_MS + self._now_ms)
        self._at(self._now_ms + self._settings.tick.view_ms, _VIEW, dispatcher)

    async def _do_tick(self) -> None:
        await self._tick.step()
        outgoing = await self._cell.outbox(count=_AT_ONCE)
        await self._cell.trim([row.stream_id for row in outgoing])
        await self._start_on(list(self._cursors))
        self._at(self._now_ms + self._settings.tick.period_ms, _TICK, 0)

    async def _arrive(self, moment: Sequence[Job]) -> None:
        """Each priority has a lane of its own, and its partition some dispatcher."""
        for priority in PRIORITIES:
            jobs = [job for job in moment if job.task.priority == priority]
            for first in range(0, len(jobs), self._settings.intake.batch):
                await self._place(jobs[first : first + self._settings.intake.batch], priority)

    async def _place(self, jobs: Sequence[Job], priority: str) -> None:
        """Do what a lane does with a batch."""
        fleet, now_ms, seed = self._chance.choice(self._fleets), _BEGIN_MS + self._now_ms, self._chance.getrandbits(32)
        arrivals = sorted(map(_arrival, jobs), key=lambda arrival: arrival.key_ms)
        decisions = plan([a.shape for a in arrivals], fleet, now_ms=now_ms, tie=random.Random(seed).random)
        batch = batch_of(
            Chunk((), arrivals, (), 0), arrivals, decisions, policy=fleet.policy.name, seed=seed,
            view_age_ms=int(now_ms - fleet.seen_ms), parked_permille=PARKED_PERMILLE[priority],
        )  # fmt: skip
        applied = await self._cell.apply(batch)
        assert isinstance(applied, Applied), applied
        self._parked += applied.results.count("p")
        elsewhere = applied.results.count("o")
        self._elsewhere += elsewhere
        chosen = {instance.id for decision in decisions for instance in decision.candidates}
        await self._start_on(list(self._cursors if elsewhere else chosen))

    async def _start_on(self, instances: Sequence[str]) -> None:
        """Let the instances read their queues: what is there holds its slot, so it starts."""
        cursors = {name: self._cursors[name] for name in instances}
        for delivery in await self._cell.read(cursors, count=_AT_ONCE, block_ms=0):
            self._cursors[delivery.instance] = delivery.stream_id
            number = self._numbers[decode_entry(delivery.entry).id]
            if number in self._waits_ms:
                raise RuntimeError(f"task {number} was placed twice")
            job = self._jobs[number]
            self._waits_ms[number] = self._now_ms - job.at_ms
            how, detail = ("gave_up", b"failed in the recording") if job.is_failed else ("succeeded", b"")
            ending = Ending(job.task.id, delivery.stream_id, 1, how, detail)
            event = (self._now_ms + job.service_ms, _END, number, (delivery.instance, ending))
            heapq.heappush(self._events, event)

    async def _end(self, instance: str, ending: Ending) -> None:
        """End a task: what it frees takes what is parked, in the same call."""
        finished = await self._cell.finish(instance, self._epochs[instance], [ending])
        assert isinstance(finished, Finished), finished
        assert all(finished.accepted), ending
        self._left -= 1
        if finished.pulled:
            await self._start_on([instance])


def _arrival(job: Job) -> Arrival:
    task = job.task
    return Arrival(
        task.id, shape_text(task), _BEGIN_MS + job.key_ms, 0, _BEGIN_MS + job.at_ms, task.max_attempts, (), b""
    )
