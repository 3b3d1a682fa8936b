"""The account: every published task ends once, and what does not is named."""

from taskyard.dispatcher.cli.rehearsal.account import Account
from taskyard.schemas.outcome import DeadLetter, Outcome
from taskyard.schemas.task import AgentType, Task, TaskId


def sent(account: Account, *names: str) -> None:
    for name in names:
        account.send(Task(id=TaskId(name), type=AgentType("a"), priority="high"))


def outcome(name: str, *, status: str = "succeeded", attempt: int = 1, started_ms: int = 2**42) -> Outcome:
    return Outcome(id=name, type="a", status=status, attempt=attempt, started_ms=started_ms)


def test_it_balances_when_every_task_has_succeeded_or_is_dead_with_its_letter() -> None:
    account = Account()
    sent(account, "one", "two")

    account.take(outcome("one"))
    account.take(outcome("two", status="dead"))
    account.take_letter(DeadLetter(reason="attempts", id="two"))

    assert (account.succeeded, account.dead, account.open) == (1, 1, 0)
    assert account.reasons == {"two": "attempts"}
    assert account.is_balanced
    assert account.faults() == []


def test_a_task_that_has_not_ended_is_named() -> None:
    account = Account()
    sent(account, *(f"task-{number}" for number in range(7)))

    account.take(outcome("task-0"))

    assert account.open == 6
    assert account.faults(named=2) == ["6 tasks have not ended: task-1, task-2 …"]


def test_a_dead_task_stays_open_until_its_letter_has_come_whichever_comes_first() -> None:
    letter_last, letter_first = Account(), Account()
    for account in (letter_last, letter_first):
        sent(account, "one")

    letter_last.take(outcome("one", status="dead"))
    letter_first.take_letter(DeadLetter(reason="deadline", id="one"))

    assert letter_last.faults() == ["1 task is dead without a dead letter: one"]
    letter_last.take_letter(DeadLetter(reason="deadline", id="one"))
    letter_first.take(outcome("one", status="dead"))
    assert letter_last.is_balanced
    assert letter_first.is_balanced


def test_an_outcome_that_is_delivered_twice_counts_once() -> None:
    account = Account()
    sent(account, "one")

    account.take(outcome("one"))
    account.take(outcome("one"))

    assert (account.succeeded, account.repeated) == (1, 1)
    assert account.is_balanced


def test_a_task_that_ends_in_two_ways_or_attempts_is_a_fault() -> None:
    account = Account()
    sent(account, "one", "two")

    account.take(outcome("one"))
    account.take(outcome("one", status="dead"))
    account.take(outcome("two"))
    account.take(outcome("two", attempt=2))

    assert not account.is_balanced
    assert account.faults() == ["2 tasks ended in two ways: one, two"]


def test_outcomes_of_an_earlier_run_are_no_concern() -> None:
    account = Account()
    sent(account, "one")

    account.take(outcome("another"))
    account.take_letter(DeadLetter(reason="age", id="another"))

    assert (account.strangers, account.open) == (1, 1)


def test_a_task_sent_again_after_a_lost_acknowledgement_is_one_task() -> None:
    account = Account()

    sent(account, "one", "one")
    account.take(outcome("one"))

    assert account.is_balanced
    assert account.open_by_type["a"] == 0


def test_the_wait_is_taken_from_first_attempts_only() -> None:
    account = Account()
    sent(account, "one", "two", "three")
    at_ms = account.sent["one"].sent_ms

    account.take(outcome("one", started_ms=at_ms + 40))
    account.take(outcome("two", started_ms=at_ms + 40, attempt=2))
    account.take(outcome("three", status="dead", started_ms=0))

    assert account.ended["one"].wait_ms == 40
    assert [account.ended[name].wait_ms for name in ("two", "three")] == [-1, -1]
    assert account.recent_waits() == {"high": [40]}
