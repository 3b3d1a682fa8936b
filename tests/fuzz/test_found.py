"""What the fuzzer and its readers have found, once each."""

import contextlib
import http.client
import socket
import struct
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from taskyard.dispatcher.cell.contract import Outgoing
from taskyard.dispatcher.cli.configure import configure
from taskyard.dispatcher.core.receipt import decode_receipt
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.relay import Relay, shortened
from taskyard.dispatcher.web import Health, Web
from taskyard.schemas.codec import JSON, MSGPACK
from taskyard.schemas.entry import encode_entry
from taskyard.schemas.errors import ConfigError, SchemaError
from taskyard.schemas.nesting import is_msgpack_deep
from taskyard.schemas.outcome import Outcome
from taskyard.schemas.priority import PRIORITIES
from taskyard.schemas.task import AgentType, Task, TaskId
from taskyard.schemas.topics import topics

_COLLIDING = 4_000
# A thousandth of what a dict of so many such keys takes, many times what the scan does.
_SCAN_WITHIN_S = 0.05
_WORD = (1 << 64) - 1
# Of CPython's hash of a tuple (xxHash).
_PRIME_1, _PRIME_2, _PRIME_5 = 11400714785074694791, 14029467366897019727, 2870177450012600261


def _colliding_pairs(count: int) -> list[tuple[int, int]]:
    """Pairs of integers that all have one hash: of each first one the second can be computed."""
    back, pairs, first = pow(_PRIME_2, -1, 1 << 64), list[tuple[int, int]](), 0
    while len(pairs) < count:
        first += 1
        lane = (_PRIME_5 + first * _PRIME_2) & _WORD
        lane = (((lane << 31) | (lane >> 33)) * _PRIME_1) & _WORD
        second = (-lane * back) & _WORD
        if second < (1 << 61) - 1:
            pairs.append((first, second))
    return pairs


def test_keys_that_collide_do_not_keep_the_event_loop() -> None:
    pairs = _colliding_pairs(_COLLIDING)
    assert len({hash(pair) for pair in pairs}) == 1
    members = [b"\x92\xce" + struct.pack(">I", a) + b"\xcf" + struct.pack(">Q", b) + b"\0" for a, b in pairs]
    payload = msgspec.Raw(b"\xdf" + struct.pack(">I", len(pairs)) + b"".join(members))
    record = MSGPACK.encode_task(Task(id=TaskId("t"), type=AgentType("a"), payload=payload))

    began_s = time.process_time()
    MSGPACK.decode_task(record)

    assert time.process_time() - began_s < _SCAN_WITHIN_S


@pytest.mark.parametrize("depth", [1, 2, 64])
def test_a_deep_value_is_found_behind_every_kind_of_other_value(depth: int) -> None:
    numbers = [0, -1, 200, -200, 70_000, -70_000, 2**40, -(2**40), 2**63, 1.5]
    texts = ["é", "x" * 40, "x" * 300, "x" * 70_000, b"\x91", b"\x91" * 300, b"\x91" * 70_000]
    extensions = [msgspec.msgpack.Ext(5, b"\x91" * size) for size in (0, 1, 2, 4, 8, 16, 17, 300, 70_000)]
    others: list[Any] = [*numbers, *texts, *extensions, None, True, [], {}, [1] * 20]
    deep: Any = 1
    for level in range(depth - 1):
        deep = {"k": deep} if level % 2 else [deep]

    value = msgspec.msgpack.encode([*others, *([[]] * 70), deep])

    assert is_msgpack_deep(value, depth - 1)
    assert is_msgpack_deep(value, depth) == (depth == 1)


@pytest.mark.parametrize("time_ms", [float("nan"), float("inf"), float("-inf")])
def test_an_entry_whose_time_is_no_number_is_a_dead_letter_and_does_not_end_the_relay(time_ms: float) -> None:
    wire = JSON.encode_task(Task(id=TaskId("t"), type=AgentType("a")))
    entry = encode_entry(task_id=b"t", shape=b"n|a|slots=1|", max_attempts=1, key_ms=1.0, deadline_ms=0.0,
                         arrived_ms=time_ms, receipt=b"", headers=b"\0\0\0\0", wire=wire)  # fmt: skip

    (record,) = _relay().records(Outgoing("1-1", "dead", entry, "attempts", "why", "i"))

    letter = JSON.decode_dead_letter(record[2])
    assert letter.reason == "attempts"
    assert letter.detail.startswith("why; ")


def test_an_outcome_with_a_time_that_no_float_holds_is_published_and_its_wait_is_not_counted() -> None:
    body = JSON.encode_outcome(Outcome(id="t", type="a", status="succeeded", attempt=1, started_ms=1, arrived_ms=1))
    huge = body.replace(b'"arrived_ms":1', b'"arrived_ms":' + b"1" * 400)

    (record,) = _relay().records(Outgoing("1-1", "outcome", huge))

    assert record[:3] == ("results", b"t", huge)


def test_outcomes_of_priorities_that_nobody_knows_make_no_metric_each() -> None:
    metrics = Metrics()
    relay = _relay(metrics)

    for n in range(50):
        odd = Outcome(id="t", type="a", status="succeeded", attempt=1, priority=f"p{n}", arrived_ms=1, started_ms=2)
        relay.records(Outgoing("1-1", "outcome", JSON.encode_outcome(odd)))

    (waits,) = [family for family in metrics.registry.collect() if family.name == "taskyard_wait_seconds"]
    assert {sample.labels["priority"] for sample in waits.samples} == set(PRIORITIES)
    assert all(sample.value == 0 for sample in waits.samples if sample.name.endswith("_count"))


@pytest.mark.parametrize("field", ["id", "tenant", "instance", "receipt"])
def test_an_outcome_that_is_big_in_any_of_its_fields_can_be_published_shortened(field: str) -> None:
    big: Any = b"x" * (2 << 20) if field == "receipt" else "x" * (2 << 20)
    odd = msgspec.structs.replace(Outcome(id="t", type="a", status="dead", attempt=1), **{field: big})
    (record,) = _relay().records(Outgoing("1-1", "outcome", JSON.encode_outcome(odd)))

    _, key, value, _ = shortened(record)

    assert len(key) + len(value or b"") < 100_000


def test_a_receipt_with_text_that_is_none_is_no_receipt() -> None:
    assert decode_receipt(b"\x91\xa1\xff") is None


def test_a_variable_that_is_no_text_is_a_fault_of_the_settings() -> None:
    with pytest.raises(ConfigError, match="TASKYARD_DRAIN_MS: drain_ms must be a whole number of at least 0"):
        configure(environment={"TASKYARD_DRAIN_MS": b"\x80".decode("utf-8", "surrogateescape")})


def test_a_settings_file_that_is_nested_deeper_than_the_parser_can_go_is_a_fault_of_it(tmp_path: Path) -> None:
    (tmp_path / "taskyard.toml").write_text("kafka = " + "[" * 5_000)

    with pytest.raises(ConfigError, match=r"taskyard\.toml: is nested deeper"):
        configure(directory=tmp_path, environment={})


def test_an_accept_header_that_makes_no_sense_is_a_bad_request() -> None:
    with _web() as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=x.y.z"})
            status = connection.getresponse().status

    assert status == 400


def test_clients_that_say_nothing_keep_no_probe_waiting() -> None:
    with _web() as port, contextlib.ExitStack() as silent:
        for _ in range(10):
            silent.enter_context(socket.create_connection(("127.0.0.1", port), 5))

        began_s = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/live")
            status = connection.getresponse().status

    assert status == 200
    assert time.monotonic() - began_s < 1.0


def test_a_payload_that_has_a_map_for_a_key_is_poison() -> None:
    with pytest.raises(SchemaError, match="payload"):
        MSGPACK.decode_payload(msgspec.Raw(b"\x81\x80\x01"), dict[Any, Any])


@contextlib.contextmanager
def _web() -> Generator[int]:
    web = Web("127.0.0.1", 0, Health(), Metrics())
    try:
        yield web.port
    finally:
        web.stop()


def _relay(metrics: Metrics | None = None) -> Relay:
    # Making records asks neither the cell nor Kafka.
    return Relay(cast("Any", None), cast("Any", None), topics(), metrics or Metrics(), "owner")
