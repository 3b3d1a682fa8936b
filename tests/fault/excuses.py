"""What excuses a breach: the disturbances of a history, asked by time."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol, TypeVar

from tests.fault.history import NEVER_S, History, Run

# Around the loss of a process: an ending that it had written down but not sent, an entry that it had read and starts
# before it learns that it was lost.
_IN_FLIGHT_S = 2.0
# Around any disturbance, what may feel it: tasks on their way when it came, and those that waited meanwhile.
_BEFORE_S = 1.0
_AFTER_S = 5.0


class _OfTask(Protocol):
    @property
    def task_id(self) -> str: ...


T = TypeVar("T", bound=_OfTask)


def by_task(rows: Iterable[T]) -> dict[str, list[T]]:
    """Part rows by their task."""
    found: dict[str, list[T]] = defaultdict(list)
    for row in rows:
        found[row.task_id].append(row)
    return dict(found)


class Excuses:
    """The disturbances of a history."""

    def __init__(self, history: History) -> None:
        self._all = history.disturbances
        self._rollbacks = [one for one in self._all if one.kind == "rollback"]
        self._losses: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for one in self._all:
            if one.kind == "lost":
                self._losses[one.subject].append((one.began_s, one.until_s))
        for process, at_s in history.deaths.items():
            self._losses[process].append((at_s, NEVER_S))

    def between(self, earlier: Run, run: Run) -> bool:
        """Whether `run` may have been started without knowledge of `earlier`, or by a process that had been lost."""
        return (
            self.rolled_back(earlier.started_s, earlier.ended_s, run.started_s)
            or self._was_lost(earlier.process, earlier.started_s, earlier.ended_s, run.started_s)
            or self._was_lost(run.process, run.started_s, run.started_s, run.started_s)
        )

    def _was_lost(self, process: str, started_s: float, ended_s: float, later_s: float) -> bool:
        return any(
            started_s <= until_s + _IN_FLIGHT_S and began_s <= min(later_s, ended_s + _IN_FLIGHT_S)
            for began_s, until_s in self._losses.get(process, ())
        )

    def rolled_back(self, started_s: float, ended_s: float, later_s: float) -> bool:
        """Whether the live state may have lost a part of what started and ended then, before later_s."""
        return any(
            started_s <= one.until_s and one.began_s <= later_s and ended_s >= one.began_s - one.back_s
            for one in self._rollbacks
        )

    def touched(self, began_s: float, ended_s: float) -> bool:
        """Whether any disturbance was felt between the two."""
        return any(began_s <= one.until_s + _AFTER_S and ended_s >= one.began_s - _BEFORE_S for one in self._all)
