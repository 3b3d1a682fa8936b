"""The lifecycles of a worker process and of each of its instances, as tables."""

from collections.abc import Mapping
from typing import Literal

from taskyard.schemas.errors import InvariantViolated

State = Literal["starting", "running", "draining", "stopped"]

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
"""starting: it holds no lease. running -> starting: the cell refused its epoch, it registers anew."""


class Lifecycle:
    """Where one of them stands. Begins at `starting`."""

    def __init__(self, table: Mapping[State, tuple[State, ...]]) -> None:
        self._table = table
        self.state: State = "starting"

    def move(self, to: State) -> None:
        """Go to another state. Raises InvariantViolated if the table has no such transition."""
        if to not in self._table[self.state]:
            raise InvariantViolated(f"lifecycle: no transition from {self.state} to {to}")
        self.state = to
