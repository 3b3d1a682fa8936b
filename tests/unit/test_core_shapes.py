"""What a task asks for: its place in the order and its shape; and the receipt of what became of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskyard.dispatcher.core.order import order_key_ms
from taskyard.dispatcher.core.receipt import Receipt, decode_receipt, encode_receipt
from taskyard.dispatcher.core.shapes import class_units, parse_shape, shape_text, why_none
from taskyard.schemas.priority import SLACK_MS
from taskyard.schemas.task import AgentType, Task


def task(
    priority: str = "normal",
    deadline_ms: int = 0,
    requirements: dict[str, int] | None = None,
    constraints: dict[str, str] | None = None,
) -> Task:
    return Task(
        type=AgentType("a"),
        priority=priority,
        deadline_ms=deadline_ms,
        requirements=requirements or {},
        constraints=constraints or {},
    )


def test_a_later_critical_task_passes_a_low_one_only_within_its_slack() -> None:
    low = order_key_ms(task(priority="low"), arrived_ms=0, slack_ms=SLACK_MS)

    assert order_key_ms(task(priority="critical"), arrived_ms=SLACK_MS["low"] - 1, slack_ms=SLACK_MS) < low
    assert order_key_ms(task(priority="critical"), arrived_ms=SLACK_MS["low"] + 1, slack_ms=SLACK_MS) > low


def test_a_deadline_that_is_earlier_is_the_key() -> None:
    assert order_key_ms(task(priority="low", deadline_ms=5), arrived_ms=1, slack_ms=SLACK_MS) == 5
    assert order_key_ms(task(priority="high", deadline_ms=10**9), arrived_ms=1, slack_ms=SLACK_MS) == 10_001


@given(st.integers(1, 2**31 - 1))
def test_a_class_is_no_smaller_than_the_need_and_little_larger(units: int) -> None:
    rounded = class_units(units)

    assert units <= rounded <= units * 1.125 + 1
    assert class_units(rounded) == rounded


@pytest.mark.parametrize("units", [1, 100, 1_500, 96_000, 8_192, 393_216, 786_432])
def test_what_people_write_stays_as_it_is(units: int) -> None:
    assert class_units(units) == units


def test_an_octave_has_a_few_dozen_classes_however_large_the_units() -> None:
    assert len({class_units(units) for units in range(2**16, 2**17)}) < 50


def test_a_shape_reads_back_as_what_the_task_wants() -> None:
    text = shape_text(task(priority="critical", requirements={"gpu": 2}, constraints={"zone": "z1", "model": "m"}))

    shape = parse_shape(text)

    assert text == "c|a|gpu=2,slots=1|model=m,zone=z1"
    assert (shape.is_critical, shape.type) == (True, "a")
    assert (shape.needs, shape.labels) == ({"gpu": 2, "slots": 1}, {"model": "m", "zone": "z1"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("n|b|slots=1|", "no instance serves the agent type b"),
        ("n|a|slots=1|zone=z9", "no instance of the type has the labels zone=z9"),
        ("n|a|slots=9|", "no instance of the type is that large: slots=9"),
        ("n|a|slots=1|", "all instances that could run it are full or closed"),
    ],
)
def test_a_task_that_waits_has_a_reason(text: str, reason: str) -> None:
    assert why_none(parse_shape(text), [(("a",), {"slots": 4}, {"zone": "z1"})]) == reason


def test_a_receipt_reads_back() -> None:
    receipt = Receipt("least-agent-load", 5, "i1", 0.25, "i2", 0.5, 12, 99, 3, "")

    assert decode_receipt(encode_receipt(receipt)) == receipt
    assert decode_receipt(b"") is None
    assert decode_receipt(b"\xc1") is None
