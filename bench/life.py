"""Figure 3: a task's full life, for one worker process, against the best Python task queues.

Both sides alike: everything is enqueued first, then the processes start, and the clock runs from the first sign of work
until the last result is stored. Ours does more in that time: Kafka, dispatcher, queue, handler, finish, relay, until
Kafka has acknowledged the result. A peer reads its queue, runs the task and stores the result in the same Valkey.
What a user would build without any task queue stands beside them, as a measure of what ours costs: it has no bound.
"""

import asyncio
import sys
from functools import partial

from bench import backlog
from bench.pairs import Row, Sample
from bench.peers import BARE, PEERS, done, environment, script
from bench.peers.results import ResultsTopic
from bench.rig import Rig, taskyard, wait_for
from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.settings import Settings

SLOTS = 1_000
# A peer gets an eighth of our tasks, what is bare more than ours: at its rate that is as long.
_PEER_SHARE = 8
_STREAMS_TIMES, _KAFKA_TIMES = 2, 4
# Ours does far more than they do.
_BARE_LIMIT = 0.02


def rows(rig: Rig, *, tasks: int, peers: list[str]) -> list[Row]:
    """One row for each peer and what is bare; and where ours goes through the park against where it does not."""
    placed = partial(_ours, rig, tasks, slots=2 * tasks)
    parked = partial(_ours, rig, tasks, slots=SLOTS)
    what = f"Kafka to result, {tasks:,} no-ops, one worker process"
    against_peers = [
        Row(
            f"life-{name}",
            what,
            f"{name} ({PEERS[name]})",
            placed,
            partial(_peer, rig, name, tasks // _PEER_SHARE),
            6,
            12,
        )
        for name in peers
    ]
    bare = {
        "streams": partial(_peer, rig, "streams", _STREAMS_TIMES * tasks),
        "kafka": partial(_bare_kafka, rig, _KAFKA_TIMES * tasks),
    }
    against_bare = [
        Row(f"life-{name}", what, f"bare {name} ({BARE[name]})", placed, run, limit=_BARE_LIMIT)
        for name, run in bare.items()
    ]
    through_park = f"{what} of {SLOTS:,} slots: most wait in the park"
    return [*against_peers, *against_bare, Row("life-parked", through_park, "ours, never parked", parked, placed)]


def _ours(rig: Rig, tasks: int, slots: int) -> Sample:
    backlog.fill(rig.kafka, "life.", tasks)
    rig.reset()
    cell = rig.new_name()
    root = f"ty:{{{cell}}}"
    asyncio.run(open_cell(rig.redis_url, cell))
    with (
        rig.child(*taskyard(rig, cell, "worker", "bench.handlers:handlers", "--slots", str(slots))) as worker,
        rig.child(*taskyard(rig, cell, "dispatcher", "--prefix", "life.", "--http-port", "0")) as placing,
    ):
        wait_for(lambda: rig.redis.exists(f"{root}:inst"), "the worker to register")

        return rig.timed(
            lambda: published(rig, cell),
            tasks,
            {"worker": worker, "dispatcher": placing},
            lambda: rig.redis.exists(f"{root}:applied") > 0,
        )


def published(rig: Rig, cell: str) -> int:
    """Count the results that Kafka has acknowledged: the relay trims them from the outbox then."""
    name = f"ty:{{{cell}}}:out"
    if not rig.redis.exists(name):
        return 0
    outbox = rig.redis.xinfo_stream(name)
    return outbox["entries-added"] - outbox["length"]


async def open_cell(redis_url: str, cell: str) -> None:
    """Load the library, so that worker and dispatcher may start in any order."""
    connection = Connection(redis_url, cell)
    await RedisCell(connection).open(Settings().cell_config())
    await RedisCell(connection).begin({})
    await connection.close()


def _peer(rig: Rig, name: str, tasks: int) -> Sample:
    rig.reset()
    command = (str(environment(name)), str(script(name)))
    with rig.child(*command, "enqueue", rig.redis_url, str(tasks)) as producer:
        producer.output()
    with rig.child(*command, "work", rig.redis_url) as worker:
        return rig.timed(lambda: done(name, rig.redis, tasks), tasks, {name: worker})


def _bare_kafka(rig: Rig, tasks: int) -> Sample:
    """The same records as ours, in a topic of their own; a results topic and a group for each run."""
    topic = backlog.fill(rig.kafka, "bare.", tasks)
    group = rig.new_name()
    results = f"bare.results-{group}"
    with (
        ResultsTopic(rig.kafka, results) as counted,
        rig.child(sys.executable, str(script("kafka")), rig.kafka, topic, results, group) as worker,
    ):
        return rig.timed(counted.count, tasks, {"worker": worker})
