"""The lifecycles of a worker process and of each of its instances, and how the cell has an instance, as tables."""

from collections.abc import Mapping
from typing import Generic, Literal, TypeVar

from taskyard.schemas.errors import InvariantViolated

State = Literal["starting", "running", "draining", "stopped"]
Standing = Literal["absent", "resuming", "resumed", "open"]
S = TypeVar("S", bound=str)

WORKER: Mapping[State, tuple[State, ...]] = {
    "starting": ("running", "draining"),
    "running": ("draining",),
    "draining": ("stopped",),
    "stopped": (),
}
"""running: every instance has been registered once. draining: nothing new is started."""

INSTANCE: Mapping[State, tuple[State, ...]] = {
    "starting": ("running", "stopped"),
    "running": ("starting", "draining"),
    "draining": ("stopped",),
    "stopped": (),
}
"""starting: it holds no lease and no task. running -> starting: it lost both, or its lease while it held no task."""

STANDING: Mapping[Standing, tuple[Standing, ...]] = {
    "absent": ("resuming", "open"),
    "resuming": ("absent", "resumed"),
    "resumed": ("absent", "resuming", "open"),
    "open": ("absent", "resuming"),
}
"""How the cell has an instance, whatever the instance's own state. Both matter: one that drains may have to resume.

absent: it has no lease. resuming: it has one, but the cell may not know what it holds; only beats and resyncs go out.
resumed: the cell knows; what ended meanwhile is finished. open: its queue is read too.
"""


class Lifecycle(Generic[S]):
    """Where one of them stands. Begins at the first state of its table."""

    def __init__(self, table: Mapping[S, tuple[S, ...]]) -> None:
        self._table = table
        self.state: S = next(iter(table))

    def move(self, to: S) -> None:
        """Go to another state. Raises InvariantViolated if the table has no such transition."""
        if to not in self._table[self.state]:
            raise InvariantViolated(f"lifecycle: no transition from {self.state} to {to}")
        self.state = to
