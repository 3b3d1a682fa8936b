"""The auditor's half of the cell's contract: to compare what the cell keeps twice, and to mend what can be told.

What each kind of finding means, and what mends it, is at the head of `library/audit.lua`.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol


class Finding(NamedTuple):
    """What does not hold.

    part, subject, at: name it to `mend`; subject is an instance, a shape, a type or a task, by part. task: whom it is
    about, empty if no single one.
    """

    kind: str
    part: str
    subject: str
    at: str
    task: str
    detail: str


REPORTED = frozenset({"lost", "overcommitted", "unreadable"})
"""Kinds that Redis alone cannot mend; all others it can."""
KINDS = (
    "used", "vector", "flag", "open_set", "lease", "leftover", "stranded", "unplaced", "misplaced", "duplicate",
    "ended", "head", "deadline", "hold", "counter", "serving", "unfinished", "lost", "overcommitted", "unreadable",
)  # fmt: skip


class Page(NamedTuple):
    """What one call has looked at. cursor: where to go on, empty at the end.

    counts: what it has counted: instances by agent type, with how much headroom they have beyond their shares, in
    thousandths of a slot (`|headroom`), or places by bucket (Unix ms // BUCKET_MS). long: instances whose queues want a
    walk of their own. is_moved: the queue has changed between two pages, so its sums say nothing.
    """

    cursor: str
    findings: tuple[Finding, ...]
    counts: Mapping[str, int] = {}
    long: tuple[str, ...] = ()
    is_moved: bool = False


class AuditCell(Protocol):
    """What an audit needs. Each call is of one moment and bounded, and may be repeated."""

    async def keys(self, cursor: str) -> tuple[str, tuple[str, ...]]:
        """List a page of the cell's keys without their root, and the next cursor, empty at the end."""
        ...

    async def examine(self, walk: str, subject: str = "", cursor: str = "") -> Page:
        """Look at one page of a walk; writes nothing. A finding is so at the moment of the call."""
        ...

    async def mend(self, finding: Finding) -> tuple[Finding, ...]:
        """Check once more what was found and mend it. Returns what was mended: nothing if it is gone or has moved."""
        ...
