"""How deep an encoded value is nested, without building it."""

import re

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

    Cost: one pass in C over the bytes if few of them could start an array or a map, else 0.1 us a value in it. Nothing
    is built: keys of maps can be made to collide, and 12,000 such took 1.6 s to become a dict.
    """
    if len(value.translate(None, _NOT_CONTAINERS)) <= depth:
        return False
    # How many members are still to come, of each container that is open; the first stands for the value itself.
    open_ = [1]
    at, end = 0, len(value)
    while open_ and at < end:
        open_[-1] -= 1
        first = value[at]
        size = _SIZES[first]
        if size:
            at += size
        elif first in _LENGTHS:
            width, extra = _LENGTHS[first]
            at += 1 + width + extra + int.from_bytes(value[at + 1 : at + 1 + width])
        else:
            if len(open_) > depth:
                return True
            at, members = _opened(value, at, first)
            open_.append(members)
        while open_ and not open_[-1]:
            open_.pop()
    return False


# By its first byte: the size of a value that has always the same one, else 0.
_SIZES = bytes(
    1 if first < 0x80 or first >= 0xE0
    else first - 0x9F if 0xA0 <= first < 0xC0  # a short text
    else {0xC0: 1, 0xC1: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3,
          0xD2: 5, 0xD3: 9, 0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}.get(first, 0)
    for first in range(256)
)  # fmt: skip
# Of bytes, extensions and texts: how wide the length is, and what stands before the content besides.
_LENGTHS = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0),
    0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
    0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),
}  # fmt: skip


def _opened(value: bytes, at: int, first: int) -> tuple[int, int]:
    """Read the head of an array or a map: where its members begin, and how many they are, keys and values."""
    is_map = first < 0x90 or first >= 0xDE
    if first < 0xA0:
        members, width = first & 0x0F, 0
    else:
        width = 4 if first & 1 else 2
        members = int.from_bytes(value[at + 1 : at + 1 + width])
    return at + 1 + width, 2 * members if is_map else members
