"""Figures 1 and 2: dispatch throughput, against a bare loop and over the size of the fleet.

Ours is `taskyard dispatcher` as a user runs it, on a topic that is full when it starts. Nobody reads the queues: timed
is the way from Kafka onto a queue. The baseline is `bare_loop` on the same topic. Each run has a cell of its own.
"""

import asyncio
import sys
from collections.abc import Mapping
from functools import partial

from bench import backlog
from bench.pairs import Row, Sample
from bench.rig import Rig, taskyard
from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import Registration
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.settings import Settings

NEEDS = (("cpu_milli", 100), ("memory_mib", 64))
# Far beyond what a run may last: no worker beats.
_LEASE_MS = 3_600_000
# Capacity beyond the tasks that come: every task is placed, none parked; and no instance comes near its headroom.
_SPARE = 4
_REGISTER_AT_ONCE = 100


def rows(rig: Rig, *, tasks: int, fleets: tuple[int, int, int]) -> list[Row]:
    """Figure 1, with slots only and with three resources, and figure 2.

    fleets: how many instances figure 1 has, then the small and the large fleet of figure 2.
    """
    usual, small, large = fleets
    ours, bare = partial(_dispatched, rig, tasks), partial(_bare, rig, tasks, usual)
    what = f"Kafka to placed, {tasks:,} tasks"
    return [
        Row(
            "dispatch", f"{what}, {usual:,} instances, slots", "bare loop", partial(ours, usual), bare, 1, 2,
        ),
        Row(
            "dispatch-resources", f"{what}, {usual:,} instances, 3 resources", "bare loop",
            partial(ours, usual, NEEDS), partial(bare, NEEDS), 1, 2,
        ),
        Row(
            "dispatch-fleet", f"{what}, {large:,} instances, slots", f"ours with {small:,}",
            partial(ours, large), partial(ours, small), 0.6, 0.8, limit=0.1,
        ),
    ]  # fmt: skip


def _prefix(needs: backlog.Needs) -> str:
    return "needy." if needs else "plain."


def _dispatched(rig: Rig, tasks: int, instances: int, needs: backlog.Needs = ()) -> Sample:
    backlog.fill(rig.kafka, _prefix(needs), tasks, needs)
    rig.reset()
    cell = rig.new_name()
    slots = _SPARE * max(1, tasks // instances) + _SPARE
    capacity = {"slots": slots, **{name: units * slots for name, units in needs}}
    asyncio.run(_register(rig.redis_url, cell, instances, capacity))
    with rig.child(*taskyard(rig, cell, "dispatcher", "--prefix", _prefix(needs), "--http-port", "0")) as child:
        applied = f"ty:{{{cell}}}:applied"
        sample = rig.timed(lambda: sum(map(int, rig.redis.hvals(applied))), tasks, {"dispatcher": child})
    placed = sum(_lengths(rig, [f"ty:{{{cell}}}:q:{_name(number)}" for number in range(instances)]))
    if placed != tasks:
        raise RuntimeError(f"{placed} of {tasks} tasks were placed; the figure would be of something else")
    return sample


def _bare(rig: Rig, tasks: int, instances: int, needs: backlog.Needs = ()) -> Sample:
    topic = backlog.fill(rig.kafka, _prefix(needs), tasks, needs)
    rig.reset()
    arguments = (rig.kafka, rig.redis_url, topic, rig.new_name(), str(instances))
    with rig.child(sys.executable, "-m", "bench.bare_loop", *arguments) as child:
        return rig.timed(lambda: int(rig.redis.get("done") or 0), tasks, {"bare loop": child})


async def _register(redis_url: str, cell_name: str, instances: int, capacity: Mapping[str, int]) -> None:
    """Register a fleet without workers."""
    connection = Connection(redis_url, cell_name)
    cell = RedisCell(connection)
    try:
        await cell.open(Settings().cell_config())
        await cell.begin({})
        offer = Registration((backlog.AGENT_TYPE,), capacity, {}, _LEASE_MS)
        for first in range(0, instances, _REGISTER_AT_ONCE):
            numbers = range(first, min(first + _REGISTER_AT_ONCE, instances))
            await asyncio.gather(*[cell.register(_name(n), f"{n:08x}", offer) for n in numbers])
    finally:
        await connection.close()


def _name(number: int) -> str:
    return f"instance-{number}"


def _lengths(rig: Rig, keys: list[str]) -> list[int]:
    pipeline = rig.redis.pipeline(transaction=False)
    for key in keys:
        pipeline.xlen(key)
    return pipeline.execute()
