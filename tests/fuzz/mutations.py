"""Making bad input out of good: bytes that were damaged, values that were bent, and noise; the rng chooses."""

import json
import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, cast

import msgspec

JSON_ODD = (
    b"NaN", b"-Infinity", b"1e999", b"-0", b"1" * 400, b"1" * 5000, b"1.5", b"null", b"true", b"[]", b"{}", b'""',
    b'"\\ud800"', b'"\\u0000"', b'"\xff"', b'"\xed\xa0\x80"', b'"|"', b'"a=b,c"', b"[" * 70 + b"]" * 70,
    b'{"a":' * 70 + b"1" + b"}" * 70, b'{"a":1,"a":2}', b'{"kind":"task","kind":"outcome"}', b'" - at `$.x`"',
)  # fmt: skip
MSGPACK_ODD = (
    b"\xc0", b"\xc1", b"\xc3", b"\x80", b"\x90", b"\xff", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\0" * 7,
    b"\xcb\x7f\xf8" + b"\0" * 6, b"\xcb\x7f\xf0" + b"\0" * 6, b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff", b"\xc6\x7f\xff\xff\xff", b"\xa2\xff\xfe", b"\xc4\x02\xff\xfe", b"\xd6\xff\0\0\0\0",
    b"\xc7\x0c\xff" + b"\xff" * 12, b"\x91" * 70 + b"\xc0", b"\x81\xa1a" * 70 + b"\xc0", b"\x81\x80\x01",
    b"\x82\xa1a\x01\xa1a\x02", b"\x81\x90\x01",
)  # fmt: skip
_TEXTS = (
    "",
    "\0",
    "\n",
    "|",
    "=",
    ",",
    " ",
    "a|b",
    "a=1,b",
    "é",
    "\u2028",
    "\U0001f600",
    "\ud800",
    "x" * 129,
    "x" * 9000,
)
_NUMBERS = (
    0, 1, -1, 2, 255, 256, 65_536, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63),
    10**30, 1.5, -0.0, 1e308, 5e-324, math.nan, math.inf, -math.inf,
)  # fmt: skip
_BIG_BYTES = 300_000
_BIG_PER_MILLE = 2


def damaged(rng: Random, data: bytes, odd: tuple[bytes, ...] = JSON_ODD + MSGPACK_ODD) -> bytes:
    """Flip, cut, drop, double and splice, once or a few times."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_DAMAGES)(rng, data, odd)
    return data


def noise(rng: Random) -> bytes:
    """Any bytes: mostly few, now and then many."""
    size = rng.randrange(_BIG_BYTES) if rng.randrange(1000) < _BIG_PER_MILLE else rng.randrange(200)
    return rng.randbytes(size) if rng.randrange(2) else bytes([rng.randrange(256)]) * size


def text(rng: Random) -> str:
    """Text that nobody should write."""
    return rng.choice(_TEXTS) if rng.randrange(4) else noise(rng).decode("latin-1")


def odd_value(rng: Random, depth: int = 2) -> Any:
    """A value of any type."""
    kind = rng.randrange(8 if depth else 5)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind <= 2:
        return rng.choice(_NUMBERS)
    if kind <= 4:
        return text(rng)
    if kind == 5:
        return [odd_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {text(rng): odd_value(rng, depth - 1) for _ in range(rng.choice((0, 1, 3, 20)))}
    return _nested(rng.choice((2, 63, 64, 65, 200)))


def bent(rng: Random, value: Any) -> Any:
    """The value with one member replaced, dropped, added or moved, at any depth. The value itself stays as it is."""
    if isinstance(value, Mapping) and value and rng.randrange(8):
        members = dict(cast("Mapping[Any, Any]", value))
        name = rng.choice(list(members))
        what = rng.randrange(6)
        if what == 0:
            del members[name]
        elif what == 1:
            members[text(rng)] = odd_value(rng)
        elif what == 2:
            members[name] = rng.choice(list(members.values()))
        else:
            members[name] = bent(rng, members[name])
        return members
    if isinstance(value, list | tuple) and value and rng.randrange(4):
        items = list(cast("list[Any]", value))
        at = rng.randrange(len(items))
        items[at : at + rng.randrange(2)] = [bent(rng, items[at])] * rng.choice((0, 1, 1, 1, 2))
        return items
    return odd_value(rng)


def written(rng: Random, value: Any, *, is_json: bool) -> bytes:
    """Encode a value that may have no form in either encoding; what has none is written as text."""
    if is_json:
        return json.dumps(value, ensure_ascii=rng.randrange(2) == 0, default=str).encode("utf-8", "surrogatepass")
    try:
        return msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return msgspec.msgpack.encode(str(value).encode("utf-8", "surrogatepass"))


def varied(rng: Random, sample: Any, *, is_json: bool) -> bytes:
    """One input made from a good sample: bent, damaged, both, neither, or noise."""
    what = rng.randrange(10)
    if what == 0:
        return noise(rng)
    value = sample if what in (1, 2, 3) else bent(rng, sample)
    data = written(rng, value, is_json=is_json)
    if what == 1 or what in (4, 5, 6, 7):
        return data
    return damaged(rng, data, JSON_ODD if is_json else MSGPACK_ODD)


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = {"a": value} if level % 2 else [value]
    return value


def _flip(rng: Random, data: bytes, odd: tuple[bytes, ...]) -> bytes:
    if not data:
        return rng.choice(odd)
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _cut(rng: Random, data: bytes, _: tuple[bytes, ...]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _drop(rng: Random, data: bytes, _: tuple[bytes, ...]) -> bytes:
    first = rng.randrange(len(data) + 1)
    return data[:first] + data[first + rng.choice((1, 2, 8, 40)) :]


def _double(rng: Random, data: bytes, _: tuple[bytes, ...]) -> bytes:
    first = rng.randrange(len(data) + 1)
    piece = data[first : first + rng.choice((1, 4, 20, 200))]
    times = rng.choice((1, 1, 3, 100))
    if rng.randrange(1000) < _BIG_PER_MILLE:
        times = _BIG_BYTES // max(1, len(piece))
    return data[:first] + piece * times + data[first:]


def _splice(rng: Random, data: bytes, odd: tuple[bytes, ...]) -> bytes:
    first = rng.randrange(len(data) + 1)
    return data[:first] + rng.choice(odd) + data[first + rng.choice((0, 0, 1, 4)) :]


def _number(rng: Random, data: bytes, _: tuple[bytes, ...]) -> bytes:
    """Write a length or a number that is out of place over some bytes."""
    width = rng.choice((1, 2, 4, 8))
    first = rng.randrange(len(data) + 1)
    return data[:first] + rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * width + data[first + width :]


_DAMAGES: tuple[Callable[[Random, bytes, tuple[bytes, ...]], bytes], ...] = (
    _flip, _cut, _drop, _double, _splice, _splice, _number,
)  # fmt: skip
