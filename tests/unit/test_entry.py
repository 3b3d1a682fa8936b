"""The entry keeps what it was given, and anything else is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskyard.schemas.entry import FIXED, Cause, decode_entry, encode_entry, encode_headers
from taskyard.schemas.errors import SchemaError

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
TIMES = st.floats(allow_nan=False, allow_infinity=False)
HEADERS = st.lists(st.tuples(TEXT, st.binary(max_size=40)), max_size=4).map(tuple)


def entry(*, task_id: bytes = b"t1", headers: bytes = encode_headers(()), wire: bytes = b"{}") -> bytes:
    return encode_entry(
        task_id=task_id,
        shape=b"lane|type||",
        max_attempts=3,
        key_ms=1,
        deadline_ms=0,
        arrived_ms=1,
        receipt=b"",
        headers=headers,
        wire=wire,
    )


def with_causes(data: bytes, causes: bytes) -> bytes:
    """The entry as the library leaves it after attempts have ended."""
    at = FIXED.size
    for _ in range(2):
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    return data[:at] + len(causes).to_bytes(2, "little") + causes + data[at + 2 :]


def reason_of(data: bytes) -> str:
    """Why the entry is refused; empty if it is read. Any other exception fails the test."""
    try:
        decode_entry(data)
    except SchemaError as error:
        return error.reason
    return ""


@given(
    names=st.tuples(TEXT, TEXT),
    max_attempts=st.integers(0, 255),
    times=st.tuples(TIMES, TIMES, TIMES),
    receipt=st.binary(max_size=99),
    headers=HEADERS,
    wire=st.binary(),
)
def test_an_entry_reads_back_as_it_was_written(
    names: tuple[str, str],
    max_attempts: int,
    times: tuple[float, float, float],
    receipt: bytes,
    headers: tuple[tuple[str, bytes], ...],
    wire: bytes,
) -> None:
    data = encode_entry(
        task_id=names[0].encode(),
        shape=names[1].encode(),
        max_attempts=max_attempts,
        key_ms=times[0],
        deadline_ms=times[1],
        arrived_ms=times[2],
        receipt=receipt,
        headers=encode_headers(headers),
        wire=wire,
    )

    read = decode_entry(data)

    assert read == (*names, 1, max_attempts, 0, *times, (), receipt, headers, wire)


@given(st.binary())
def test_arbitrary_bytes_are_an_entry_or_a_schema_error(data: bytes) -> None:
    assert reason_of(data) in ("", "undecodable", "version")


@given(st.integers(0, 255), st.integers(0, 200))
def test_a_damaged_entry_is_an_entry_or_a_schema_error(byte: int, at: int) -> None:
    data = bytearray(with_causes(entry(headers=encode_headers((("a", b"b"),))), b"1\ti\t5\tlost\n"))
    data[at % len(data)] = byte

    assert reason_of(bytes(data)) in ("", "undecodable", "version")


@given(st.integers(0, 70))
def test_an_entry_cut_inside_its_head_is_refused(length: int) -> None:
    data = entry(wire=b"")

    with pytest.raises(SchemaError):
        decode_entry(data[: min(length, len(data) - 1)])


def test_an_entry_of_another_version_is_refused_as_such() -> None:
    with pytest.raises(SchemaError) as refused:
        decode_entry(b"\2" + entry()[1:])

    assert (refused.value.field, refused.value.reason) == ("version", "version")


def test_the_causes_that_the_library_adds_are_read_in_order() -> None:
    data = with_causes(entry(), b"1\tinst-a\t1700000000000\tboom: a|b\n2\tinst-b\t1700000000001\t\n")

    read = decode_entry(data)

    assert read.causes == (
        Cause(1, "inst-a", 1_700_000_000_000, "boom: a|b"),
        Cause(2, "inst-b", 1_700_000_000_001, ""),
    )


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_a_reason_with_an_unusual_line_separator_stays_one_cause(separator: str) -> None:
    data = with_causes(entry(), f"1\tinst-a\t5\tleft{separator}right\n".encode())

    read = decode_entry(data)

    assert read.causes == (Cause(1, "inst-a", 5, f"left{separator}right"),)


@pytest.mark.parametrize("when", ["inf", "nan", "x", ""])
def test_a_cause_without_a_time_is_a_schema_error(when: str) -> None:
    data = with_causes(entry(), f"1\tinst-a\t{when}\tlost\n".encode())

    with pytest.raises(SchemaError):
        decode_entry(data)
