"""The gauge: reads how full the cell is, again and again, and keeps what a report needs."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from taskyard.dispatcher.cell.view import RedisView
from taskyard.dispatcher.cli.rehearsal.heat import Heat
from taskyard.schemas.errors import DependencyError
from taskyard.workers.instance import InstanceSpec


class Sample(NamedTuple):
    """The cell at one moment. used: units held, per resource. slots_by_type: agent type -> slots (used, all) of the
    instances that serve it. parked_by_type: parked tasks. instances: how many of the fleet are registered."""

    mono_s: float
    used: dict[str, int]
    slots_by_type: dict[str, tuple[int, int]]
    parked: int
    parked_by_type: dict[str, int]
    later: int
    outbox: int
    instances: int


class Gauge:
    """Samples of a fleet whose instances are known beforehand. Written by `run` only."""

    def __init__(self, view: RedisView, fleet: Sequence[InstanceSpec], *, every_s: float) -> None:
        self._view = view
        self._fleet = {spec.id: spec for spec in fleet}
        self._every_s = every_s
        self.capacity: Counter[str] = Counter()
        for spec in fleet:
            self.capacity.update(spec.capacity)
        self.samples: list[Sample] = []
        self.heat = Heat(fleet)
        self.fault = ""
        self.is_measured = False  # set while tasks are published: only these samples are of the run

    @property
    def last(self) -> Sample | None:
        """The newest sample."""
        return self.samples[-1] if self.samples else None

    async def run(self) -> None:
        """Sample for ever. A cell that does not answer leaves a gap and its reason in `fault`."""
        while True:
            try:
                await self._read()
                self.fault = ""
            except DependencyError as error:
                self.fault = str(error)
            await asyncio.sleep(self._every_s)

    async def _read(self) -> None:
        level, resources, vectors, shapes = await asyncio.gather(
            self._view.level(), self._view.resources(), self._view.vectors(), self._view.shapes()
        )
        used: Counter[str] = Counter()
        by_type: dict[str, list[int]] = {}
        held: dict[str, dict[str, int]] = {}
        for name, spec in self._fleet.items():
            vector = vectors.get(name)
            free = dict(zip(resources, vector.free, strict=False)) if vector else {}
            # An instance that is not registered holds nothing.
            mine = {r: units - free.get(r, 0) for r, units in spec.capacity.items()} if vector else {}
            held[name] = mine
            used.update(mine)
            for agent_type in spec.types:
                counts = by_type.setdefault(agent_type, [0, 0])
                counts[0] += mine.get("slots", 0)
                counts[1] += spec.capacity["slots"]
        parked: Counter[str] = Counter()
        for shape in shapes:
            parked[shape.shape.split("|", 2)[1]] += shape.parked
        self.samples.append(
            Sample(
                time.monotonic(),
                dict(used),
                {agent_type: (counts[0], counts[1]) for agent_type, counts in by_type.items()},
                level.parked,
                dict(parked),
                level.later,
                level.outbox,
                sum(name in vectors for name in self._fleet),
            )
        )
        if self.is_measured:
            self.heat.add(held)
