"""Shrinking a case that fails: leave out faults and records while it still breaks the same promise."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from tests.simulation.run import Case, Result, play

T = TypeVar("T")


class _Budget:
    """How many runs are left."""

    def __init__(self, runs: int) -> None:
        self.runs = runs


def shrink(case: Case, first: Result, *, runs: int = 80) -> tuple[Case, Result]:
    """Return the smallest case found that breaks the promise that `first` broke, and its result. Plays it `runs` times
    at most."""
    assert first.violation is not None
    wanted, best, budget = first.violation.invariant, first, _Budget(runs)

    def fails(tried: Case) -> bool:
        nonlocal best
        if budget.runs <= 0:
            return False
        budget.runs -= 1
        result = play(tried)
        is_same = result.violation is not None and result.violation.invariant == wanted
        best = result if is_same else best
        return is_same

    case = case._replace(faults=_fewer(case.faults, lambda kept: fails(case._replace(faults=kept))))

    def with_records(kept: tuple[object, ...]) -> Case:
        return case._replace(scene=case.scene._replace(publications=kept))

    kept = _fewer(case.scene.publications, lambda some: fails(with_records(some)))
    return with_records(kept), best


def _fewer(items: Sequence[T], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Leave out ever smaller parts as long as it fails without them (Zeller, "Simplifying failure-inducing input")."""
    kept, size = tuple(items), max(1, len(items) // 2)
    while kept:
        start, has_shrunk = 0, False
        while start < len(kept):
            tried = kept[:start] + kept[start + size :]
            if fails(tried):
                kept, has_shrunk = tried, True
            else:
                start += size
        if size == 1 and not has_shrunk:
            break
        size = max(1, size // 2) if not has_shrunk else min(size, max(1, len(kept) // 2))
    return kept
