"""The topics of a cell, under a prefix."""

from typing import NamedTuple

from taskyard.schemas.priority import PRIORITIES


class Topics(NamedTuple):
    """Topic names. `tasks` maps a priority to its topic, most urgent first.

    carried: compacted; keeps old unfinished tasks for a cell that loses everything. Nobody else reads it.
    """

    tasks: dict[str, str]
    results: str
    dead_letter: str
    carried: str

    @property
    def names(self) -> tuple[str, ...]:
        """All names, tasks first."""
        return (*self.tasks.values(), self.results, self.dead_letter, self.carried)


def topics(prefix: str = "") -> Topics:
    """Name the topics under `prefix`, which is put in front as it is (`prod.` gives `prod.tasks.high`)."""
    return Topics(
        {p: f"{prefix}tasks.{p}" for p in PRIORITIES}, f"{prefix}results", f"{prefix}dead-letter", f"{prefix}carried"
    )
