"""Figure 8: memory for each parked task beyond its own bytes; and for each instance and each running task.

In Valkey: what it has allocated, by its own count, before and after. In a dispatcher, which has placed nothing, and a
worker: how much their resident memory has grown. Clients that fill the cell are gone before Valkey is asked, so that
their buffers do not count.
"""

import asyncio
import socket
import time
import urllib.request
from collections.abc import Callable
from functools import partial

import msgspec

from bench import backlog
from bench.pairs import Row, Sample
from bench.pull import SHAPES, TYPES
from bench.rig import WITHIN_S, Child, Rig, rss_bytes, taskyard, wait_for
from bench.stage import LEASE_MS, Entries, Kind, Placeholder, kinds, staged
from taskyard.dispatcher.core.snapshot import Report

_MUST_BYTES, _AIM_BYTES = 400, 200
# In a smoke so few things share what any process grows by that only a gross fault can be seen.
_PARKED_LIMIT_BYTES = 2_000
_HELD_LIMIT_BYTES = 1_000_000
_SLOTS = 8
_FEW = 10
# Reading the fleet takes buffers: a process has all that it needs when it has not changed by more for so long.
_STEADY_S = 1.5
_STILL_BYTES = 256 << 10
_LOOK_S = 0.05


def rows(rig: Rig, *, parked: int, instances: int, running: int) -> list[Row]:
    """Figure 8, and what it leaves open: instances and running tasks."""
    beyond = "bytes that memory grows by"
    return [
        Row(
            "memory-parked",
            f"{beyond}, for each of {parked:,} parked tasks in {SHAPES} shapes, beyond its entry: at most "
            f"{_MUST_BYTES} B, aim {_AIM_BYTES} B",
            "the bytes of its entry",
            partial(_parked, rig, parked), partial(_parked_entry, parked), _MUST_BYTES, _AIM_BYTES,
            limit=_PARKED_LIMIT_BYTES, unit="B/task", is_cost=True, is_absolute=True,
        ),
        Row(
            "memory-instance", f"{beyond}, for each of {instances:,} instances: Valkey and one dispatcher",
            "the bytes of its registration",
            partial(_instance, rig, instances), _offer,
            limit=_HELD_LIMIT_BYTES, unit="B/instance", is_cost=True, is_absolute=True,
        ),
        Row(
            "memory-running", f"{beyond}, for each of {running:,} running tasks: Valkey and the worker",
            "the bytes of its entry",
            partial(_running, rig, running), partial(_running_entry, running),
            limit=_HELD_LIMIT_BYTES, unit="B/task", is_cost=True, is_absolute=True,
        ),
    ]  # fmt: skip


def _many() -> Entries:
    return Entries(kinds([f"type-{n}" for n in range(TYPES)], SHAPES // TYPES), name="a")


def _one() -> Entries:
    return Entries([Kind(backlog.AGENT_TYPE, {})], name="a")


def _entry(entries: Entries, count: int) -> Sample:
    for _, _ in zip(range(count), entries, strict=False):
        pass
    return Sample(entries.bytes / entries.made, details={"payload_bytes": backlog.PAYLOAD_BYTES})


def _parked_entry(count: int) -> Sample:
    return _entry(_many(), count)


def _running_entry(count: int) -> Sample:
    return _entry(_one(), count)


def _parked(rig: Rig, count: int) -> Sample:
    rig.reset()
    cell, entries = rig.new_name(), _many()

    async def park(tasks: int) -> None:
        async with staged(rig.redis_url, cell) as stage:
            await stage.park(entries, tasks)

    asyncio.run(park(0))
    used, rss = rig.used_bytes(), rig.valkey_rss_bytes()
    asyncio.run(park(count))
    each, entry = (rig.used_bytes() - used) / count, entries.bytes / count
    details = {"valkey_bytes": each, "entry_bytes": entry, "valkey_rss_bytes": (rig.valkey_rss_bytes() - rss) / count}
    return Sample(each - entry, details=details)


def _offer() -> Sample:
    epoch, labels = f"{0:08x}", dict[str, str]()
    return Sample(
        len(msgspec.msgpack.encode((epoch, (backlog.AGENT_TYPE,), {"slots": _SLOTS}, labels, LEASE_MS, labels)))
    )


def _instance(rig: Rig, count: int) -> Sample:
    """The dispatcher knows a few instances first, then all."""
    rig.reset()
    cell, port = rig.new_name(), _free_port()
    few = min(_FEW, count // 2)
    asyncio.run(_register(rig, cell, "first", few))
    used = rig.used_bytes()
    flags = ("--prefix", "memory.", "--http-port", str(port))
    with rig.child(*taskyard(rig, cell, "dispatcher", *flags)) as child:
        before = _steady_rss(child, lambda: _seen(child, port) == few)
        used_beside = rig.used_bytes() - used  # the dispatcher's own connections and leases
        asyncio.run(_register(rig, cell, "more", count - few))
        after = _steady_rss(child, lambda: _seen(child, port) == count)
        valkey = (rig.used_bytes() - used - used_beside) / (count - few)
    dispatcher = (after - before) / (count - few)
    return Sample(valkey + dispatcher, details={"valkey_bytes": valkey, "dispatcher_rss_bytes": dispatcher})


async def _register(rig: Rig, cell: str, name: str, count: int) -> None:
    async with staged(rig.redis_url, cell) as stage:
        fleet = await stage.register(count, [backlog.AGENT_TYPE], {"slots": _SLOTS}, name=name)
        for instance in fleet:
            await stage.cell.beat(instance.id, instance.epoch, Report("0-0", running=(0,)))


def _running(rig: Rig, count: int) -> Sample:
    rig.reset()
    cell, entries = rig.new_name(), _one()
    asyncio.run(_register(rig, cell, "first", 0))
    flags = (
        "bench.waiting:handlers",
        "--slots",
        str(2 * count),
        "--set",
        "worker.drain_ms=0",
        "--set",
        "worker.lease_ms=1500",
    )
    with rig.child(*taskyard(rig, cell, "worker", *flags)) as child:
        before = _steady_rss(child, lambda: rig.redis.hlen(f"ty:{{{cell}}}:report") == 1)
        used = rig.used_bytes()
        asyncio.run(_place(rig, cell, entries, count))
        after = _steady_rss(child, lambda: _reported(rig, cell) == count)
        valkey, worker = (rig.used_bytes() - used) / count, (after - before) / count
    return Sample(valkey + worker, details={"valkey_bytes": valkey, "worker_rss_bytes": worker})


async def _place(rig: Rig, cell: str, entries: Entries, count: int) -> None:
    async with staged(rig.redis_url, cell) as stage:
        fleet = [Placeholder(view.id, view.epoch) for view in await stage.view.instances()]
        await stage.place(entries, fleet, count)


def _reported(rig: Rig, cell: str) -> int:
    """How many tasks the worker has told to run."""
    # The first eight bytes are the time of the beat.
    reports = [msgspec.msgpack.decode(packed[8:], type=Report) for packed in rig.redis.hvals(f"ty:{{{cell}}}:report")]
    return sum(sum(report.running) for report in reports)


def _seen(child: Child, port: int) -> int:
    """How many instances the dispatcher knows; 0 while it does not answer yet."""
    child.check("dispatcher")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            lines = reply.read().decode().splitlines()
    except OSError:
        return 0
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("taskyard_instances{"))


def _steady_rss(child: Child, is_there: Callable[[], bool]) -> int:
    """Resident bytes of a process that has come to where it should be and grows no more."""
    wait_for(is_there, "the process to have taken everything in")
    seen, since_s = rss_bytes(child.pid), time.monotonic()
    deadline_s = since_s + WITHIN_S
    while time.monotonic() < since_s + _STEADY_S:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the process still grows after {WITHIN_S:.0f} s")
        time.sleep(_LOOK_S)
        if abs((now := rss_bytes(child.pid)) - seen) > _STILL_BYTES:
            seen, since_s = now, time.monotonic()
    return rss_bytes(child.pid)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
