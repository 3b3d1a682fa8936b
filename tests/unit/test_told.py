"""What `results` and `dead-letter` tell of ended tasks, in whatever pages it comes."""

from taskyard.dispatcher.told import Told
from taskyard.schemas.codec import JSON
from taskyard.schemas.entry import Cause
from taskyard.schemas.outcome import DeadLetter, Outcome
from taskyard.schemas.task import AgentType, Task, TaskId

TASK = Task(id=TaskId("t"), type=AgentType("a"), priority="high", tenant="acme")
LETTER = DeadLetter(
    reason="attempts", detail="boom", id="t", type="a", attempt=2, causes=(Cause(2, "i", 5, "boom"),),
    record=JSON.encode_task(TASK), at_ms=7,
)  # fmt: skip


def test_tasks_with_an_outcome_are_told_once() -> None:
    told, outcome = Told(), JSON.encode_outcome(Outcome(id="x", type="a", status="succeeded", attempt=1))

    assert told.read([outcome, b"garbage", outcome, b""]) == ["x"]
    assert told.left_untold() == []


def test_a_dead_task_whose_outcome_was_not_published_gets_it_from_its_letter() -> None:
    told = Told()
    assert told.read([JSON.encode_dead_letter(LETTER)]) == []

    ((task_id, body, _),) = told.left_untold()

    assert task_id == "t"
    assert JSON.decode_outcome(body) == Outcome(
        id="t", type="a", status="dead", attempt=2, priority="high", tenant="acme", cause="attempts: boom",
        finished_ms=7, causes=LETTER.causes,
    )  # fmt: skip


def test_a_letter_beside_its_outcome_and_one_of_no_task_make_no_outcome() -> None:
    told = Told()
    dead = JSON.encode_outcome(Outcome(id="t", type="a", status="dead", attempt=2))

    told.read([JSON.encode_dead_letter(LETTER), JSON.encode_dead_letter(DeadLetter(reason="version", record=b"?"))])
    assert told.read([dead]) == ["t"]

    assert told.left_untold() == []


def test_a_letter_beside_a_success_makes_no_outcome() -> None:
    told = Told()
    success = JSON.encode_outcome(Outcome(id="t", type="a", status="succeeded", attempt=2))

    told.read([JSON.encode_dead_letter(LETTER), success])

    assert told.left_untold() == []
