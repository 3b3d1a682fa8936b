"""What is written reads back, and whatever else is read gives a SchemaError that says why."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskyard.schemas.codec import JSON, MSGPACK, Codec, codec_for, codec_of, content_headers
from taskyard.schemas.entry import Cause
from taskyard.schemas.errors import SchemaError
from taskyard.schemas.limits import Limits
from taskyard.schemas.outcome import REASONS, DeadLetter, Outcome
from taskyard.schemas.task import AgentType, Task, TaskId

both = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
encode = {JSON.content_type: msgspec.json.encode, MSGPACK.content_type: msgspec.msgpack.encode}

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.integers(-(2**63), 2**64 - 1)
SCALARS = st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=9
)
TASKS = st.fixed_dictionaries(
    {
        "id": st.text(st.characters(codec="utf-8", exclude_characters='"\\', exclude_categories=["Cc"]), min_size=1),
        "type": TEXT,
    },
    optional={
        "priority": TEXT,
        "requirements": st.dictionaries(TEXT, NUMBERS, max_size=3),
        "constraints": st.dictionaries(TEXT, TEXT, max_size=3),
        "tenant": TEXT,
        "session": TEXT,
        "deadline_ms": NUMBERS,
        "timeout_ms": NUMBERS,
        "max_attempts": NUMBERS,
    },
)
NESTED = Limits().depth
POISON = REASONS[:4]
BRACKETS: list[Any] = [["[" * 200, "{" * 200], {'a"[': '\\"[[[{{{'}, [[], {}] * 500, "[" * 99]


def error_of(decode: Callable[..., object], *arguments: object) -> SchemaError | None:
    """The refusal, if it is one; any other exception fails the test."""
    try:
        decode(*arguments)
    except SchemaError as error:
        return error
    return None


def depth_of(value: Any) -> int:
    inner: list[Any] = list(value.values()) if isinstance(value, dict) else value  # pyright: ignore[reportUnknownArgumentType]
    return 1 + max(map(depth_of, inner), default=0) if isinstance(value, dict | list) else 0


def nested(depth: int) -> Any:
    value: Any = []
    for level in range(depth - 1):
        value = [value] if level % 2 else {"a": value}
    return value


def record(codec: Codec, **fields: Any) -> bytes:
    return encode[codec.content_type]({"id": "t1", "type": "a", **fields})


def refusal(codec: Codec, value: bytes | None, limits: Limits | None = None) -> SchemaError:
    with pytest.raises(SchemaError) as refused:
        codec.decode_task(value, limits or Limits())
    assert refused.value.reason in REASONS
    return refused.value


@both
@given(fields=TASKS, payload=VALUES)
def test_a_task_reads_back_as_it_was_written(codec: Codec, fields: dict[str, Any], payload: Any) -> None:
    task = Task(**fields, payload=codec.encode_payload(payload))

    read = codec.decode_task(codec.encode_task(task))

    assert read == task
    assert codec.decode_payload(read.payload, object) == payload


@both
@given(text=TEXT, number=NUMBERS, result=VALUES, record=st.binary(max_size=40))
def test_outcomes_and_dead_letters_read_back_as_they_were_written(
    codec: Codec, text: str, number: int, result: Any, record: bytes
) -> None:
    outcome = Outcome(id=text, type=text, status="succeeded", attempt=number, result=codec.encode_payload(result))
    dead = DeadLetter(reason="attempts", id=text, causes=(Cause(1, text, number, text),), record=record, offset=number)

    assert codec.decode_outcome(codec.encode_outcome(outcome)) == outcome
    assert codec.decode_dead_letter(codec.encode_dead_letter(dead)) == dead


@both
@given(value=st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | VALUES.map(msgspec.msgpack.encode))
@example(value=b"")
@example(value=b"\xef\xbb\xbf{}")
@example(value=b"[" * 100_000)
@example(value=b'{"id":"t1","type":"a","x":' + b"[" * 100_000)
@example(value=b"\x91" * 100_000)
@example(value=b"\x82\xa4type\xa1a\xa7payload\xdd\xff\xff\xff\xff")
@example(value=b"\x82\xa6reason\xa1a\xa6causes\xdd\xff\xff\xff\xff")
def test_arbitrary_bytes_are_a_record_or_a_schema_error(codec: Codec, value: bytes) -> None:
    for decode in (codec.decode_task, codec.decode_outcome, codec.decode_dead_letter):
        error = error_of(decode, value)

        assert error is None or error.reason in POISON


@both
@given(fields=st.dictionaries(st.sampled_from([*Task.__struct_fields__, "kind", "new"]), VALUES))
def test_arbitrary_fields_are_a_task_or_a_schema_error(codec: Codec, fields: dict[str, Any]) -> None:
    error = error_of(codec.decode_task, encode[codec.content_type](fields))

    assert error is None or error.reason in POISON


@both
@given(value=st.binary(max_size=60), as_type=st.sampled_from([int, str, list[str], dict[str, int], Task, object]))
@example(value=b"[" * 100_000, as_type=object)
@example(value=b"\x91" * 100_000, as_type=object)
@example(value=b"\xdd\xff\xff\xff\xff", as_type=object)
def test_a_payload_is_an_argument_or_a_schema_error(codec: Codec, value: bytes, as_type: type) -> None:
    error = error_of(codec.decode_payload, msgspec.Raw(value), as_type)

    assert error is None or error.field.startswith("payload")


@both
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"type": 5}, "type"),
        ({"requirements": {"slots": "2"}}, "requirements[...]"),
        ({"requirements": {"slots": 1.5}}, "requirements[...]"),
        ({"max_attempts": True}, "max_attempts"),
        ({"kind": "outcome"}, "kind"),
        ({"v": "1"}, "v"),
        ({"id": None}, "id"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(codec: Codec, fields: dict[str, Any], field: str) -> None:
    error = refusal(codec, record(codec, **fields))

    assert (error.reason, error.field) == ("invalid", field)


@both
@pytest.mark.parametrize("missing", ["id", "type"])
def test_a_task_without_an_id_or_a_type_is_refused_although_makers_of_tasks_may_leave_the_id_out(
    codec: Codec, missing: str
) -> None:
    fields = {"id": "t1", "type": "a", "payload": {"id": "t1", "type": "a"}}
    del fields[missing]

    error = refusal(codec, encode[codec.content_type](fields))

    assert (error.reason, error.field) == ("invalid", missing)
    assert "required" in str(error)


def test_an_id_that_is_written_with_escapes_is_read() -> None:
    assert JSON.decode_task(rb'{"id":"\u0074\u0031","type":"a"}').id == "t1"


@both
@pytest.mark.parametrize("fields", [{}, {"type": 5, "requirements": "many"}])
def test_another_version_is_told_from_a_fault_even_if_its_fields_have_other_types(
    codec: Codec, fields: dict[str, Any]
) -> None:
    error = refusal(codec, record(codec, v=2, **fields))

    assert (error.reason, error.field) == ("version", "v")
    assert "this reader knows 1" in str(error)


@both
def test_fields_of_a_newer_producer_are_accepted(codec: Codec) -> None:
    assert codec.decode_task(record(codec, colour={"deep": [1]})).id == "t1"


@both
@pytest.mark.parametrize("value", [None, b"", b"\xc1", b"x"])
def test_what_is_no_record_at_all_names_no_field(codec: Codec, value: bytes | None) -> None:
    error = refusal(codec, value)

    assert (error.reason, error.field) == ("undecodable", "")


@pytest.mark.parametrize(
    "payload", [b"NaN", b"Infinity", b"'a'", b"[1,]", b'"\xff"', b'"\\ud800"', b'"\\q"', b"", b"1 2"]
)
def test_a_payload_that_is_not_json_is_undecodable(payload: bytes) -> None:
    error = refusal(JSON, b'{"id":"t1","type":"a","payload":' + payload + b"}")

    assert (error.reason, error.field) == ("undecodable", "")


def test_a_number_of_any_size_is_left_to_the_handler() -> None:
    task = JSON.decode_task(b'{"id":"t1","type":"a","payload":' + b"9" * 5_000 + b"}")

    assert bytes(task.payload) == b"9" * 5_000
    with pytest.raises(SchemaError):
        JSON.decode_payload(task.payload, int)


@both
@pytest.mark.parametrize("depth", [NESTED, NESTED + 1, 300])
def test_a_payload_is_nested_as_deep_as_the_limit_and_no_deeper(codec: Codec, depth: int) -> None:
    value = record(codec, payload=nested(depth))

    if depth <= NESTED:
        codec.decode_task(value)
    else:
        error = refusal(codec, value)
        assert (error.reason, error.field) == ("invalid", "payload")


@both
@given(value=VALUES, depth=st.integers(0, 6))
def test_the_measured_depth_is_the_depth(codec: Codec, value: Any, depth: int) -> None:
    error = error_of(codec.decode_task, record(codec, payload=value), Limits(depth=depth))

    assert (error is not None) == (depth_of(value) > depth)
    assert error is None or error.field == "payload"


@both
@pytest.mark.parametrize("payload", BRACKETS)
def test_brackets_in_text_and_beside_each_other_are_not_nesting(codec: Codec, payload: Any) -> None:
    codec.decode_task(record(codec, payload=payload), Limits(depth=2))


@both
def test_a_record_far_beyond_the_payload_limit_is_refused_unread(codec: Codec) -> None:
    limits = Limits(payload_bytes=100, envelope_bytes=100)

    error = refusal(codec, record(codec, unknown="x" * 200), limits)

    assert error.reason == "oversize"


@both
@pytest.mark.parametrize("value", [object(), {"a": {object()}}, "\ud800", nested(50_000)])
def test_a_value_that_cannot_be_written_is_refused(codec: Codec, value: Any) -> None:
    with pytest.raises(SchemaError) as refused:
        codec.encode_payload(value)

    assert refused.value.field == "payload"


def test_not_a_number_becomes_null_in_json() -> None:
    assert bytes(JSON.encode_payload({"a": float("nan"), "b": float("inf")})) == b'{"a":null,"b":null}'


@both
def test_an_encoded_payload_is_not_encoded_again(codec: Codec) -> None:
    raw = codec.encode_payload({"a": 1})

    assert codec.encode_payload(raw) is raw


@both
def test_a_payload_that_does_not_fit_the_handler_names_the_field(codec: Codec) -> None:
    raw = codec.encode_payload([{"type": "a", "max_attempts": "x"}])

    with pytest.raises(SchemaError) as refused:
        codec.decode_payload(raw, list[Task])

    assert refused.value.field == "payload.[0].max_attempts"
    with pytest.raises(SchemaError) as refused:
        codec.decode_payload(raw, int)
    assert refused.value.field == "payload"


def test_json_is_readable_by_others_and_leaves_defaults_out() -> None:
    task = Task(id=TaskId("t1"), type=AgentType("a"), payload=JSON.encode_payload({"text": "é"}))

    value = JSON.encode_task(task)

    assert json.loads(value) == {"kind": "task", "id": "t1", "type": "a", "payload": {"text": "é"}}


@pytest.mark.parametrize(
    ("headers", "codec"),
    [
        ((), JSON),
        ((("traceparent", b"00-x"), ("ce_id", None)), JSON),
        ((("content-type", None),), JSON),
        ((("content-type", b"application/json; charset=utf-8"),), JSON),
        ((("Content-Type", b"Application/MsgPack"),), MSGPACK),
        ((("content-type", b"application/x-msgpack"),), MSGPACK),
        ((("content-type", MSGPACK.content_type.encode()),), MSGPACK),
    ],
)
def test_the_headers_choose_the_codec(headers: tuple[tuple[str, bytes | None], ...], codec: Codec) -> None:
    assert codec_for(headers) is codec


@pytest.mark.parametrize("value", [b"text/plain", b"application/cloudevents+json", b"\xff" * 200])
def test_an_unknown_content_type_is_refused(value: bytes) -> None:
    with pytest.raises(SchemaError, match="application/json or application/msgpack") as refused:
        codec_for((("content-type", value),))

    assert (refused.value.field, refused.value.reason) == ("content-type", "undecodable")


@both
def test_a_codec_is_known_by_its_own_headers_and_by_the_record_alone(codec: Codec) -> None:
    outcome = Outcome(id="t1", type="a", status="succeeded", attempt=1)

    assert codec_for(content_headers(codec)) is codec
    assert codec_of(codec.encode_outcome(outcome)) is codec
    assert codec_of(codec.encode_task(Task(type=AgentType("a")))) is codec
