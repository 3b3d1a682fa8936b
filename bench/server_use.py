"""What a run asks of the Redis server: calls a task, microseconds a call, bytes a task."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Of a task's calls: fewer than this are what a loop does from time to time.
_SELDOM = 0.001


class Use(NamedTuple):
    """The server's own counters at one moment, as INFO tells them."""

    calls: Mapping[str, Mapping[str, Any]]
    stats: Mapping[str, Any]
    persistence: Mapping[str, Any]


def use_of(redis: Any) -> Use:
    """Read the counters."""
    return Use(*(redis.info(section) for section in ("commandstats", "stats", "persistence")))


def per_task(before: Use, after: Use, tasks: int) -> dict[str, object]:
    """Tell what so many tasks took between two readings.

    calls: command -> calls a task, and microseconds a call; those inside a function count as well, and `fcall` holds
    them. bytes_in, bytes_out: over the network; bytes_aof: written to the append-only file. The bench's own looks at
    the run, a hundred a second, are among them.
    """
    calls: dict[str, dict[str, float]] = {}
    for name, now in after.calls.items():
        was = before.calls.get(name, {"calls": 0, "usec": 0})
        count = now["calls"] - was["calls"]
        if count >= _SELDOM * tasks:
            us = (now["usec"] - was["usec"]) / count
            calls[name.removeprefix("cmdstat_")] = {"per_task": count / tasks, "us": us}
    return {
        "calls": calls,
        "bytes_in": _grown(before.stats, after.stats, "total_net_input_bytes") / tasks,
        "bytes_out": _grown(before.stats, after.stats, "total_net_output_bytes") / tasks,
        "bytes_aof": _grown(before.persistence, after.persistence, "aof_current_size") / tasks,
    }


def _grown(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> int:
    return after[name] - before[name]
