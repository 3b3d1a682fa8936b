"""The checker: decides from a history alone, task by task, whether the product kept its word.

Rule by rule, and what excuses a breach of it:

lost        an acknowledged task has an outcome. Excuse: an operator removed its topic before it was applied.
foreign     an outcome, or a start, is of a task that was published.
outcome     a task has one outcome. Repeated records are the same bytes (the relay). Excuse: a rollback between two
            successes of one attempt; never a second attempt number, never success beside death.
dead        a task ends as it was made to end; a dead one has an outcome and a dead letter of the same attempt.
untold      a success was written down by the handler: that attempt, on that instance, returned before the outcome.
twice       an attempt starts once. Excuse: the process of the earlier start was lost between the two starts (its
            queue was taken back; what it had not reported as read keeps its number), a rollback came between them
            that reached back to the earlier one's life, or the later start is of a lost process that does not know it.
again       an attempt after the first starts only when the one before has ended without success. Excuse: as above.
stale       no attempt after that of the outcome has ever started: only the current attempt may end a task. Excuse: a
            rollback.
skipped     the attempts of a task are 1, 2, 3 …: each was started or is named in the outcome as failed.
late        nothing of a task starts after its outcome. Excuse: as for `twice`.
capacity    what an instance runs at once never exceeds its slots. A process's runs end when it dies. No excuse.
order       first attempts of one type and priority, from one partition, are placed in the order in which they arrived.
            Only among tasks that no disturbance touched between their arrival and their end.
left        afterwards the cell is empty and every ledger agrees with its vector.
unexpected  no process ended that was not ended.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.fault.excuses import Excuses, by_task
from tests.fault.history import NEVER_S, Ended, History, Run

# A run's start is written a moment before it counts, its outcome in whole milliseconds.
_ROUNDING_S = 0.002
# Older than this, an unfinished task says that the system is not whole.
_PROMPT_S = 1.0


class Violation(NamedTuple):
    """A broken rule. task_id: empty if it is of no single task."""

    rule: str
    task_id: str
    what: str


class Verdict(NamedTuple):
    """checked: how many operations were looked at. whole_s: from the end of the last disturbance until the oldest
    unfinished task was younger than a second, and stayed so."""

    violations: list[Violation]
    tasks: int
    checked: int
    whole_s: float

    def by_rule(self) -> dict[str, int]:
        """How often each rule was broken."""
        counts: dict[str, int] = defaultdict(int)
        for violation in self.violations:
            counts[violation.rule] += 1
        return dict(counts)


def check(history: History) -> Verdict:
    """Judge a history. Pure. Cost: about 10 us a task."""
    violations = [violation for rule in RULES for violation in rule(history)]
    checked = len(history.published) + 2 * len(history.runs) + len(history.ended) + len(history.letters)
    return Verdict(violations, len(history.published), checked, whole_s(history))


def whole_s(history: History) -> float:
    """How long after the last disturbance a task still took longer than a second; 0 if none did."""
    if not history.disturbances:
        return 0.0
    began_s = min(one.began_s for one in history.disturbances)
    over_s = max(one.until_s for one in history.disturbances)
    first = {one.task_id: one for one in reversed(history.ended)}
    slow = [
        first[task.task_id].ended_s
        for task in history.published
        if task.fate == "succeeds"
        and task.task_id in first
        and task.appended_s < first[task.task_id].ended_s - _PROMPT_S
    ]
    return max([0.0, *(ended_s - over_s for ended_s in slow if ended_s > began_s)])


def _lost(history: History) -> Iterator[Violation]:
    ended = {one.task_id for one in history.ended}
    for task in history.published:
        if task.appended_s < NEVER_S and task.task_id not in ended and task.task_id not in history.dropped:
            yield Violation("lost", task.task_id, f"acknowledged at {task.topic}:{task.partition}:{task.offset}")


def _foreign(history: History) -> Iterator[Violation]:
    published = {task.task_id for task in history.published}
    for task_id in {one.task_id for one in (*history.ended, *history.runs, *history.letters)} - published:
        yield Violation("foreign", task_id, "nobody published it")


def _outcome(history: History) -> Iterator[Violation]:
    excuses = Excuses(history)
    for task_id, records in by_task(history.ended).items():
        distinct = sorted({one.digest: one for one in reversed(records)}.values(), key=lambda one: one.ended_s)
        first = distinct[0]
        for other in distinct[1:]:
            is_same = (other.attempt, other.status) == (first.attempt, "succeeded")
            if not (is_same and excuses.rolled_back(first.ended_s, first.ended_s, other.ended_s)):
                yield Violation("outcome", task_id, f"{_said(first)}, then {_said(other)}")


def _dead(history: History) -> Iterator[Violation]:
    letters = by_task(history.letters)
    fates = {task.task_id: task.fate for task in history.published}
    for one in history.ended:
        is_dead = one.status == "dead"
        fate = fates.get(one.task_id, "either")
        if fate != "either" and is_dead != (fate == "dies"):
            yield Violation("dead", one.task_id, f"{_said(one)}, was made so that it {fate}")
        if is_dead and not any(letter.attempt == one.attempt for letter in letters.get(one.task_id, ())):
            yield Violation("dead", one.task_id, f"{_said(one)}, but the dead letter has no such record")
    dead = {one.task_id for one in history.ended if one.status == "dead"}
    for task_id in letters.keys() - dead:
        yield Violation("dead", task_id, "is in the dead letter, but no outcome says so")


def _untold(history: History) -> Iterator[Violation]:
    returned = {(run.task_id, run.attempt, run.instance): run.ended_s for run in history.runs if run.how == "returned"}
    for one in history.ended:
        if one.status == "succeeded":
            ended_s = returned.get((one.task_id, one.attempt, one.instance), NEVER_S)
            if ended_s == NEVER_S:
                yield Violation("untold", one.task_id, f"{_said(one)}, but no handler returned there")


def _starts(history: History) -> Iterator[Violation]:
    """`twice`, `again`, `late` and `stale`: each start is held against those before it and against the outcome."""
    excuses = Excuses(history)
    outcomes = {one.task_id: one for one in reversed(history.ended)}
    for task_id, found in by_task(history.runs).items():
        runs = sorted(found, key=lambda run: run.started_s)
        for at, run in enumerate(runs[1:], 1):
            yield from _repeated(runs[:at], run, excuses)
        outcome = outcomes.get(task_id)
        if outcome and outcome.status == "succeeded":
            yield from _after_the_end(runs, outcome, excuses)


def _repeated(before: list[Run], run: Run, excuses: Excuses) -> Iterator[Violation]:
    for earlier in before:
        if excuses.between(earlier, run):
            continue
        is_over = earlier.how in ("raised", "cancelled") and earlier.ended_s <= run.started_s
        if earlier.attempt == run.attempt:
            yield Violation("twice", run.task_id, f"{_ran(earlier)}, and {_ran(run)}")
        elif earlier.attempt > run.attempt or not is_over:
            yield Violation("again", run.task_id, f"{_ran(run)}, although {_ran(earlier)}")


def _after_the_end(runs: list[Run], outcome: Ended, excuses: Excuses) -> Iterator[Violation]:
    accepted = [run for run in runs if (run.attempt, run.instance) == (outcome.attempt, outcome.instance)]
    for run in runs:
        is_late = run.started_s > outcome.ended_s + _ROUNDING_S
        is_excused = excuses.rolled_back(run.started_s, run.ended_s, outcome.ended_s)
        is_excused = is_excused or excuses.rolled_back(outcome.ended_s, outcome.ended_s, run.started_s)
        if run.attempt > outcome.attempt and not is_excused:
            yield Violation("stale", run.task_id, f"{_said(outcome)}, but {_ran(run)}")
        if accepted and is_late and not excuses.between(accepted[0], run):
            yield Violation("late", run.task_id, f"{_ran(run)} after {_said(outcome)}")


def _skipped(history: History) -> Iterator[Violation]:
    failed: dict[str, set[int]] = defaultdict(set)
    for one in history.ended:
        failed[one.task_id].update(one.failed)
        failed[one.task_id].add(one.attempt)
    for task_id, runs in by_task(history.runs).items():
        known = failed[task_id] | {run.attempt for run in runs}
        missing = set(range(1, max(known) + 1)) - known
        if missing:
            yield Violation("skipped", task_id, f"attempts {sorted(known)}, where is {sorted(missing)}?")


def _capacity(history: History) -> Iterator[Violation]:
    changes: dict[tuple[str, str], list[tuple[float, int, str]]] = defaultdict(list)
    for run in history.runs:
        until_s = min(run.ended_s, history.deaths.get(run.process, NEVER_S))
        place = (run.process, run.instance)
        # At one moment ends count before starts: the clock has steps.
        changes[place] += [(run.started_s, 1, run.task_id), (until_s, -1, run.task_id)]
    for (process, instance), steps in changes.items():
        busy = 0
        for at_s, change, task_id in sorted(steps):
            busy += change
            if change > 0 and busy > history.slots[instance]:
                what = f"{busy} at once on {instance} of {process}, {history.slots[instance]} slots, at {at_s:.3f} s"
                yield Violation("capacity", task_id, what)


def _order(history: History) -> Iterator[Violation]:
    excuses = Excuses(history)
    ended = {one.task_id: one for one in reversed(history.ended)}
    lanes: dict[tuple[str, ...], list[tuple[int, Ended]]] = defaultdict(list)
    for task in history.published:
        one = ended.get(task.task_id)
        if one and one.attempt == 1 and one.placed_s and task.offset >= 0:
            lane = (task.type, task.priority, task.topic, str(task.partition))
            lanes[lane].append((task.offset, one))
    for rows in lanes.values():
        in_order = [one for _, one in sorted(rows, key=lambda row: row[0])]
        yield from _overtaken([one for one in in_order if not excuses.touched(one.arrived_s, one.ended_s)])


def _overtaken(lane: list[Ended]) -> Iterator[Violation]:
    """Those placed before one that arrived in an earlier millisecond; within one, keys are equal and any order does."""
    latest: Ended | None = None
    same: list[Ended] = []
    for one in lane:
        if same and one.arrived_s > same[0].arrived_s:
            latest = max([*same, *([latest] if latest else [])], key=lambda other: other.placed_s)
            same = []
        same.append(one)
        if latest and one.placed_s < latest.placed_s - _ROUNDING_S / 2:
            early_ms = (latest.placed_s - one.placed_s) * 1000
            yield Violation("order", one.task_id, f"placed {early_ms:.0f} ms before {latest.task_id}, which came first")


def _left(history: History) -> Iterator[Violation]:
    for name, count in history.left.items():
        if count:
            yield Violation("left", "", f"{name}: {count}")


def _unexpected(history: History) -> Iterator[Violation]:
    for what in history.unexpected:
        yield Violation("unexpected", "", what)


RULES: tuple[Callable[[History], Iterator[Violation]], ...] = (
    _lost, _foreign, _outcome, _dead, _untold, _starts, _skipped, _capacity, _order, _left, _unexpected,
)  # fmt: skip


def _said(one: Ended) -> str:
    return f"attempt {one.attempt} {one.status}{f' on {one.instance}' if one.instance else ''} {one.reason}".rstrip()


def _ran(run: Run) -> str:
    end = "runs" if run.ended_s == NEVER_S else f"{run.how} at {run.ended_s:.3f} s"
    return f"attempt {run.attempt} started on {run.instance} of {run.process} at {run.started_s:.3f} s, {end}"
