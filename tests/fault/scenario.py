"""A scenario: a system, a load, a fault, and what came of it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from taskyard.schemas.errors import DependencyError
from tests.fault.check import Verdict, Violation, check
from tests.fault.fleet import Fleet, Layout, fleet
from tests.fault.history import NEVER_S, History

# Of the rate that was planned; a check of what did not flow says nothing.
_LEAST_SHARE = 0.95


class Scenario(NamedTuple):
    """act: makes the fault and mends it. before_s, after_s: load around it. is_last: run after all others."""

    name: str
    act: Callable[[Fleet], None]
    layout: Layout = Layout()
    before_s: float = 6.0
    after_s: float = 12.0
    is_last: bool = False


class Row(NamedTuple):
    """What came of a scenario. rate: tasks that Kafka took, a second, from the first to the last; offered: the plan."""

    name: str
    tasks: int
    offered: int
    rate: float
    faults: int
    verdict: Verdict

    @property
    def is_right(self) -> bool:
        """Whether every rule held."""
        return not self.verdict.violations


def perform(scenario: Scenario, *, scale: float = 1.0, keep: Path | None = None) -> Row:
    """Run a scenario from its start to its verdict. scale: of the load's time. keep: where logs go if a rule broke."""
    with fleet(scenario.layout) as system:
        faults: list[Violation] = []
        try:
            system.flow(scenario.before_s * scale)
            scenario.act(system)
            system.flow(scenario.after_s * scale)
        except (DependencyError, OSError) as error:
            faults.append(Violation("unexpected", "", f"the scenario itself did not end: {error}"))
        history = system.finish()
        verdict = check(history)
        row = _row(scenario, history, verdict)
        if row.rate < _LEAST_SHARE * row.offered:
            faults.append(Violation("rate", "", f"{row.rate:.0f} tasks/s flowed, {row.offered} were to"))
        verdict.violations.extend(faults)
        if keep is not None and verdict.violations:
            folder = keep / f"{scenario.name}-{int(time.time())}"
            system.preserve(folder)
            (folder / "violations.txt").write_text("\n".join(map(str, verdict.violations)))
    return row


def _row(scenario: Scenario, history: History, verdict: Verdict) -> Row:
    appended = sorted(task.appended_s for task in history.published if task.appended_s < NEVER_S)
    rate = len(appended) / (appended[-1] - appended[0]) if len(appended) > 1 else 0.0
    return Row(scenario.name, len(appended), scenario.layout.plan.rate, rate, len(history.disturbances), verdict)
