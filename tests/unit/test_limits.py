"""A task beyond a limit is refused with the field's name; one at the limit is taken."""

import contextlib
from collections.abc import Callable
from string import ascii_letters, digits
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from taskyard.schemas.errors import SchemaError
from taskyard.schemas.limits import (
    Limits,
    check_headers,
    check_id,
    check_labels,
    check_name,
    check_task,
    check_units,
)
from taskyard.schemas.outcome import REASONS
from taskyard.schemas.priority import PRIORITIES
from taskyard.schemas.task import Task

SMALL = Limits(payload_bytes=8, headers=2, header_bytes=10, id_chars=4, name_chars=4, text_chars=4)
NAMES_LEFT_OUT = ["", "a|b", "a=b", "a,b", "a\nb", "a\0", "a\tb", "\u2028", "\ud800", "\x7f", "x" * 129]

CHECKS: list[tuple[Callable[[str], None], str]] = [
    (lambda name: check_name(name, field="instance"), "instance"),
    (lambda name: check_units({name: 1}, field="capacity"), "capacity"),
    (lambda name: check_labels({name: "a"}, field="labels"), "labels"),
    (lambda name: check_labels({"a": name}, field="labels"), "labels.a"),
]


def is_taken(check: Callable[[], None]) -> bool:
    with contextlib.suppress(SchemaError):
        check()
        return True
    return False


def task(**fields: Any) -> Task:
    values: dict[str, Any] = {"type": "summarise", **fields}
    return Task(**values)


def many(count: int, value: Any) -> dict[str, Any]:
    return {f"n{i}": value for i in range(count)}


def raw(size: int) -> msgspec.Raw:
    return msgspec.Raw(b"1" * size)


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"payload": raw((256 << 10) + 1)}, "payload", "at most 262144"),
        ({"id": ""}, "id", "letters, digits"),
        ({"id": "a|b"}, "id", "letters, digits"),
        ({"id": "a b"}, "id", "letters, digits"),
        ({"id": "é"}, "id", "letters, digits"),
        ({"id": "a\n"}, "id", "letters, digits"),
        ({"id": "x" * 129}, "id", "1 to 128"),
        ({"type": ""}, "type", "1 to 128"),
        ({"type": "a|b"}, "type", "other than |"),
        ({"priority": "urgent"}, "priority", "critical, high, normal, low"),
        ({"priority": ""}, "priority", "is none of"),
        ({"requirements": {"slots": 0}}, "requirements.slots", "0 is not from 1"),
        ({"requirements": {"slots": -1}}, "requirements.slots", "-1 is not from 1"),
        ({"requirements": {"cpu_milli": -1}}, "requirements.cpu_milli", "-1 is not from 0"),
        ({"requirements": {"cpu_milli": 2**31}}, "requirements.cpu_milli", "to 2147483647"),
        ({"requirements": {"cpu_milli": 10**400}}, "requirements.cpu_milli", "to 2147483647"),
        ({"requirements": {"a=b": 1}}, "requirements", "name must be"),
        ({"requirements": many(17, 1)}, "requirements", "17 resources, at most 16"),
        ({"constraints": {"zone": "a,b"}}, "constraints.zone", "other than |"),
        ({"constraints": {"zone": ""}}, "constraints.zone", "1 to 128"),
        ({"constraints": {"": "a"}}, "constraints", "name must be"),
        ({"constraints": many(17, "x")}, "constraints", "17 labels, at most 16"),
        ({"tenant": "x" * 257}, "tenant", "at most 256"),
        ({"tenant": "a\0b"}, "tenant", "printable"),
        ({"session": "x" * 257}, "session", "at most 256"),
        ({"session": "a\nb"}, "session", "printable"),
        ({"deadline_ms": -1}, "deadline_ms", "0 for none"),
        ({"deadline_ms": 2**53}, "deadline_ms", "0 for none"),
        ({"timeout_ms": -1}, "timeout_ms", "0 for no limit"),
        ({"timeout_ms": 10**400}, "timeout_ms", "0 for no limit"),
        ({"max_attempts": 0}, "max_attempts", "0 is not from 1 to 255"),
        ({"max_attempts": 256}, "max_attempts", "256 is not from 1 to 255"),
    ],
)
def test_a_task_beyond_a_limit_is_refused_with_the_field_and_what_would_be_right(
    fields: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(SchemaError) as refused:
        check_task(task(**fields))

    assert refused.value.field == field
    assert says in str(refused.value)
    assert str(refused.value).startswith(f"{field}: ")
    assert refused.value.reason == ("oversize" if field == "payload" else "invalid")
    assert refused.value.reason in REASONS


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"payload": raw(256 << 10)},
        {"id": "aZ09._:-"},
        {"id": "x" * 128},
        {"type": "x" * 128},
        {"type": "zusammenfassen/größer v2"},
        *({"priority": priority} for priority in PRIORITIES),
        {"requirements": {"slots": 1, "cpu_milli": 0}},
        {"requirements": {"slots": 2**31 - 1}},
        {"requirements": many(16, 1)},
        {"constraints": many(16, "x")},
        {"tenant": "x" * 256, "session": "a | b = c, d"},
        {"deadline_ms": 2**53 - 1, "timeout_ms": 2**53 - 1},
        {"max_attempts": 1},
        {"max_attempts": 255},
    ],
)
def test_a_task_at_its_limits_is_taken(fields: dict[str, Any]) -> None:
    check_task(task(**fields))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"id": "abcd", "payload": raw(9)}, "payload"),
        ({"id": "abcde"}, "id"),
        ({"id": "abcd", "type": "abcde"}, "type"),
        ({"id": "abcd", "type": "a", "tenant": "abcde"}, "tenant"),
    ],
)
def test_a_dispatcher_may_take_less(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(SchemaError) as refused:
        check_task(task(**fields), SMALL)

    assert refused.value.field == field


@given(st.text(st.sampled_from(f"{ascii_letters}{digits} ._:-|=,é٣\n\t\0\ud800"), max_size=140))
def test_a_name_that_is_taken_cannot_part_a_shape(name: str) -> None:
    assume(is_taken(lambda: check_name(name, field="instance")))

    assert 1 <= len(name) <= 128
    assert not set("|=,\n\r\t\0") & set(name)
    assert name.encode().decode() == name


@given(st.text(st.sampled_from(f"{ascii_letters}{digits}._:-|=, é\n٣"), max_size=140))
def test_an_id_that_is_taken_is_plain(task_id: str) -> None:
    assume(is_taken(lambda: check_id(task_id)))

    assert 1 <= len(task_id) <= 128
    assert set(task_id) <= set(f"{ascii_letters}{digits}._:-")


@pytest.mark.parametrize("name", NAMES_LEFT_OUT)
@pytest.mark.parametrize(("check", "field"), CHECKS)
def test_a_name_that_would_break_the_cell_is_refused_wherever_it_stands(
    check: Callable[[str], None], field: str, name: str
) -> None:
    with pytest.raises(SchemaError) as refused:
        check(name)

    assert refused.value.field == field


@pytest.mark.parametrize("headers", [[("a", b"1")] * 3, [("name", b"1234567")]])
def test_headers_that_are_too_many_or_too_long_are_refused(headers: list[tuple[str, bytes | None]]) -> None:
    with pytest.raises(SchemaError, match="at most 2 of 10") as refused:
        check_headers(headers, SMALL)

    assert (refused.value.field, refused.value.reason) == ("headers", "oversize")


def test_headers_at_their_limits_are_taken_and_one_without_a_value_counts_its_name() -> None:
    check_headers([("name", b"12345"), ("x", None)], SMALL)


def test_a_random_id_is_taken_and_used_once() -> None:
    tasks = [task() for _ in range(1_000)]

    for each in tasks:
        check_task(each)
    assert len({each.id for each in tasks}) == 1_000
