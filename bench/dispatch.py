"""Figures 1 and 2: dispatch throughput, against a bare loop and over the size of the fleet.

Ours is `taskyard dispatcher` as a user runs it, on a topic that is full when it starts. Nobody reads the queues: timed
is the way from Kafka onto a queue. The baseline is `bare_loop` on the same topic. Each run has a cell of its own.
"""

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from bench import backlog, sharing
from bench.pairs import Row, Sample
from bench.rig import Child, Rig, taskyard
from bench.stage import PARTITION, Entries, Kind, staged
from taskyard.dispatcher.service import consumer_group

NEEDS = (("cpu_milli", 100), ("memory_mib", 64))
# Capacity beyond the tasks that come: every task is placed, none parked; and no instance comes near its headroom.
_SPARE = 4
# Fields of `applied` that count no records of the topic.
_NO_RECORDS = {b"begun", PARTITION.encode()}
_PARKED_SHAPES = 200
_OWNER = "bench"
_LEASE_MS = 300_000


class Load(NamedTuple):
    """What is dispatched, onto what. needs: of each task beside its slot, and what instances have to offer.

    dispatchers: that share the topic. parked: tasks in the cell beforehand, of the same agent type but too large for
    any instance, in 200 shapes.
    """

    tasks: int
    instances: int
    needs: backlog.Needs = ()
    payload_bytes: int = backlog.PAYLOAD_BYTES
    dispatchers: int = 1
    parked: int = 0

    @property
    def prefix(self) -> str:
        """Of its topics: loads with the same tasks share them."""
        return "-".join([str(self.tasks), str(self.payload_bytes), *[name for name, _ in self.needs]]) + "."

    def fill(self, kafka: str) -> str:
        """Publish the tasks, once; return their topic."""
        return backlog.fill(kafka, self.prefix, self.tasks, self.needs, self.payload_bytes)


def rows(rig: Rig, *, tasks: int, fleets: tuple[int, int, int]) -> list[Row]:
    """Figure 1, with slots only and with three resources, and figure 2.

    fleets: how many instances figure 1 has, then the small and the large fleet of figure 2.
    """
    usual, small, large = (Load(tasks, instances) for instances in fleets)
    needy = usual._replace(needs=NEEDS)
    ours, bare = partial(dispatched, rig), partial(_bare, rig)
    what = f"Kafka to placed, {tasks:,} tasks"
    return [
        Row(
            "dispatch", f"{what}, {usual.instances:,} instances, slots", "bare loop",
            partial(ours, usual), partial(bare, usual), 1, 2,
        ),
        Row(
            "dispatch-resources", f"{what}, {usual.instances:,} instances, 3 resources", "bare loop",
            partial(ours, needy), partial(bare, needy), 1, 2,
        ),
        Row(
            "dispatch-fleet", f"{what}, {large.instances:,} instances, slots", f"ours with {small.instances:,}",
            partial(ours, large), partial(ours, small), 0.6, 0.8, limit=0.1,
        ),
    ]  # fmt: skip


def dispatched(rig: Rig, load: Load) -> Sample:
    """Let dispatchers drain the topic. Raises RuntimeError if not every task was placed."""
    load.fill(rig.kafka)
    rig.reset()
    cell = rig.new_name()
    asyncio.run(_set_up(rig, cell, load))
    with contextlib.ExitStack() as stack:
        children = {
            f"dispatcher#{number}": stack.enter_context(_dispatcher(rig, cell, load))
            for number in range(1, load.dispatchers + 1)
        }
        if load.dispatchers > 1:
            asyncio.run(_begin_shared(rig, cell, load.dispatchers))
        sample = rig.timed(lambda: _applied(rig, cell), load.tasks, children)
    queues = [f"ty:{{{cell}}}:q:instance-{number}" for number in range(load.instances)]
    if (placed := sum(_lengths(rig, queues))) != load.tasks:
        raise RuntimeError(f"{placed} of {load.tasks} tasks were placed; the figure would be of something else")
    return sample._replace(cpu_us=_of_all(sample.cpu_us))


def _dispatcher(rig: Rig, cell: str, load: Load) -> contextlib.AbstractContextManager[Child]:
    # A lane waits while the park is fuller than its share: the bounds are not what is measured.
    room = ("--set", f"park.tasks={2 * load.parked}") if load.parked else ()
    return rig.child(*taskyard(rig, cell, "dispatcher", "--prefix", load.prefix, "--http-port", "0", *room))


async def _set_up(rig: Rig, cell: str, load: Load) -> None:
    """Register the fleet and park what is to be parked. Several dispatchers find a cell that has not begun."""
    slots = _SPARE * max(1, load.tasks // load.instances) + _SPARE
    capacity = {"slots": slots, **{name: units * slots for name, units in load.needs}}
    async with staged(rig.redis_url, cell, is_begun=load.dispatchers == 1) as stage:
        await stage.register(load.instances, [backlog.AGENT_TYPE], capacity)
        if load.parked:
            # No instance has the resource.
            large = [Kind(backlog.AGENT_TYPE, {"gpu": n % 40 + 1, "slots": n // 40 + 1}) for n in range(_PARKED_SHAPES)]
            await stage.park(Entries(large, name="b"), load.parked)
        # Else the first dispatcher would begin the cell, and drain the topic before the others have their share.
        if load.dispatchers > 1 and not await stage.cell.lease("recovery", _OWNER, ttl_ms=_LEASE_MS):
            raise RuntimeError("the lease of the recovery is not to be had in a new cell")


async def _begin_shared(rig: Rig, cell: str, dispatchers: int) -> None:
    """Begin the cell once the partitions are shared out."""
    await sharing.shared_out(rig.kafka, consumer_group(cell, "normal"), dispatchers)
    async with staged(rig.redis_url, cell) as stage:
        await stage.cell.lease("recovery", _OWNER, ttl_ms=0)


def _applied(rig: Rig, cell: str) -> int:
    offsets: dict[bytes, bytes] = rig.redis.hgetall(f"ty:{{{cell}}}:applied")
    return sum(int(offset) for name, offset in offsets.items() if name not in _NO_RECORDS)


def _of_all(cpu_us: Mapping[str, float]) -> dict[str, float]:
    """Add up processes whose names differ in their numbers only."""
    found: dict[str, float] = {}
    for name, spent_us in cpu_us.items():
        of = name.partition("#")[0]
        found[of] = found.get(of, 0.0) + spent_us
    return found


def _bare(rig: Rig, load: Load) -> Sample:
    topic = load.fill(rig.kafka)
    rig.reset()
    arguments = (rig.kafka, rig.redis_url, topic, rig.new_name(), str(load.instances))
    with rig.child(sys.executable, "-m", "bench.bare_loop", *arguments) as child:
        return rig.timed(lambda: int(rig.redis.get("done") or 0), load.tasks, {"bare loop": child})


def _lengths(rig: Rig, keys: list[str]) -> list[int]:
    pipeline = rig.redis.pipeline(transaction=False)
    for key in keys:
        pipeline.xlen(key)
    return pipeline.execute()
