"""What the recovery of a cell needs of it: how it begins, what has ended, and the old tasks that are kept elsewhere."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

Incarnation = str
"""A partition of one life of a topic: `<topic id>:<partition>`. A re-created topic has another id."""

BUCKET_MS = 10_000
"""Unfinished tasks are counted by the time of arrival of their records, in buckets so wide."""

CARRIED_AGE_MS = 60_000
"""No younger task is carried."""


class Opening(NamedTuple):
    """generation: names the history. is_begun: False until `begin`: the cell is new, or has lost all it had.

    replaying: Kafka is being read again after a total loss, up to what `begin` was told; empty: it is not.
    """

    generation: str
    is_begun: bool
    replaying: Mapping[Incarnation, int] = MappingProxyType({})


class OldTasks(NamedTuple):
    """A page of a scan. cursor: for the next page; empty: that was all."""

    cursor: str
    task_ids: tuple[str, ...]


class RecoveryCell(Protocol):
    """A cell that has not begun takes no batch: it is new, or it has lost its history."""

    async def remember(self, task_ids: Sequence[str]) -> int:
        """Note tasks that have ended, as the results topic tells. Returns how many were not known.

        Only a cell that has not begun takes them. One that an instance holds is taken from it.
        """
        ...

    async def restore(self, entries: Sequence[bytes]) -> int:
        """Place or park carried tasks again, in a cell that has not begun. Returns how many; known ones are not."""
        ...

    async def begin(
        self, applied: Mapping[Incarnation, int], *, until: Mapping[Incarnation, int] = {}, generation: str = ""
    ) -> bool:
        """Let a new cell, or one that has lost its history, take batches: each partition from this offset on.

        until: how far that is a replay; what has been remembered is not forgotten before all of it has been applied.
        generation: only in this history, if not empty.
        False if it had begun already, or has another history; nothing changes then.
        """
        ...

    async def old(self, cursor: str, *, before_ms: int) -> OldTasks:
        """Scan for unfinished tasks of buckets that begin before `before_ms` and that are not carried.

        cursor: empty begins. What is there from the scan's beginning to its end is found, perhaps twice.
        """
        ...

    async def copies(self, task_ids: Sequence[str]) -> list[bytes]:
        """Read the entries of these tasks as they are now; empty: it has ended."""
        ...

    async def carry(self, task_ids: Sequence[str]) -> tuple[bool, ...]:
        """Note that copies of these tasks are in the topic of carried ones: they do not count as unfinished any more.

        False: it has ended meanwhile or is younger than CARRIED_AGE_MS, so its copy must be deleted. When one that is
        carried ends, the outbox tells it as `uncarried`. A cell that has not begun cannot tell: DependencyError.
        """
        ...
