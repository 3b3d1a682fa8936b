"""The keys of a cell as the server has them: exactly, and without what differs between two runs of one command."""

import re
from typing import Any

Raw = dict[str, tuple[str, bool, Any]]
"""Suffix of the key -> (type, whether it expires, content: dict, set, bytes, or list of pairs in their order)."""

_COUNTER = "front"
"""Counts calls, those that failed too."""

# A Unix time in ms as text, with the sequence number if it is a stream id.
_TIME = re.compile(rb"(?<!\d)1\d{12}(?!\d)(?:-\d+)?")
_STAMPED = ("inst", "report")
"""Hashes whose values begin with eight bytes of time."""


def raw_of(reply: list[Any]) -> Raw:
    """Read the reply of `faulty_raw`. A stream without entries is no stream: an XADD can be undone no further."""
    return {
        suffix.decode(): (kind.decode(), bool(expires), _content(suffix, kind, content))
        for suffix, kind, expires, content in zip(*[iter(reply)] * 4, strict=True)
        if content and suffix.decode() != _COUNTER
    }


def changed(one: Raw, other: Raw) -> dict[str, tuple[Any, Any]]:
    """Say which keys are not the same, with what is different about them."""
    return {
        suffix: _parted(one.get(suffix), other.get(suffix))
        for suffix in sorted(one.keys() | other.keys())
        if one.get(suffix) != other.get(suffix)
    }


def timeless(raw: Raw) -> Raw:
    """Leave out times and stream ids, but not which entry of a queue a place means."""
    places = {
        suffix[2:]: {stream_id: n for n, (stream_id, _) in enumerate(content)}
        for suffix, (_, _, content) in raw.items()
        if suffix.startswith("q:")
    }
    return {
        suffix: (kind, expires, _timeless(suffix, kind, content, places))
        for suffix, (kind, expires, content) in raw.items()
    }


def _content(suffix: bytes, kind: bytes, content: Any) -> Any:
    if suffix.startswith(b"heads:"):
        return set(content[::2])  # a key there may be any that is not too late
    if kind == b"hash":
        return dict(zip(content[::2], content[1::2], strict=True))
    if kind == b"zset":
        return list(zip(content[::2], map(float, content[1::2]), strict=True))
    if kind == b"stream":
        return [(stream_id, tuple(fields)) for stream_id, fields in content]
    return set(content) if kind == b"set" else content


def _timeless(suffix: str, kind: str, content: Any, places: dict[str, dict[bytes, int]]) -> Any:
    if kind == "hash":
        skip = 8 if suffix in _STAMPED else 0
        rows = content.items()
        if suffix == "where":
            rows = [(task_id, _placed(place, places)) for task_id, place in rows]
        rows = [(name, b"" if name == b"generation" else value) for name, value in rows]
        return sorted((name, _TIME.sub(b"T", value[skip:])) for name, value in rows)
    if kind == "zset" and not suffix.startswith("heads:"):
        # Not sorted: the order is part of the state. A moment is one of this time; far ones are the tests' own.
        return [(_TIME.sub(b"T", member), "T" if 1e12 < score < 2e12 else score) for member, score in content]
    if kind == "stream":
        return [tuple(_TIME.sub(b"T", field) for field in fields) for _, fields in content]
    return content


def _placed(place: bytes, places: dict[str, dict[bytes, int]]) -> bytes:
    kind, *parts = place.split(b"|")
    if kind == b"q":
        _, _, stream_id, _, instance, *_ = parts
        n = places.get(instance.decode(), {}).get(stream_id)
        parts[2] = b"nowhere" if n is None else b"entry %d" % n
    return _TIME.sub(b"T", b"|".join((kind, *parts)))


def _parted(one: Any, other: Any) -> tuple[Any, Any]:
    """Of two contents that can be told apart piece by piece, only the pieces that differ."""
    if one is None or other is None or one[:2] != other[:2] or one[0] == "string":
        return one, other
    left, right = (list(side[2].items()) if isinstance(side[2], dict) else list(side[2]) for side in (one, other))
    return [row for row in left if row not in right] or one[2], [row for row in right if row not in left] or other[2]
