"""A random life of a cell: batches out of a log and workers that run what they read, up to a failure and after it."""

import random
from collections.abc import Awaitable, Callable
from typing import Any

from taskyard.dispatcher.cell.contract import (
    Applied,
    Batch,
    CellConfig,
    Ending,
    Registered,
    Registration,
    Report,
    Resynced,
    Running,
)
from taskyard.schemas.entry import decode_entry
from tests.contract.rig import PARTITION, UNENDING_MS, Rig

CONFIG = CellConfig(headroom_permille=0, retry_base_ms=0, retry_cap_ms=0, parked_age_ms=UNENDING_MS)
FLEET = {
    "i0": (("a", "b"), {"slots": 4}),
    "i1": (("a",), {"slots": 6, "memory_mib": 4}),
    "i2": (("b",), {"slots": 3}),
}
SHAPES = ("n|a|slots=1|", "c|a|slots=1|", "n|a|slots=2|", "n|b|slots=1|", "n|a|memory_mib=2,slots=1|")
ATTEMPTS = 100  # no task is to wear out


class Story:
    """What exists outside the cell: the log's batches, and what each worker runs. Same seed, same choices."""

    def __init__(self, rig: Rig, seed: int, *, batches: int) -> None:
        self.chance = random.Random(seed)
        self.batches: dict[int, Batch] = {}
        self.running: dict[str, dict[str, Running]] = {name: {} for name in FLEET}
        self.task_ids: set[str] = rig.task_ids
        for _ in range(batches):
            self._write_batch(rig)

    def _write_batch(self, rig: Rig) -> None:
        names = [f"t{len(self.task_ids) + n}" for n in range(self.chance.randint(1, 5))]
        entries = [rig.entry(name, self.chance.choice(SHAPES), attempts=ATTEMPTS) for name in names]
        self.batches[rig.offset] = rig.batch(entries)
        rig.offset += len(entries)

    async def begin(self, rig: Rig, *, is_resuming: bool = False) -> str:
        """Open the cell, begin it unless it has, and register the workers. Returns the generation."""
        opening = await rig.cell.open(CONFIG)
        assert opening.is_begun != await rig.cell.begin({})
        for name in FLEET:
            await self._register(rig, name, is_resuming=is_resuming)
        return opening.generation

    async def _register(self, rig: Rig, name: str, *, is_resuming: bool) -> None:
        types, capacity = FLEET[name]
        offer = Registration(types, capacity, {}, UNENDING_MS)
        registered = await rig.cell.register(name, f"0000-{name}", offer, is_resuming=is_resuming)
        assert isinstance(registered, Registered), registered

    async def live(self, rig: Rig, *, steps: int, on_step: Callable[[], object]) -> None:
        """Do so many things by chance, each at most one call that writes; on_step is called before each."""
        doings = [self.apply, self.apply, self.read, self.read, self.read, self.finish, self.beat, self.tick]
        for _ in range(steps):
            on_step()
            await self.chance.choice(doings)(rig)

    async def apply(self, rig: Rig) -> None:
        """Apply the batch that is next."""
        batch = self.batches.get(await self.offset(rig))
        if batch:
            assert isinstance(await rig.cell.apply(batch), Applied)

    async def offset(self, rig: Rig) -> int:
        """Up to where the cell has applied the log."""
        return (await rig.cell.applied([PARTITION])).get(PARTITION, 0)

    async def read(self, rig: Rig) -> None:
        """Let a worker start what is new on its queue."""
        await self._read(rig, self.chance.choice(list(FLEET)))

    async def _read(self, rig: Rig, name: str) -> None:
        for delivery in await rig.view.queue(name, count=100):
            entry = decode_entry(delivery.entry)
            told = Running(entry.id, delivery.stream_id, entry.attempt, delivery.entry)
            self.running[name].setdefault(entry.id, told)

    async def finish(self, rig: Rig) -> None:
        """Let a worker end one or two of its tasks somehow."""
        name = self.chance.choice(list(FLEET))
        kinds = ("succeeded", "succeeded", "retry", "unstarted")
        ended = self.chance.sample(sorted(self.running[name]), min(len(self.running[name]), self.chance.randint(1, 2)))
        await self._finish(rig, name, {task_id: self.chance.choice(kinds) for task_id in ended})

    async def _finish(self, rig: Rig, name: str, ended: dict[str, Any]) -> None:
        tasks = [self.running[name].pop(task_id) for task_id in ended]
        delay_ms = self.chance.choice([0, 1])
        endings = [
            Ending(task.task_id, task.stream_id, task.attempt, ended[task.task_id], b"detail", delay_ms)
            for task in tasks
        ]
        if endings:
            await rig.cell.finish(name, f"0000-{name}", endings)

    async def beat(self, rig: Rig) -> None:
        """Let a worker beat that has read all."""
        name = self.chance.choice(list(FLEET))
        await rig.cell.beat(name, f"0000-{name}", Report("99999999999999-0"))

    async def tick(self, rig: Rig) -> None:
        """Do one of the dispatcher's duties."""
        name, shape = self.chance.choice(list(FLEET)), self.chance.choice(SHAPES)
        duties: list[Callable[[], Awaitable[object]]] = [
            lambda: rig.cell.due(limit=9),
            lambda: rig.cell.expire(limit=9),
            lambda: rig.cell.settle([(name, shape)], limit=9),
            lambda: rig.cell.hold(shape, name),
            lambda: rig.cell.cordon(name, "maintenance"),
            lambda: rig.cell.cordon(name, ""),
            lambda: rig.cell.lease("tick", "d1", ttl_ms=UNENDING_MS),
        ]
        await self.chance.choice(duties)()

    async def check_applied(self, rig: Rig) -> None:
        """Check that the offset tells which batches are in: all of their tasks are known, none of the others'."""
        offset = await self.offset(rig)
        assert offset in self.batches or offset == max(batch.ranges[0].end for batch in self.batches.values())
        for start, batch in self.batches.items():
            for task in batch.tasks:
                is_known = await rig.view.find(decode_entry(task.entry).id) is not None
                assert is_known == (start < offset), (start, offset)

    async def resume(self, rig: Rig) -> int:
        """Let workers tell what they run, and some end before that. Returns how many are adopted."""
        adopted = 0
        for name, running in self.running.items():
            early = {task_id: "succeeded" for task_id in sorted(running) if self.chance.random() < 0.3}
            await self._finish(rig, name, early)
            told = list(running.values())
            resynced = await rig.cell.resync(name, f"0000-{name}", told)
            assert isinstance(resynced, Resynced), resynced
            for task, stream_id in zip(told, resynced.stream_ids, strict=True):
                place = await rig.view.find(task.task_id)
                is_here = place is not None and (place.state, place.instance, place.attempt) == (
                    "queued", name, task.attempt,
                )  # fmt: skip
                assert (stream_id is not None) == is_here, (task, place)
                running.pop(task.task_id)
                adopted += place is not None and place.via == "r"
                if stream_id:
                    running[task.task_id] = task._replace(stream_id=stream_id)
        return adopted

    async def end(self, rig: Rig) -> dict[str, Any]:
        """Apply the rest of the log, end all tasks well, and return what is left: the same whatever happened before."""
        for name in FLEET:
            await rig.cell.cordon(name, "")
        await rig.until(lambda: self._drained(rig), "all tasks end")
        places = {task_id: await rig.view.find(task_id) for task_id in self.task_ids}
        return {
            "offset": await self.offset(rig),
            "level": (await rig.view.level())[:3],
            "free": {view.id: view.free for view in await rig.view.instances()},
            "unfinished": await rig.view.unfinished(),
            "tasks": {task_id: place and place.state for task_id, place in places.items()},
            "outcomes": [outgoing.kind for outgoing in await rig.cell.outbox(count=10_000)],
        }

    def all_is_well(self) -> dict[str, Any]:
        """What `end` returns: each record was taken once, each task has one outcome, and all capacity is free."""
        return {
            "offset": max(batch.ranges[0].end for batch in self.batches.values()),
            "level": (0, 0, 0),
            "free": {name: capacity for name, (_, capacity) in FLEET.items()},
            "unfinished": {},
            "tasks": dict.fromkeys(self.task_ids, "finished"),
            "outcomes": ["outcome"] * len(self.task_ids),
        }

    async def _drained(self, rig: Rig) -> bool:
        await self.apply(rig)
        await rig.cell.due(limit=100)
        for name in FLEET:
            await rig.cell.settle([(name, shape) for shape in SHAPES], limit=100)
            await self._read(rig, name)
            await self._finish(rig, name, dict.fromkeys(self.running[name], "succeeded"))
        return await self.offset(rig) not in self.batches and not await rig.view.unfinished()
