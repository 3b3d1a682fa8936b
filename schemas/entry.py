"""The entry: one task in the live state, in the park or on an instance's queue.

The dispatcher writes the entry once; the function library moves it untouched from place to place and only rewrites
the head when an attempt ends. Layout, little-endian, read by the library with the same format (`FIXED`):

    u8  version (1)
    u8  attempt, from 1
    u8  max_attempts
    u8  evictions: how often the task came back unstarted
    f64 key_ms       order key (core.order)
    f64 deadline_ms  0: none
    f64 arrived_ms   when Kafka took the record
    u16 n, n bytes   task id
    u16 n, n bytes   shape
    u16 n, n bytes   causes: one line per ended attempt, `attempt TAB instance TAB unix_ms TAB cause`
    u16 n, n bytes   receipt (MessagePack; `dispatcher.core.receipt`)
    u32 n, n bytes   headers (MessagePack array of [name, value])
    the rest         the record's value, exactly as published
"""

import struct
from math import isfinite
from typing import NamedTuple

import msgspec

from taskyard.schemas.errors import SchemaError

FIXED = struct.Struct("<BBBBddd")
# Parts that are next to each other, in one call: the head and the length of the id; no causes and the receipt's length.
_HEAD = struct.Struct(f"{FIXED.format}H")
_NO_CAUSES = struct.Struct("<2xH")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_unpack_u16 = _U16.unpack_from
_unpack_u32 = _U32.unpack_from
VERSION = 1

type_headers = tuple[tuple[str, bytes], ...]
_encode = msgspec.msgpack.Encoder().encode
_decode_headers = msgspec.msgpack.Decoder(type_headers).decode
NO_HEADERS = _U32.pack(0)


class Cause(NamedTuple):
    """Why one attempt ended without success."""

    attempt: int
    instance: str
    at_ms: int
    reason: str


class Entry(NamedTuple):
    """A decoded entry. `wire` is the record's value, untouched; `receipt` is still encoded."""

    id: str
    shape: str
    attempt: int
    max_attempts: int
    evictions: int
    key_ms: float
    deadline_ms: float
    arrived_ms: float
    causes: tuple[Cause, ...]
    receipt: bytes
    headers: type_headers
    wire: bytes


def encode_headers(headers: type_headers) -> bytes:
    """Encode record headers with their length in front; cheap when there are none."""
    if not headers:
        return NO_HEADERS
    body = _encode(headers)
    return _U32.pack(len(body)) + body


def encode_entry(  # noqa: PLR0913 - one keyword for each part of the layout
    *,
    task_id: bytes,
    shape: bytes,
    max_attempts: int,
    key_ms: float,
    deadline_ms: float,
    arrived_ms: float,
    receipt: bytes,
    headers: bytes,
    wire: bytes,
) -> bytes:
    """Encode the entry of a task's first attempt. `headers` comes from `encode_headers`."""
    return b"".join(
        (
            _HEAD.pack(VERSION, 1, max_attempts, 0, key_ms, deadline_ms, arrived_ms, len(task_id)),
            task_id,
            _U16.pack(len(shape)),
            shape,
            _NO_CAUSES.pack(len(receipt)),
            receipt,
            headers,
            wire,
        )
    )


def decode_entry(data: bytes) -> Entry:
    """Decode an entry. Raises SchemaError if it is cut short, of another version, or with a time that is none.

    Cost: 1.9 us.
    """
    try:
        version, attempt, max_attempts, evictions, key_ms, deadline_ms, arrived_ms = FIXED.unpack_from(data)
        if version != VERSION:
            raise SchemaError(
                f"entry version {version}, this reader knows {VERSION}", field="version", reason="version"
            )
        if not (isfinite(key_ms) and isfinite(deadline_ms) and isfinite(arrived_ms)):
            raise SchemaError("a time of the entry is no number", reason="undecodable")
        at = FIXED.size
        parts: list[bytes] = []
        for _ in range(4):
            (size,) = _unpack_u16(data, at)  # fails behind the end, so only the last part can be cut unseen
            at += _U16.size
            parts.append(data[at : at + size])
            at += size
        task_id, shape, causes, receipt = parts
        (size,) = _unpack_u32(data, at)
        at += _U32.size
        end = at + size
        if end > len(data):
            raise SchemaError("entry is cut short", reason="undecodable")
        # By position: by name it takes 0.5 us more.
        return Entry(
            task_id.decode(),
            shape.decode(),
            attempt,
            max_attempts,
            evictions,
            key_ms,
            deadline_ms,
            arrived_ms,
            _causes(causes.decode(errors="replace")) if causes else (),
            receipt,
            _decode_headers(data[at:end]) if size else (),
            data[end:],
        )
    except (struct.error, ValueError, OverflowError) as error:
        raise SchemaError(f"entry cannot be decoded: {error}", reason="undecodable") from error


def _causes(text: str) -> tuple[Cause, ...]:
    # Not splitlines: the library ends a line with a newline only, and a reason may hold what else Python parts at.
    rows = [line.split("\t", 3) for line in text.split("\n") if line]
    return tuple(Cause(int(a), instance, int(float(at)), reason) for a, instance, at, reason in rows)
