"""The peers: Python task queues, each in an environment of its own, with its best settings for throughput.

An environment is made on first use from `NAME.txt`, which pins everything, and is kept in this project's own. The
scripts run there, not here. Each peer gets one process, as many tasks at once as it was fastest with, and hiredis.

Two more are no task queues but what a user would build without one (BARE). They run in our own environment: with the
same clients in the same versions as ours, what differs is what is done with them.
"""

import sys
from pathlib import Path
from typing import Protocol

from bench import environments

_HERE = Path(__file__).parent


class Valkey(Protocol):
    """What is asked of redis-py's client."""

    def dbsize(self) -> int: ...
    def exists(self, *names: str) -> int: ...
    def hlen(self, name: str) -> int: ...
    def xlen(self, name: str) -> int: ...
    def zcard(self, name: str) -> int: ...


PEERS = {
    "taskiq": "list queue, ORJSON, 100 at once on 100 connections, RESP3, parameters not validated, uvloop",
    "saq": "100 at once, uvloop",
    "arq": "100 at once, poll delay 10 ms, uvloop",
    "dramatiq": "16 threads, results stored",
    "rq": "SimpleWorker: no fork for each task",
    "celery": "solo pool, prefetch 1,000, no gossip, mingle, heartbeat",
}
"""Name of each peer -> how it is set."""

BARE = {
    "streams": "a consumer group on one stream, 2 loops of 500 at once, a pipeline each, uvloop",
    "kafka": "a consumer group, getmany of 1,000 at once, results in batches with acks=all, uvloop",
}
"""What is no task queue, likewise: nothing is retried, balanced or seen."""

_CELERY_OWN = ("celery", "_kombu.binding.celery", "unacked", "unacked_index", "unacked_mutex")


def done(name: str, valkey: Valkey, tasks: int) -> int:
    """Count the tasks of so many enqueued whose result the peer has stored. Cost: a command or two."""
    match name:
        case "taskiq":
            return valkey.dbsize() - valkey.exists("taskiq")
        case "saq":
            return tasks - valkey.zcard("saq:default:incomplete")
        case "arq":
            return tasks - valkey.zcard("arq:queue")
        case "dramatiq":
            return tasks - valkey.hlen("dramatiq:default.msgs")
        case "rq":
            return valkey.zcard("rq:finished:default")
        case "streams":
            return tasks - valkey.xlen("streams:tasks")
        case _:
            return valkey.dbsize() - valkey.exists(*_CELERY_OWN)


def script(name: str) -> Path:
    """Return the script that enqueues for a peer, and works as one."""
    return _HERE / f"run_{name}.py"


def environment(name: str) -> Path:
    """Return the Python that a peer runs on; its environment is made if it is missing or its list has changed."""
    return Path(sys.executable) if name in BARE else environments.python_of(_HERE / f"{name}.txt")
