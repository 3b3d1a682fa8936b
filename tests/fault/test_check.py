"""The checker finds each broken rule in a history made by hand, and excuses just what a fault excuses."""

import math

import pytest

from tests.fault.check import check, whole_s
from tests.fault.history import Disturbance, Ended, Fate, History, How, Letter, Published, Run

DIED = Disturbance("lost", "kill", 2.0, 2.0, "w.1")
ROLLED_BACK = Disturbance("rollback", "cut", 5.0, 6.0, back_s=1.0)


def published(task_id: str = "t", *, fate: Fate = "succeeds", offset: int = 0, at_s: float = 1.0) -> Published:
    """A task that Kafka has."""
    return Published(task_id, "normal", "fast", fate, "sleep", at_s, at_s, "tasks.normal", 0, offset)


def run(
    task_id: str = "t", attempt: int = 1, at: str = "i-1", *, began_s: float, ended_s: float = math.inf,
    how: How = "returned", process: str = "w.1",
) -> Run:  # fmt: skip
    """One start."""
    return Run(task_id, attempt, at, process, began_s, ended_s, "open" if ended_s == math.inf else how)


def ended(
    task_id: str = "t", attempt: int = 1, at: str = "i-1", *, at_s: float = 3.0, status: str = "succeeded",
    digest: bytes = b"1", failed: tuple[int, ...] = (), placed_s: float = 0.0, arrived_s: float = 0.0,
) -> Ended:  # fmt: skip
    """One outcome."""
    return Ended(task_id, attempt, status, at, digest, at_s, placed_s, arrived_s, failed)


def history(*tasks: Published, runs: tuple[Run, ...] = (), out: tuple[Ended, ...] = (), **more: object) -> History:
    """A history of two instances with one slot each."""
    made = History(tasks, runs, out, (), (), {"i-1": 1, "i-2": 1}, {})
    return made._replace(**more)


def broken(made: History) -> set[str]:
    """The names of the rules that a history breaks."""
    return set(check(made).by_rule())


USUAL = (run(began_s=2.0, ended_s=2.5),)


def test_a_task_that_runs_once_and_ends_once_breaks_no_rule() -> None:
    """The start of every other test here."""
    made = history(published(), runs=USUAL, out=(ended(), ended()))

    assert broken(made) == set()
    assert check(made).checked == 1 + 2 + 2


def test_an_acknowledged_task_without_an_outcome_is_lost() -> None:
    """Unless an operator removed its topic, or Kafka never said that it has it."""
    made = history(published())
    unsure = history(published()._replace(appended_s=math.inf))

    assert broken(made) == {"lost"}
    assert broken(made._replace(dropped=frozenset({"t"}))) == set()
    assert broken(unsure) == set()


def test_an_outcome_of_a_task_that_nobody_published_is_foreign() -> None:
    """So is a start."""
    assert broken(history(runs=USUAL, out=(ended(),))) == {"foreign"}


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (ended(digest=b"2"), "another finish of the same attempt was accepted"),
        (ended(attempt=2, digest=b"2", failed=(1,)), "another attempt has ended"),
    ],
)
def test_two_outcomes_that_are_not_the_same_record_are_one_too_many(second: Ended, why: str) -> None:
    """The relay repeats the bytes."""
    runs = (*USUAL, run(attempt=2, began_s=3.5, ended_s=4.0))

    assert "outcome" in broken(history(published(), runs=runs, out=(ended(), second._replace(ended_s=4.0)))), why


def test_after_a_rollback_an_attempt_may_succeed_once_more_but_no_other_may() -> None:
    """Its first success was in the time that was lost."""
    first = run(began_s=4.2, ended_s=4.5)
    again = run(began_s=6.5, ended_s=7.0)
    out = (ended(at_s=4.5), ended(at_s=7.0, digest=b"2"))
    made = history(published(), runs=(first, again), out=out, disturbances=(ROLLED_BACK,))
    next_attempt = (out[0], out[1]._replace(attempt=2, failed=(1,)))
    long_before = ROLLED_BACK._replace(back_s=0.1)

    assert broken(made) == set()
    assert "outcome" in broken(made._replace(ended=next_attempt))
    assert {"outcome", "twice"} <= broken(made._replace(disturbances=(long_before,)))


def test_a_task_that_was_made_to_succeed_must_not_die() -> None:
    """And the other way round."""
    dead = ended(status="dead", at="")
    letters = (Letter("t", 1, "attempts"),)
    failing = (run(began_s=2.0, ended_s=2.5, how="raised"),)

    assert broken(history(published(), runs=failing, out=(dead,), letters=letters)) == {"dead"}
    assert broken(history(published(fate="dies"), runs=failing, out=(dead,), letters=letters)) == set()
    assert broken(history(published(fate="dies"), runs=USUAL, out=(ended(),))) == {"dead"}


def test_a_dead_task_is_told_in_both_topics() -> None:
    """To those who wait for its result, and whole in the dead letter."""
    dead = ended(status="dead", at="")
    failing = (run(began_s=2.0, ended_s=2.5, how="raised"),)
    letters = (Letter("t", 1, "attempts"),)

    assert broken(history(published(fate="dies"), runs=failing, out=(dead,))) == {"dead"}
    assert "dead" in broken(history(published(fate="dies"), runs=failing, letters=letters))


@pytest.mark.parametrize("wrong", [ended(attempt=2, failed=(1,)), ended(at="i-2")])
def test_a_success_that_no_handler_wrote_down_is_untold(wrong: Ended) -> None:
    """Another attempt's, or on another instance."""
    assert broken(history(published(), runs=USUAL, out=(wrong,))) == {"untold"}


def test_an_attempt_starts_once() -> None:
    """Unless the first one's process was lost before the second start."""
    first = run(began_s=1.5)
    second = run(began_s=4.0, ended_s=4.5, at="i-2", process="w.2")
    made = history(published(), runs=(first, second), out=(ended(at="i-2", at_s=4.5),))

    assert broken(made) == {"twice"}
    assert broken(made._replace(disturbances=(DIED,))) == set()
    assert broken(made._replace(disturbances=(DIED._replace(subject="w.9"),))) == {"twice"}
    assert broken(made._replace(disturbances=(DIED._replace(began_s=4.2, until_s=4.2),))) == {"twice"}
    assert broken(made._replace(disturbances=(Disturbance("other", "kafka", 2.0, 3.0),))) == {"twice"}


@pytest.mark.parametrize(("how", "rules"), [("raised", set[str]()), ("cancelled", set[str]()), ("returned", {"again"})])
def test_a_second_attempt_needs_a_first_one_that_failed(how: How, rules: set[str]) -> None:
    """Or one whose process was lost."""
    runs = (run(began_s=2.0, ended_s=2.5, how=how), run(attempt=2, began_s=3.0, ended_s=3.5))
    made = history(published(), runs=runs, out=(ended(attempt=2, at_s=3.5, failed=(1,)),))

    assert broken(made) == rules
    assert broken(made._replace(deaths={"w.1": 2.6})) == set()


def test_an_attempt_that_comes_after_a_later_one_is_wrong_unless_a_zombie_runs_it() -> None:
    """One that was paused, and has not learned yet that its tasks were given to others."""
    runs = (
        run(attempt=2, began_s=2.0, ended_s=2.5, at="i-2", process="w.2"),
        run(attempt=1, began_s=4.0, ended_s=4.5),
    )
    made = history(published(), runs=runs, out=(ended(attempt=2, at="i-2", at_s=2.5, failed=(1,)),))
    paused = Disturbance("lost", "stop", 1.0, 3.9, "w.1")

    assert broken(made) == {"again", "late"}
    assert broken(made._replace(disturbances=(paused,))) == set()


def test_nothing_of_a_task_starts_after_its_outcome() -> None:
    """Whatever the attempt's number."""
    runs = (*USUAL, run(attempt=2, began_s=3.5, ended_s=3.9, how="raised"))

    assert "late" in broken(history(published(), runs=runs, out=(ended(),)))


def test_only_the_current_attempt_may_end_a_task() -> None:
    """Even if the process of the earlier one was lost, and finished it after all."""
    runs = (run(began_s=1.5, ended_s=5.0), run(attempt=2, began_s=3.0, at="i-2", process="w.2"))
    made = history(published(), runs=runs, out=(ended(at_s=5.0),), disturbances=(DIED,))

    assert broken(made) == {"stale"}
    assert broken(made._replace(disturbances=(DIED, ROLLED_BACK._replace(began_s=3.5)))) == set()


def test_no_attempt_is_skipped() -> None:
    """Each was started, or the outcome names it as failed: an instance may die before a handler writes."""
    runs = (run(attempt=3, began_s=2.0, ended_s=2.5),)

    assert broken(history(published(), runs=runs, out=(ended(attempt=3, failed=(1,)),))) == {"skipped"}
    assert broken(history(published(), runs=runs, out=(ended(attempt=3, failed=(1, 2)),))) == set()


def test_an_instance_never_runs_more_than_it_has_slots() -> None:
    """What a dead process ran has ended with it."""
    runs = (run("a", began_s=2.0), run("b", began_s=3.0, ended_s=4.0), run("c", began_s=4.0, ended_s=5.0))
    out = (ended("a", at_s=9.0), ended("b", at_s=4.0), ended("c", at_s=5.0))
    tasks = (published("a"), published("b", offset=1), published("c", offset=2))

    assert "capacity" in broken(history(*tasks, runs=runs, out=out))
    assert "capacity" not in broken(history(*tasks, runs=runs, out=out, deaths={"w.1": 2.5}))
    assert "capacity" not in broken(history(*tasks, runs=runs[1:], out=out))


def test_a_task_is_not_placed_before_one_that_arrived_earlier() -> None:
    """Where no fault touched either; within one millisecond any order will do."""
    runs = (run("a", began_s=2.0, ended_s=2.2), run("b", at="i-2", began_s=2.0, ended_s=2.2))
    a = ended("a", placed_s=1.9, arrived_s=1.0, at_s=2.2)
    b = ended("b", at="i-2", placed_s=1.5, arrived_s=1.1, at_s=2.2)
    made = history(published("a"), published("b", offset=1), runs=runs, out=(a, b))
    touched = Disturbance("other", "kafka", 2.1, 2.2)

    assert broken(made) == {"order"}
    assert broken(made._replace(disturbances=(touched,))) == set()
    assert broken(made._replace(ended=(a, b._replace(arrived_s=1.0)))) == set()
    assert broken(made._replace(published=(published("a"), published("b", offset=1)._replace(partition=1)))) == set()


def test_what_is_left_in_the_cell_is_a_violation() -> None:
    """So is a process that ended by itself."""
    made = history(published(), runs=USUAL, out=(ended(),))

    assert broken(made._replace(left={"parked": 0, "drift": 1})) == {"left"}
    assert broken(made._replace(unexpected=["dispatcher-1 ended"])) == {"unexpected"}


def test_the_system_is_whole_when_no_task_is_old_any_more() -> None:
    """Counted from the end of the last fault."""
    tasks = (published("a", at_s=5.0), published("b", at_s=7.0))
    out = (ended("a", at_s=8.5), ended("b", at_s=9.9))
    made = history(*tasks, out=out, disturbances=(Disturbance("other", "kafka", 4.0, 6.0),))

    assert whole_s(made) == pytest.approx(3.9)
    assert whole_s(made._replace(ended=(ended("a", at_s=5.9), ended("b", at_s=7.1)))) == 0.0
