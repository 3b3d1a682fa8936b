"""The account: every published task by its id, and how it ended, as `results` and `dead-letter` tell."""

import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from taskyard.schemas.outcome import DeadLetter, Outcome
from taskyard.schemas.task import Task


class Sent(NamedTuple):
    """A task as it was published. sent_ms: Unix time at which it was handed to the producer."""

    type: str
    priority: str
    tenant: str
    sent_ms: int


class Ended(NamedTuple):
    """How a task ended. wait_ms: from publish to the start of its first attempt; -1 if another one ended it."""

    is_succeeded: bool
    attempt: int
    wait_ms: int
    finished_ms: int


class Recent(NamedTuple):
    """A wait that was told at mono_s."""

    mono_s: float
    priority: str
    wait_ms: int


class Account:
    """Written by the load generator (`send`) and the reader of the topics (`take`, `take_letter`), on one loop.

    An outcome told twice with the same attempt is a repeated delivery, which at-least-once allows: `repeated`.
    A task that ended in two ways, or in two attempts, is a fault: `contradicted`.
    """

    def __init__(self, *, recent_s: float = 5.0) -> None:
        self.sent: dict[str, Sent] = {}
        self.ended: dict[str, Ended] = {}
        self.reasons: dict[str, str] = {}  # dead task -> why
        self.repeated = 0
        self.contradicted: list[str] = []
        self.open_by_type: Counter[str] = Counter()
        self.dead = 0
        self.strangers = 0  # outcomes of tasks that are not ours: an earlier run's
        self._recent_s = recent_s
        self._recent: deque[Recent] = deque()
        self._unexplained: set[str] = set()  # dead, and the dead letter has not been seen yet

    def send(self, task: Task) -> None:
        """Enter a task that is about to be published; again is harmless."""
        if task.id not in self.sent:
            self.sent[task.id] = Sent(task.type, task.priority, task.tenant, time.time_ns() // 1_000_000)
            self.open_by_type[task.type] += 1

    def take(self, outcome: Outcome) -> None:
        """Enter an outcome."""
        sent = self.sent.get(outcome.id)
        if sent is None:
            self.strangers += 1
            return
        is_succeeded = outcome.status == "succeeded"
        before = self.ended.get(outcome.id)
        if before is not None:
            if (before.is_succeeded, before.attempt) == (is_succeeded, outcome.attempt):
                self.repeated += 1
            else:
                self.contradicted.append(outcome.id)
            return
        wait_ms = -1
        if is_succeeded and outcome.attempt == 1 and outcome.started_ms:
            wait_ms = max(0, outcome.started_ms - sent.sent_ms)
            self._recent.append(Recent(time.monotonic(), sent.priority, wait_ms))
        self.ended[outcome.id] = Ended(is_succeeded, outcome.attempt, wait_ms, outcome.finished_ms)
        self.open_by_type[sent.type] -= 1
        self.dead += not is_succeeded
        if not is_succeeded and outcome.id not in self.reasons:
            self._unexplained.add(outcome.id)

    def take_letter(self, letter: DeadLetter) -> None:
        """Enter a dead letter."""
        if letter.id in self.sent:
            self.reasons.setdefault(letter.id, letter.reason)
            self._unexplained.discard(letter.id)

    @property
    def open(self) -> int:
        """Tasks that have not ended, or whose dead letter is still missing."""
        return len(self.sent) - len(self.ended) + len(self._unexplained)

    def missing(self) -> Iterator[str]:
        """The ids that have not ended."""
        return (task_id for task_id in self.sent if task_id not in self.ended)

    @property
    def is_balanced(self) -> bool:
        """Whether every published task has ended, once."""
        return not self.open and not self.contradicted

    def faults(self, *, named: int = 5) -> list[str]:
        """Say what does not add up, with the first ids."""
        found = [
            ("has not ended", "have not ended", list(self.missing())),
            ("is dead without a dead letter", "are dead without a dead letter", sorted(self._unexplained)),
            ("ended in two ways", "ended in two ways", self.contradicted),
        ]
        return [
            f"{len(ids)} task{'s' if len(ids) > 1 else ''} {many if len(ids) > 1 else one}: "
            + ", ".join(ids[:named]) + (" …" if len(ids) > named else "")
            for one, many, ids in found
            if ids
        ]  # fmt: skip

    def recent_waits(self) -> dict[str, list[int]]:
        """Waits told in the last seconds, per priority."""
        since_s = time.monotonic() - self._recent_s
        while self._recent and self._recent[0].mono_s < since_s:
            self._recent.popleft()
        found: dict[str, list[int]] = {}
        for _, priority, wait_ms in self._recent:
            found.setdefault(priority, []).append(wait_ms)
        return found

    @property
    def succeeded(self) -> int:
        """Tasks that succeeded."""
        return len(self.ended) - self.dead
