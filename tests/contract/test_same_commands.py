"""The library and the twin are driven by the same commands, and after each one reply and state must be the same.

Nothing here leaves a choice to chance: a shape names a zone, or a type, that only one instance has, so at most one
member of an open set fits. A lease is either endless or has always run out; a backoff is over at once or never.
"""

import asyncio
import itertools
import os
from collections.abc import Coroutine
from typing import Any, ClassVar, NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig, Ending, Range, Registration, Report, Running
from tests.contract.rig import PARTITION, UNENDING_MS, Rig, ids, redis_rig, twin_rig
from tests.contract.snapshot import difference, heads_told_too_late, snapshot

CONFIG = CellConfig(
    headroom_permille=300, parked_limit=12, outbox_limit=25, retry_base_ms=0, done_limit=6, parked_age_ms=UNENDING_MS
)


class Site(NamedTuple):
    """What an instance of the fleet always offers."""

    types: tuple[str, ...]
    zone: str
    lease_ms: int


SITES = {
    "i0": Site(("a", "b"), "1", UNENDING_MS),
    "i1": Site(("b", "d"), "2", UNENDING_MS),
    "i2": Site(("d", "a"), "3", 0),
}
CAPACITIES = ({"slots": 1}, {"slots": 3, "memory_mib": 4}, {"slots": 2, "gpu": 1}, {"slots": 4})
SHAPES = (
    "n|a|slots=1|zone=1",
    "c|a|slots=1|zone=1",
    "n|a|memory_mib=2,slots=1|zone=1",
    "n|b|slots=2|zone=1",
    "n|b|slots=1|zone=2",
    "c|d|slots=2|zone=2",
    "n|d|gpu=0,slots=1|zone=2",
    "n|a|gpu=1,slots=1|zone=3",
    "n|d|slots=1|zone=3",
    "n|e|slots=1|",
)
names = st.sampled_from(sorted(SITES))
shapes = st.sampled_from(SHAPES)
several_names = st.lists(names, unique=True, min_size=1)
limits = st.integers(1, 4)
positions = st.integers(0, 4)
tasks = st.lists(
    st.tuples(
        st.integers(0, 9),  # which id
        shapes,
        st.integers(0, 5),  # key
        st.sampled_from([0, 0, 0, 1, 2**52]),  # deadline: none, long ago, never
        st.integers(1, 3),  # attempts
        st.sampled_from([0, 2**50]),  # arrived: before all ages, never too old
    ),
    min_size=1,
    max_size=5,
)
endings = st.lists(
    st.tuples(
        positions,
        st.sampled_from(["succeeded", "retry", "retry", "gave_up", "unstarted"]),
        st.sampled_from([0, 0, -1, UNENDING_MS]),
        st.sampled_from([0, 0, 0, 1]),  # how far off the attempt is
    ),
    min_size=1,
    max_size=3,
)


class SameCommands(RuleBasedStateMachine):
    """Both rigs, and what has been said to each. address: of the server, and the name of the cell."""

    address: ClassVar[tuple[str, str]]

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._connection = Connection(*self.address)
        self._rigs = (redis_rig(self._connection), twin_rig())
        self._epochs = itertools.count()
        self._offset = 0
        self._said: list[tuple[list[Ending], ...]] = []

    def _each(self, *commands: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
        """Run one command on each, in moments of their own: nothing that happens later may be at the same time."""

        async def run() -> tuple[Any, ...]:
            for rig in self._rigs:
                await rig.let_pass(0)
            return tuple([await command for command in commands])

        return self._runner.run(run())

    def _same(self, *commands: Coroutine[Any, Any, Any]) -> None:
        one, other = self._each(*commands)
        assert one == other
        self._compare()

    def _compare(self) -> None:
        one, other = (self._runner.run(snapshot(rig)) for rig in self._rigs)
        assert difference(one, other) == {}
        self._runner.run(self._rigs[1].check())

    def _at(self, rig: Rig, instance: str, position: int) -> Any:
        """The delivery at a position of a queue, or None."""
        queue = self._runner.run(rig.view.queue(instance, count=10))
        return queue[position] if position < len(queue) else None

    @initialize(capacities=st.lists(st.sampled_from(CAPACITIES), min_size=len(SITES), max_size=len(SITES)))
    def begin(self, capacities: list[dict[str, int]]) -> None:
        async def begin() -> None:
            keys = await self._connection.command("KEYS", f"{self._connection.root}:*")
            if keys:
                await self._connection.command("UNLINK", *keys)
            for rig in self._rigs:
                await rig.cell.open(CONFIG)
                await rig.cell.begin({})

        self._runner.run(begin())
        for instance, capacity in zip(SITES, capacities, strict=True):
            self._register(instance, capacity, f"{next(self._epochs):04d}")

    @rule(
        instance=names,
        capacity=st.sampled_from(CAPACITIES),
        is_new=st.booleans(),
        is_resuming=st.sampled_from([False, False, True]),
    )
    def register(self, instance: str, capacity: dict[str, int], is_new: bool, is_resuming: bool) -> None:
        epoch = f"{next(self._epochs):04d}" if is_new else self._rigs[0].epochs[instance]
        self._register(instance, capacity, epoch, is_resuming=is_resuming)

    def _register(self, instance: str, capacity: dict[str, int], epoch: str, *, is_resuming: bool = False) -> None:
        site = SITES[instance]
        offer = Registration(site.types, capacity, {"zone": site.zone}, site.lease_ms)
        replies = self._each(
            *[rig.cell.register(instance, epoch, offer, is_resuming=is_resuming) for rig in self._rigs]
        )
        assert type(replies[0]) is type(replies[1])
        for rig in self._rigs:
            rig.epochs[instance] = epoch
        self._compare()

    @rule(instance=names, position=positions, is_current=st.sampled_from([True, True, True, False]))
    def beat(self, instance: str, position: int, is_current: bool) -> None:
        commands = list[Coroutine[Any, Any, Any]]()
        for rig in self._rigs:
            delivery = self._at(rig, instance, position)
            cursor = delivery.stream_id if delivery else "99999999999999-0" if position == 4 else "0-0"
            epoch = rig.epochs[instance] if is_current else "other"
            commands.append(rig.cell.beat(instance, epoch, Report(cursor, 1, 2, 3)))
        replies = self._each(*commands)
        assert type(replies[0]) is type(replies[1])
        assert getattr(replies[0], "reason", "") == getattr(replies[1], "reason", "")
        assert getattr(replies[0], "why", "") == getattr(replies[1], "why", "")
        self._compare()

    @rule(
        made=tasks,
        to=st.lists(names, max_size=3),
        wrong=st.sampled_from(["", "", "", "", "start", "tag"]),
        refused=st.lists(st.just(b"poison"), max_size=1),
        permille=st.sampled_from([1000, 1000, 500]),
    )
    def apply(self, made: list[Any], to: list[str], wrong: str, refused: list[bytes], permille: int) -> None:
        made = sorted(made, key=lambda row: row[2])
        entries = [
            self._rigs[0].entry(f"t{n}", shape, key=key, deadline_ms=deadline, attempts=attempts, arrived_ms=arrived)
            for n, shape, key, deadline, attempts, arrived in made
        ]
        self._rigs[1].task_ids |= self._rigs[0].task_ids
        start = self._offset + (7 if wrong == "start" and self._offset else 0)
        batch = self._rigs[0].batch(entries, to, parked_permille=permille, refused=refused)
        batch = batch._replace(ranges=[Range(PARTITION, start, start + len(made))])
        if wrong == "tag":
            batch = batch._replace(instances=[(name, "xxxx") for name in to])
        one, other = self._each(*[rig.cell.apply(batch) for rig in self._rigs])
        assert type(one) is type(other)
        assert one[:3] == other[:3]
        if hasattr(one, "results"):
            self._offset = start + len(made)
        self._compare()

    @rule(instance=names, ends=endings, is_current=st.sampled_from([True, True, True, False]))
    def finish(self, instance: str, ends: list[Any], is_current: bool) -> None:
        said: list[list[Ending]] = []
        for rig in self._rigs:
            said.append([])
            for position, how, delay_ms, off in ends:
                delivery = self._at(rig, instance, position)
                if delivery:
                    [task_id] = ids([delivery])
                    attempt = self._runner.run(rig.find(task_id)).attempt + off
                    said[-1].append(Ending(task_id, delivery.stream_id, attempt, how, b"detail", delay_ms))
        self._said.append(tuple(said))
        self._finish(instance, tuple(said), is_current=is_current)

    @rule(instance=names, which=st.integers(0, 20))
    def finish_again(self, instance: str, which: int) -> None:
        if self._said:
            self._finish(instance, self._said[which % len(self._said)], is_current=True)

    def _finish(self, instance: str, said: tuple[list[Ending], ...], *, is_current: bool) -> None:
        epoch = self._rigs[0].epochs[instance] if is_current else "other"
        pairs = zip(self._rigs, said, strict=True)
        self._same(*[rig.cell.finish(instance, epoch, ends) for rig, ends in pairs])

    @rule(instance=names, holder=names, position=positions, off=st.sampled_from([0, 0, 1]))
    def resync(self, instance: str, holder: str, position: int, off: int) -> None:
        commands = list[Coroutine[Any, Any, Any]]()
        for rig in self._rigs:
            delivery = self._at(rig, holder, position)
            running: list[Running] = []
            if delivery:
                [task_id] = ids([delivery])
                attempt = self._runner.run(rig.find(task_id)).attempt + off
                running.append(Running(task_id, delivery.stream_id, attempt, delivery.entry))
            commands.append(rig.cell.resync(instance, rig.epochs[instance], running))
        self._adopted(commands)

    @rule(instance=names, n=st.integers(0, 9), shape=shapes, key=st.integers(0, 5), is_last=st.booleans())
    def resync_unknown(self, instance: str, n: int, shape: str, key: int, is_last: bool) -> None:
        commands = list[Coroutine[Any, Any, Any]]()
        for rig in self._rigs:
            running = [Running(f"t{n}", "5-5", 1, rig.entry(f"t{n}", shape, key=key, arrived_ms=0))] * 2
            commands.append(rig.cell.resync(instance, rig.epochs[instance], running, is_last=is_last))
        self._adopted(commands)

    @rule(instance=names, n=st.integers(0, 9), attempt=st.integers(1, 2))
    def finish_late(self, instance: str, n: int, attempt: int) -> None:
        late = [Ending(f"t{n}", "5-5", attempt, "succeeded", b"late")]
        self._finish(instance, (late, late), is_current=True)

    def _adopted(self, commands: list[Coroutine[Any, Any, Any]]) -> None:
        replies = self._each(*commands)
        told = [[s is None for s in reply.stream_ids] if hasattr(reply, "stream_ids") else reply for reply in replies]
        assert told[0] == told[1]
        self._compare()

    @rule(ns=st.lists(st.integers(0, 9), max_size=4))
    def carry(self, ns: list[int]) -> None:
        self._same(*[rig.cell.carry([f"t{n}" for n in ns]) for rig in self._rigs])

    @rule(limit=limits)
    def evict(self, limit: int) -> None:
        # Nobody was away for long, however long the machine has taken: only the twin's clock stands still.
        self._runner.run(self._connection.command("HSET", f"{self._connection.root}:meta", "evict_ms", 2**52))
        self._same(*[rig.cell.evict(limit=limit) for rig in self._rigs])

    @rule(instances=several_names, limit=limits)
    def recall(self, instances: list[str], limit: int) -> None:
        self._same(*[rig.cell.recall(instances, min_age_ms=0, limit=limit) for rig in self._rigs])

    @rule(matches=st.lists(st.tuples(names, shapes), max_size=3), limit=limits)
    def settle(self, matches: list[tuple[str, str]], limit: int) -> None:
        self._same(*[rig.cell.settle(matches, limit=limit) for rig in self._rigs])

    @rule(limit=limits)
    def due(self, limit: int) -> None:
        self._same(*[rig.cell.due(limit=limit) for rig in self._rigs])

    @rule()
    def expire(self) -> None:
        self._same(*[rig.cell.expire(limit=100) for rig in self._rigs])

    @rule(shape=shapes, instance=names)
    def hold(self, shape: str, instance: str) -> None:
        self._same(*[rig.cell.hold(shape, instance) for rig in self._rigs])

    @rule(instance=names, reason=st.sampled_from(["", "", "maintenance"]))
    def cordon(self, instance: str, reason: str) -> None:
        self._same(*[rig.cell.cordon(instance, reason) for rig in self._rigs])

    @rule(instance=names)
    def leave(self, instance: str) -> None:
        self._same(*[rig.cell.leave(instance, rig.epochs[instance]) for rig in self._rigs])

    @rule()
    def lose_front(self) -> None:
        assert self._runner.run(heads_told_too_late(self._connection)) == []
        # As after a failover: what this server knew of the parked tasks counts no more.
        self._runner.run(self._connection.command("DEL", f"{self._connection.root}:front"))

    @rule()
    def trim(self) -> None:
        async def trim(rig: Rig) -> int:
            return await rig.cell.trim([outgoing.stream_id for outgoing in await rig.cell.outbox(count=100)])

        self._same(*map(trim, self._rigs))

    def teardown(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


def explored(examples: int) -> settings:
    """The same sequences in every run of the gate; with TASKYARD_EXPLORE=<examples>, that many others."""
    explore = int(os.environ.get("TASKYARD_EXPLORE", "0"))
    return settings(
        max_examples=explore or examples,
        stateful_step_count=40,
        derandomize=not explore,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=(Phase.generate, Phase.shrink) if explore else (Phase.generate,),
    )


def test_the_library_and_the_twin_do_the_same(redis_url: str, cell: str) -> None:
    class Here(SameCommands):
        address = redis_url, cell

    run_state_machine_as_test(Here, settings=explored(20))
