"""How deep an encoded value is nested, without building it where that can be avoided."""

import re
from collections.abc import Iterable
from typing import Any, cast

import msgspec

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NOT_CONTAINERS = bytes(set(range(256)) - {*range(0x80, 0xA0), *range(0xDC, 0xE0)})


def is_json_deep(value: bytes, depth: int) -> bool:
    """Whether valid JSON is nested deeper than `depth`; `[]` is 1 deep.

    Cost: a few passes over the bytes for real payloads, `depth` passes over the brackets at worst.
    """
    brackets = _STRINGS.sub(b"", value).translate(_AS_SQUARE, _NOT_BRACKETS)
    # Each pass takes away the innermost pairs, so a value loses one level.
    for _ in range(depth):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def is_msgpack_deep(value: bytes, depth: int) -> bool:
    """Whether valid MessagePack is nested deeper than `depth`; an empty array is 1 deep.

    Cost: one pass over the bytes if few of them could start an array or a map, else the value is built.
    Returns False for text that is not UTF-8: whoever decodes the payload is told.
    """
    if len(value.translate(None, _NOT_CONTAINERS)) <= depth:
        return False
    try:
        level = _containers([msgspec.msgpack.decode(value)])
    except ValueError:
        return False
    for _ in range(depth):
        level = _containers(inner for outer in level for inner in outer)
    return bool(level)


def _containers(values: Iterable[Any]) -> list[Any]:
    """The arrays and maps among the values, a map as the sequence of its keys and values."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, dict):
            members = cast("dict[Any, Any]", value)
            found.append([*members, *members.values()])
        elif isinstance(value, list | tuple):
            found.append(cast("Any", value))
    return found
