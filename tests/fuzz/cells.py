"""Target: every function of the library with arguments that no client of ours would send, on a real server.

A call answers, or refuses with an error and has changed nothing. After what it has accepted the whole cell can be read
by a dispatcher, and no capacity has leaked.
"""

import asyncio
import contextlib
import struct
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from functools import partial
from random import Random
from typing import Any, cast

import msgspec

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import Batch, CellConfig, Planned, Range, Registration
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.cell.view import RedisView
from taskyard.dispatcher.core.fleet import Fleet
from taskyard.dispatcher.core.load import LeastAgentLoad
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.relay import Relay
from taskyard.schemas.entry import decode_entry
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.topics import topics
from tests.fuzz import samples
from tests.fuzz.campaign import Parts, Target
from tests.fuzz.loops import entry_of_any_kind, quiet
from tests.fuzz.mutations import bent, noise, odd_value, text, varied

_EPOCH = "abcdefgh"
_EPOCHS = {"i1": _EPOCH, "i2": "bbbbcccc"}
_ANEW_EVERY = 150
_CHECK_EVERY = 3
_CALL_WITHIN_S = 1.0
_READ = """
local read = { hash = { 'HGETALL' }, zset = { 'ZRANGE', 0, -1, 'WITHSCORES' }, stream = { 'XRANGE', '-', '+' },
  set = { 'SMEMBERS' }, string = { 'GET' } }
local reply = {}
for _, name in ipairs(redis.call('KEYS', KEYS[1] .. ':*')) do
  local kind = redis.call('TYPE', name).ok
  reply[#reply + 1] = name
  reply[#reply + 1] = kind
  reply[#reply + 1] = redis.call(read[kind][1], name, unpack(read[kind], 2))
end
return reply
"""

_pack = msgspec.msgpack.encode


def _packed(rng: Random, value: Any) -> bytes:
    return _pack(value) if rng.randrange(3) else varied(rng, msgspec.msgpack.decode(_pack(value)), is_json=False)


def _apply(rng: Random) -> list[Any]:
    """A batch with all bent but its entries, which the same dispatcher has made."""
    shapes = [rng.randrange(len(samples.SHAPES)) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    ids = [rng.choice(("q1", "p1", "t1", "t2", "t3")) for _ in shapes]
    entries = [
        samples.entry(
            rng,
            task_id=task_id,
            shape=samples.SHAPES[shape] if rng.randrange(9) else rng.choice(samples.SHAPES),
            wire=noise(rng),
        )
        for task_id, shape in zip(ids, shapes, strict=True)
    ]
    candidates = (0, 0, 1, 2, 3, 65_535)
    choices = [struct.pack("<4H", shape + 1, *(rng.choice(candidates) for _ in range(3))) for shape in shapes]
    ranges: Any = [("p:0", 0, len(entries))]
    instances: Any = [("i1", _EPOCH[:4]), ("i2", "bbbb")]
    if not rng.randrange(3):
        ranges, instances = _fit(bent(rng, ranges)), _fit(bent(rng, instances))
    header = (ranges, instances, samples.SHAPES, rng.choice((1000, 1000, 0, -5, "x", None)))
    return [_pack(header), b"".join(choices), str(len(entries)), *entries, *([noise(rng)] * rng.randrange(2))]


def _held(rng: Random) -> tuple[str, str, int]:
    return (rng.choice(("q1", "q2", "p1", "new")), rng.choice(("1-1", "0-0", "9999999999999-0", "x")), 1)


def _finish(rng: Random) -> list[Any]:
    how = rng.choice(("succeeded", "retry", "gave_up", "unstarted", "odd"))
    endings = [(*_held(rng), how, rng.choice((-1, 0, 5))) for _ in range(rng.choice((0, 1, 2)))]
    return ["i1", _EPOCH, _packed(rng, endings), *(noise(rng) for _ in endings)]


def _resync(rng: Random) -> list[Any]:
    running = [_held(rng) for _ in range(rng.choice((0, 1, 2)))]
    entries = [
        samples.entry(rng, task_id=held[0], shape=rng.choice(samples.SHAPES)) if rng.randrange(2)
        else entry_of_any_kind(rng)
        for held in running
    ]  # fmt: skip
    return ["i1", _EPOCH, _packed(rng, running), rng.choice("01"), *entries]


def _register(rng: Random) -> list[Any]:
    offer: Any = (
        _EPOCH + rng.choice(("", "2")),
        ("a", "b"),
        {"slots": 2, "cpu_milli": 500},
        {"region": "eu"},
        60_000,
        {},
    )
    bad = bent(rng, offer) if rng.randrange(2) else offer
    return [rng.choice(("i1", "i3", "i4")), _packed(rng, _fit(bad)), rng.choice("01")]


def _fit(value: Any) -> Any:
    """The value if MessagePack has a form for it."""
    try:
        _pack(value)
    except (ValueError, OverflowError, TypeError):
        return str(value).encode("utf-8", "replace")
    return value


def _beat(rng: Random) -> list[Any]:
    return ["i1", _EPOCH, _packed(rng, ("0-0", 1, 2, 3, (1, 0), {"q1": "half"}))]


def _open(rng: Random) -> list[Any]:
    pairs = [part for pair in CellConfig()._asdict().items() for part in map(str, pair)]
    if rng.randrange(2):
        pairs[rng.randrange(len(pairs))] = rng.choice(("", "nan", "-1", "1e400", "x", text(rng)))
    return ["run", "generation", *pairs]


_FIXED: dict[str, list[Any]] = {
    "begin": ["p:0", "5"], "remember": ["old1", "old2"], "cordon": ["i1", "why", ""], "leave": ["i2", "bbbbcccc"],
    "evict": ["5"], "recall": ["1", "5", "i1", "i2"], "settle": ["5", "i1", samples.SHAPES[0]], "due": ["5"],
    "expire": ["5"], "hold": [samples.SHAPES[0], "i1"], "lease": ["tick", "me", "5"], "shapes": ["9"], "audit": ["i1"],
}  # fmt: skip
_MADE: dict[str, Callable[[Random], list[Any]]] = {
    "apply": _apply, "finish": _finish, "resync": _resync, "register": _register, "beat": _beat, "open": _open,
}  # fmt: skip
"""Function -> arguments that are nearly right, of which some are then replaced."""


def _call(functions: Sequence[str], rng: Random) -> Parts:
    function = rng.choice(functions)
    made = _MADE[function](rng) if function in _MADE else _FIXED.get(function, ["i1", "5"])
    words = [_word(word) for word in made]
    for _ in range(rng.choice((0, 0, 1, 2))):
        at = rng.randrange(len(words) + 1)
        odd = _word(rng.choice((text(rng), str(odd_value(rng, 0)), noise(rng), "1e300", "nan", "-1", "", "i1", "i2")))
        words[at : at + rng.randrange(2)] = [odd] if rng.randrange(4) else []
    return (function.encode(), *words)


def _word(word: str | bytes) -> bytes:
    return word if isinstance(word, bytes) else word.encode("utf-8", "replace")


class _FedCell:
    """A cell of its own, made anew every so many calls: two instances, one task on each queue, some parked."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._connection = Connection(url, f"fuzz-{uuid.uuid4().hex[:12]}")
        self._cell, self._view = RedisCell(self._connection), RedisView(self._connection)
        self._relay = Relay(self._cell, cast("Any", None), topics(), Metrics(), "owner")
        self._calls = 0
        self._raw: dict[bytes, Any] = {}

    def functions(self) -> list[str]:
        """The library's functions, as the server lists them."""
        return self._loop.run_until_complete(self._functions())

    async def _functions(self) -> list[str]:
        await self._connection.load()
        (library,) = await self._connection.command("FUNCTION", "LIST", "LIBRARYNAME", "taskyard_v1")
        listed = dict(zip(library[::2], library[1::2], strict=True))[b"functions"]
        return sorted(row[1].decode().removeprefix("ty1_") for row in listed)

    def reset(self) -> None:
        """Let the next call be the first of a new cell, and be checked."""
        self._calls = 0

    def feed(self, parts: Parts) -> None:
        self._loop.run_until_complete(self._feed(*parts) if parts else asyncio.sleep(0))

    async def _feed(self, function: bytes, *words: bytes) -> None:
        if self._calls % _ANEW_EVERY == 0:
            await self._make()
        began_s = time.monotonic()
        refusal = await self._refusal(function, words)
        if refusal:
            raw = await self._read()
            changed = sorted(name for name in raw.keys() | self._raw.keys() if raw.get(name) != self._raw.get(name))
            assert not changed, f"{refusal}, and yet changed {changed}"
        else:
            # Not after each: it takes thirty times as long as the call.
            if self._calls % _CHECK_EVERY == 0:
                await self._check_readable()
            self._raw = await self._read()
        self._calls += 1
        took_s = time.monotonic() - began_s
        assert took_s < _CALL_WITHIN_S, f"{took_s:.1f} s"

    async def _refusal(self, function: bytes, words: Sequence[bytes]) -> str:
        try:
            await self._connection.call(function.decode(errors="replace"), *words)
        except DependencyError as error:
            if "Redis refused" not in str(error):
                raise
            return str(error)
        return ""

    async def _read(self) -> dict[bytes, Any]:
        reply = await self._connection.command("EVAL", _READ, 1, self._connection.root)
        rows = zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        # A stream without entries is no stream: an XADD can be undone no further.
        # A lease ends by itself.
        return {name: _content(kind, content) for name, kind, content in rows if content and kind != b"string"}

    async def _check_readable(self) -> None:
        """Do what a dispatcher does from time to time, and what a person may ask."""
        await self._view.level()
        await self._view.vectors()
        fleet = Fleet(LeastAgentLoad())
        views = await self._view.instances()
        fleet.replace(views, await self._view.resources(), now_ms=0)
        for shape in await self._view.shapes():
            fleet.pool(shape.shape)
            for entry in await self._view.parked(shape.shape, count=100):
                await self._view.find(entry.id)
        for view in views:
            drift = await self._view.audit(view.id)
            assert not drift.misplaced, drift
            assert not any(drift.used.values()), drift
            for delivery in await self._view.queue(view.id, count=100):
                await self._view.find(decode_entry(delivery.entry).id)
        outgoing = await self._cell.outbox(count=100)
        for row in outgoing:
            self._relay.records(row)
        await self._cell.trim([row.stream_id for row in outgoing])
        await self._cell.due(limit=5)
        await self._cell.expire(limit=5)
        await self._cell.evict(limit=5)

    async def _make(self) -> None:
        await self._forget()
        cell, rng = self._cell, Random(1)
        await cell.open(CellConfig(headroom_permille=0))
        await cell.begin({})
        for name, epoch in _EPOCHS.items():
            await cell.register(name, epoch, Registration(("a", "b"), {"slots": 2, "cpu_milli": 500}, {}, 3_600_000))
        planned = [
            Planned(0, candidates, samples.entry(rng, task_id=task_id, shape=shape))
            for task_id, candidates, shape in (("q1", (0,), 0), ("q2", (1,), 0))
            for shape in [samples.SHAPES[shape]]
        ]
        parked = [Planned(1, (), samples.entry(rng, task_id=f"p{n}", shape="n|nobody|slots=1|")) for n in range(2)]
        shapes = [samples.SHAPES[0], "n|nobody|slots=1|"]
        instances = [(name, epoch[:4]) for name, epoch in _EPOCHS.items()]
        await cell.apply(Batch([Range("q:0", 0, 4)], instances, shapes, [*planned, *parked]))
        self._raw = await self._read()

    async def _forget(self) -> None:
        names = await self._connection.command("KEYS", f"{self._connection.root}:*")
        if names:
            await self._connection.command("UNLINK", *names)

    def close(self) -> None:
        self._loop.run_until_complete(self._forget())
        self._loop.run_until_complete(self._connection.close())


def _content(kind: bytes, content: Any) -> Any:
    if kind == b"hash":
        return dict(zip(content[::2], content[1::2], strict=True))
    return set(content) if kind == b"set" else content


@contextlib.contextmanager
def cell_target(redis_url: str) -> Generator[Target]:
    """The target `functions`."""
    loop = asyncio.new_event_loop()
    fed = _FedCell(redis_url, loop)
    try:
        with quiet():
            yield Target("functions", partial(_call, fed.functions()), fed.feed, 12, fed.reset)
    finally:
        fed.close()
        loop.close()
