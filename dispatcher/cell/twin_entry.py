"""The head of an entry, read and rewritten as `library/entry.lua` does it: everything behind it stays byte for byte."""

import struct
from dataclasses import dataclass

from taskyard.schemas.entry import FIXED, VERSION
from taskyard.schemas.errors import DependencyError

MAX_CAUSES_BYTES = 2048
"""The newest causes that fit are kept."""
MAX_CAUSE_BYTES = 400

_U16 = struct.Struct("<H")
_ONE_LINE = bytes.maketrans(b"\r\n\t", b"   ")


@dataclass(slots=True)
class Head:
    """What the cell reads of an entry. attempt, evictions and causes may be changed for `rewrite`."""

    attempt: int
    max_attempts: int
    evictions: int
    key_ms: float
    deadline_ms: float
    arrived_ms: float
    id: str
    shape: str
    causes: bytes
    rest: bytes

    def is_late(self, now_ms: int) -> bool:
        """Whether its deadline has passed."""
        return 0 < self.deadline_ms < now_ms

    def add_cause(self, instance: str, reason: bytes, now_ms: int) -> None:
        """Add why this attempt ended; drops the oldest lines beyond the bound."""
        line = reason.translate(_ONE_LINE)[:MAX_CAUSE_BYTES]
        causes = self.causes + f"{self.attempt}\t{instance}\t{now_ms}\t".encode() + line + b"\n"
        while len(causes) > MAX_CAUSES_BYTES:
            causes = causes.partition(b"\n")[2]
        self.causes = causes


def read_head(entry: bytes) -> Head:
    """Read the head. Raises DependencyError if there is none, as a server would refuse the call."""
    try:
        version, attempt, max_attempts, evictions, key_ms, deadline_ms, arrived_ms = FIXED.unpack_from(entry)
        at = FIXED.size
        texts: list[bytes] = []
        for _ in ("id", "shape", "causes"):
            (size,) = _U16.unpack_from(entry, at)
            texts.append(struct.unpack_from(f"{size}s", entry, at + _U16.size)[0])
            at += _U16.size + size
    except struct.error as error:
        raise DependencyError(f"the cell refused an entry: {error}") from error
    if version != VERSION:
        raise DependencyError(f"the cell refused an entry: version {version}")
    task_id, shape, causes = texts
    return Head(
        attempt, max_attempts, evictions, key_ms, deadline_ms, arrived_ms,
        task_id.decode(), shape.decode(), causes, entry[at:],
    )  # fmt: skip


def rewrite(head: Head) -> bytes:
    """Write the entry with this head and its own rest."""
    fixed = FIXED.pack(
        VERSION, head.attempt, head.max_attempts, head.evictions, head.key_ms, head.deadline_ms, head.arrived_ms
    )
    texts = (head.id.encode(), head.shape.encode(), head.causes)
    return fixed + b"".join(_U16.pack(len(text)) + text for text in texts) + head.rest
