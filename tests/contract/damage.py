"""A cell that has everything in it, and ways to damage it behind the library's back, with what an audit must find."""

import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig
from taskyard.dispatcher.cell.recovery import BUCKET_MS
from tests.contract.rig import UNENDING_MS, Rig, redis_rig

CONFIG = CellConfig(headroom_permille=300, parked_age_ms=UNENDING_MS)
BIG = "n|a|slots=3|"
UNSERVED = "n|c|slots=1|"
FAR_MS = 2**52
OLD_MS = int(time.time() * 1000) - 600_000
_SLOTS_AT = 7  # behind tag, flag and headroom


async def lived_in(connection: Connection) -> Rig:
    """Open a cell with tasks that run, wait, are parked, held for, carried, and have ended; with instances that are
    open, held and closed."""
    rig = redis_rig(connection)
    await rig.cell.open(CONFIG)
    await rig.cell.begin({})
    await rig.register("i1", slots=3, memory_mib=10)
    await rig.register("i2", "b", "d", slots=2)
    await rig.register("i3", "b", slots=1)
    await rig.cell.cordon("i3", "maintenance")
    small = [rig.entry("run1"), rig.entry("run2", "n|a|memory_mib=4,slots=1|"), rig.entry("done")]
    await rig.apply(*small, to=["i1"])
    await rig.apply(rig.entry("b1", "n|b|slots=1|"), to=["i2"])
    await rig.apply(rig.entry("b2", "c|b|slots=1|"), to=["i2"])
    await rig.apply(rig.entry("big1", BIG, key=1, deadline_ms=FAR_MS), rig.entry("big2", BIG, key=2))
    await rig.apply(rig.entry("old", UNSERVED, arrived_ms=OLD_MS), rig.entry("kept", UNSERVED, arrived_ms=OLD_MS))
    assert await rig.cell.carry(["old"]) == (True,)
    await rig.finish("i1", await rig.ending("done"))
    await rig.finish("i2", await rig.ending("b2", "retry", b"busy", delay_ms=UNENDING_MS))
    assert await rig.cell.hold(BIG, "i1")
    return rig


class Keys:
    """Raw commands on the keys of one cell, by their suffixes."""

    def __init__(self, connection: Connection) -> None:
        self.command = connection.command
        self.root = connection.root

    async def __call__(self, command: str, suffix: str, *words: str | bytes | float) -> Any:
        """Run a command on one key."""
        return await self.command(command, f"{self.root}:{suffix}", *words)

    async def entry(self, instance: str) -> tuple[str, bytes]:
        """Read the first entry of a queue: its stream id and its bytes."""
        stream_id, fields = (await self("XRANGE", f"q:{instance}", "-", "+"))[0]
        return stream_id.decode(), fields[1]

    async def place(self, task_id: str) -> str:
        """Read a place as it is stored."""
        return (await self("HGET", "where", task_id)).decode()

    async def change_vector(self, instance: str, change: Callable[[bytearray], None]) -> None:
        """Change the packed vector of an instance."""
        packed = bytearray(await self("HGET", "free", instance))
        change(packed)
        await self("HSET", "free", instance, bytes(packed))


Doing = Callable[[Keys], Awaitable[Any]]


class Damage(NamedTuple):
    """name: of the test. kinds: what an audit that mends nothing must find, neither more nor less."""

    name: str
    kinds: frozenset[str]
    do: Doing


def _damage(name: str, kinds: str, do: Doing) -> Damage:
    return Damage(name, frozenset(kinds.split()), do)


def _slots(units: int) -> Callable[[bytearray], None]:
    def change(packed: bytearray) -> None:
        struct.pack_into("<i", packed, _SLOTS_AT, units)

    return change


def _byte(at: int, value: int) -> Callable[[bytearray], None]:
    def change(packed: bytearray) -> None:
        packed[at] = value

    return change


def _other_rounding(packed: bytearray) -> None:
    packed[5] = 1 - packed[5]


async def _copy_to_queue(keys: Keys, task_of: str, instance: str) -> None:
    await keys("XADD", f"q:{instance}", "*", "e", (await keys.entry(task_of))[1])


async def _queued_twice(keys: Keys) -> None:
    await _copy_to_queue(keys, "i2", "i2")


async def _queued_and_parked(keys: Keys) -> None:
    [entry, *_] = await keys("ZRANGE", f"park:{BIG}", 0, 0)
    await keys("XADD", "q:i1", "*", "e", entry)


async def _parked_and_queued(keys: Keys) -> None:
    await keys("ZADD", "park:n|b|slots=1|", 3, (await keys.entry("i2"))[1])
    await keys("ZADD", "heads:b", 3, "n|b|slots=1|")
    await keys("SADD", "waiting", "b")
    await keys("HINCRBY", "stats", "parked", 1)
    await keys("HINCRBY", "stats", "parked_bytes", len((await keys.entry("i2"))[1]))


async def _parked_twice(keys: Keys) -> None:
    [entry, *_] = await keys("ZRANGE", f"park:{UNSERVED}", 0, 0)
    other = entry[:1] + b"\x02" + entry[2:]  # of the next attempt
    await keys("ZADD", f"park:{UNSERVED}", await keys("ZSCORE", f"park:{UNSERVED}", entry), other)
    await keys("HINCRBY", "stats", "parked", 1)
    await keys("HINCRBY", "stats", "parked_bytes", len(other))


async def _waits_and_queued(keys: Keys) -> None:
    await keys("ZADD", "later", FAR_MS, (await keys.entry("i2"))[1])
    await keys("HINCRBY", "stats", "later", 1)


async def _place_elsewhere(keys: Keys, task_id: str) -> None:
    bucket = (await keys.place(task_id)).split("|")[1]
    await keys("HSET", "where", task_id, f"q|{bucket}|1|5-5|1|i3|n|a|slots=1|")


async def _place_of_other_attempt(keys: Keys) -> None:
    parts = (await keys.place("run1")).split("|")
    await keys("HSET", "where", "run1", "|".join([*parts[:4], "2", *parts[5:]]))


async def _more_than_it_has(keys: Keys) -> None:
    stream_id, entry = await keys.entry("i2")
    big = entry.replace(b"n|b|slots=1|", b"n|b|slots=3|")
    await keys("XDEL", "q:i2", stream_id)
    added = (await keys("XADD", "q:i2", "*", "e", big)).decode()
    place = (await keys.place("b1")).replace(stream_id, added).replace("slots=1", "slots=3")
    await keys("HSET", "where", "b1", place)


async def _bucket_of(keys: Keys, task_id: str) -> str:
    return (await keys.place(task_id)).split("|")[1]


async def _ended_place(keys: Keys) -> None:
    bucket = await _bucket_of(keys, "run1")
    await keys("HSET", "where", "gone", f"l|{bucket}|5|1|n|a|slots=1|")
    await keys("HINCRBY", "unfinished", bucket, 1)
    await keys("HSET", "done0", "gone", "s|i1|1|5")


async def _carried_has_ended(keys: Keys) -> None:
    await keys("HSET", "carried", "done", OLD_MS // BUCKET_MS)


async def _lost(keys: Keys) -> None:
    stream_id, _ = await keys.entry("i2")
    await keys("XDEL", "q:i2", stream_id)


async def _instance_gone(keys: Keys) -> None:
    await keys("HDEL", "inst", "i2")


async def _empty_queue(keys: Keys) -> None:
    await keys("XDEL", "q:ghost", await keys("XADD", "q:ghost", "*", "e", "x"))


async def _bucket_off(keys: Keys, by: int) -> None:
    await keys("HINCRBY", "unfinished", await _bucket_of(keys, "run1"), by)


MENDABLE = (
    _damage("less_used_than_queued", "used", lambda keys: keys.change_vector("i2", _slots(2))),
    _damage("more_used_than_queued", "used", lambda keys: keys.change_vector("i1", _slots(0))),
    _damage("no_vector", "vector open_set counter", lambda keys: keys("HDEL", "free", "i2")),
    _damage("no_vector_of_one_held", "hold vector counter", lambda keys: keys("HDEL", "free", "i1")),
    _damage("other_tag", "vector", lambda keys: keys.change_vector("i2", _byte(0, 33))),
    _damage("other_headroom", "vector counter", lambda keys: keys.change_vector("i2", _byte(5, 2))),
    _damage("headroom_off", "counter", lambda keys: keys.change_vector("i2", _other_rounding)),
    _damage("surplus_off", "counter", lambda keys: keys("HINCRBY", "meta", "headroom_surplus", 1)),
    _damage("open_though_cordoned", "flag open_set", lambda keys: keys.change_vector("i3", _byte(4, 0))),
    _damage("closed_for_no_reason", "flag open_set", lambda keys: keys.change_vector("i2", _byte(4, 1))),
    _damage("reason_lost", "flag", lambda keys: keys("HDEL", "closed", "i3")),
    _damage("missing_in_an_open_set", "open_set", lambda keys: keys("SREM", "open:d", "i2")),
    _damage("closed_in_an_open_set", "open_set", lambda keys: keys("SADD", "open:b", "i3")),
    _damage("ghost_in_an_open_set", "open_set", lambda keys: keys("SADD", "open:b", "ghost")),
    _damage("other_type_in_an_open_set", "open_set", lambda keys: keys("SADD", "open:a", "i2")),
    _damage("no_lease", "lease", lambda keys: keys("ZREM", "lease", "i2")),
    _damage("lease_of_nobody", "leftover", lambda keys: keys("ZADD", "lease", 5, "ghost")),
    _damage("report_of_nobody", "leftover", lambda keys: keys("HSET", "report", "ghost", "x")),
    _damage("vector_of_nobody", "leftover", lambda keys: keys("HSET", "free", "ghost", "x" * 11)),
    _damage("queue_of_nobody", "leftover", _empty_queue),
    _damage("registration_lost", "leftover stranded open_set serving counter", _instance_gone),
    _damage("no_place_on_a_queue", "unplaced unfinished", lambda keys: keys("HDEL", "where", "run1")),
    _damage("no_place_in_the_park", "unplaced unfinished deadline", lambda keys: keys("HDEL", "where", "big1")),
    _damage("no_place_though_it_waits", "unplaced unfinished", lambda keys: keys("HDEL", "where", "b2")),
    _damage("place_elsewhere_on_a_queue", "misplaced", lambda keys: _place_elsewhere(keys, "run1")),
    _damage("place_elsewhere_in_the_park", "misplaced", lambda keys: _place_elsewhere(keys, "big2")),
    _damage("place_elsewhere_though_it_waits", "misplaced", lambda keys: _place_elsewhere(keys, "b2")),
    _damage("place_of_another_attempt", "misplaced", _place_of_other_attempt),
    _damage("queued_twice", "duplicate used", _queued_twice),
    _damage("queued_and_parked", "duplicate used overcommitted", _queued_and_parked),
    _damage("parked_and_queued", "duplicate", _parked_and_queued),
    _damage("parked_twice", "duplicate", _parked_twice),
    _damage("waits_and_queued", "duplicate", _waits_and_queued),
    _damage("queued_though_ended", "ended", lambda keys: keys("HSET", "done0", "run1", "s|i1|1|5")),
    _damage("parked_though_ended", "ended", lambda keys: keys("HSET", "done1", "big1", "s|i1|1|5")),
    _damage("waits_though_ended", "ended", lambda keys: keys("HSET", "done1", "b2", "s|i1|1|5")),
    _damage("carried_though_ended", "ended", lambda keys: keys("HSET", "done1", "old", "s|i1|1|5")),
    _damage("place_though_ended", "ended", _ended_place),
    _damage("copy_though_ended", "ended", _carried_has_ended),
    _damage("wrong_head", "head", lambda keys: keys("ZADD", "heads:a", 77, BIG)),
    _damage("no_head", "head", lambda keys: keys("ZREM", "heads:a", BIG)),
    _damage("no_list_of_heads", "head", lambda keys: keys("DEL", "heads:c")),
    _damage("head_in_another_index", "head", lambda keys: keys("ZADD", "heads:a", 5, "c|a|slots=1|")),
    _damage("head_of_nothing", "head", lambda keys: keys("ZADD", "heads:a", 5, "n|a|slots=9|")),
    _damage("type_not_listed", "head", lambda keys: keys("SREM", "waiting", "c")),
    _damage("type_listed_for_nothing", "head", lambda keys: keys("SADD", "waiting", "z")),
    _damage("no_deadline", "deadline", lambda keys: keys("ZREM", "deadlines", "big1")),
    _damage("wrong_deadline", "deadline", lambda keys: keys("ZADD", "deadlines", 2**51, "big1")),
    _damage("deadline_of_one_queued", "deadline", lambda keys: keys("ZADD", "deadlines", FAR_MS, "run1")),
    _damage("hold_without_instance", "hold flag", lambda keys: keys("HDEL", "held", "i1")),
    _damage("hold_without_shape", "hold", lambda keys: keys("HDEL", "hold", BIG)),
    _damage("hold_of_two", "hold", lambda keys: keys("HSET", "hold", UNSERVED, "i1")),
    _damage("hold_of_nobody", "hold", lambda keys: keys("HSET", "held", "ghost", BIG)),
    _damage("parked_off", "counter", lambda keys: keys("HINCRBY", "stats", "parked", 3)),
    _damage("parked_bytes_off", "counter", lambda keys: keys("HINCRBY", "stats", "parked_bytes", -3)),
    _damage("later_off", "counter", lambda keys: keys("HDEL", "stats", "later")),
    _damage("serving_off", "serving", lambda keys: keys("HINCRBY", "serving", "b", 1)),
    _damage("serving_lost", "serving", lambda keys: keys("DEL", "serving")),
    _damage("unfinished_too_many", "unfinished", lambda keys: _bucket_off(keys, 1)),
    _damage("unfinished_too_few", "unfinished", lambda keys: _bucket_off(keys, -1)),
    _damage("unfinished_lost", "unfinished", lambda keys: keys("DEL", "unfinished")),
)
REPORTED = (
    _damage("entry_lost_on_a_queue", "lost used", _lost),
    _damage("entry_lost_in_the_park", "lost counter", lambda keys: keys("ZREMRANGEBYRANK", f"park:{BIG}", 0, 0)),
    _damage("place_of_nothing_readable", "lost", lambda keys: keys("HSET", "where", "ghost", "nonsense")),
    _damage("carried_without_a_place", "lost", lambda keys: keys("HSET", "carried", "ghost", 5)),
    _damage("more_than_it_has", "used overcommitted", _more_than_it_has),
    _damage("entry_unreadable", "unreadable", lambda keys: keys("XADD", "q:i2", "*", "e", "nonsense")),
    _damage("parked_unreadable", "unreadable counter", lambda keys: keys("ZADD", f"park:{BIG}", 2, "nonsense")),
    _damage("registration_unreadable", "unreadable serving", lambda keys: keys("HSET", "inst", "i3", "x" * 12)),
)
