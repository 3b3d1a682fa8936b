"""Targets: what reads records, entries, shapes, receipts and settings."""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from taskyard.dispatcher.arrivals import Arrival, Reader
from taskyard.dispatcher.batches import batch_of
from taskyard.dispatcher.cli.configure import LEAVES, configure
from taskyard.dispatcher.core.plan import Decision
from taskyard.dispatcher.core.receipt import decode_receipt
from taskyard.dispatcher.core.shapes import parse_shape
from taskyard.dispatcher.intake import Chunk
from taskyard.schemas.codec import JSON, MSGPACK, codec_for, codec_of
from taskyard.schemas.entry import decode_entry, encode_entry, encode_headers
from taskyard.schemas.errors import ConfigError, SchemaError
from taskyard.schemas.limits import Limits, check_headers, check_task
from taskyard.schemas.outcome import REASONS
from tests.fuzz import samples
from tests.fuzz.campaign import Parts, Target
from tests.fuzz.mutations import bent, damaged, noise, text, varied, written

_SLACK_MS = {"critical": 0, "high": 10_000, "normal": 60_000, "low": 600_000}
_READER = Reader("tasks.normal", "normal", slack_ms=_SLACK_MS, limits=Limits())


@dataclasses.dataclass
class FedRecord:
    """A Kafka record as aiokafka gives it."""

    offset: int
    timestamp: int
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class Typed(msgspec.Struct):
    """What a handler might want its payload to be."""

    text: list[str | dict[str, float]]
    count: int = 0


def _record(rng: Random) -> Parts:
    is_json = rng.randrange(2) == 0
    value = varied(rng, samples.TASK_TREE, is_json=is_json)
    headers: list[tuple[str, bytes]] = [] if is_json else [("content-type", b"application/msgpack")]
    if not rng.randrange(4):
        headers += [rng.choice(samples.HEADERS) for _ in range(rng.choice((1, 2, 3, 70)))]
        rng.shuffle(headers)
    if not rng.randrange(40):
        headers.append((text(rng), noise(rng)))
    return (value, *(part for name, content in headers for part in (name.encode("utf-8", "replace"), content)))


def _read(parts: Parts) -> None:
    """Never raises; what comes can be written: an arrival as an entry, a dead letter as a record."""
    value, rest = parts[0] if parts else None, parts[1:]
    headers = [
        (name.decode("utf-8", "replace"), content or None) for name, content in zip(rest[::2], rest[1::2], strict=False)
    ]
    read = _READER.read(FedRecord(7, 1_800_000_000_000, value, headers), 3)
    if not isinstance(read, Arrival):
        assert read.reason in REASONS[:4], read
        assert JSON.decode_dead_letter(JSON.encode_dead_letter(read)) == read
        return
    shape = parse_shape(read.shape)
    assert shape.needs["slots"] >= 1
    assert all(0 <= units < 2**31 for units in shape.needs.values()), shape
    assert math.isfinite(read.key_ms)
    chunk, decision = Chunk((), [read], (), 1), Decision((), 0.0, 0.0, 0, "nobody")
    batch = batch_of(chunk, [read], [decision], policy="p", seed=1, view_age_ms=0, parked_permille=1000)
    entry = decode_entry(batch.tasks[0].entry)
    assert (entry.id, entry.shape, entry.wire, entry.headers) == (read.id, read.shape, read.wire, read.headers)
    assert (entry.arrived_ms, entry.max_attempts, entry.attempt) == (read.arrived_ms, read.max_attempts, 1)
    # Read again, it must be the same task: an id that was made up would run it twice.
    assert _READER.read(FedRecord(7, 1_800_000_000_000, value, headers), 3) == read


def _task(rng: Random) -> Parts:
    is_json = rng.randrange(2) == 0
    return (varied(rng, samples.TASK_TREE, is_json=is_json), b"" if is_json else b"m")


def _decode_task(parts: Parts) -> None:
    value, kind = (*parts, b"", b"")[:2]
    codec = MSGPACK if kind else JSON
    with contextlib.suppress(SchemaError):
        task = codec.decode_task(value)
        check_task(task)
        assert codec.decode_task(codec.encode_task(task)) == task


def _outcome(rng: Random) -> Parts:
    what = rng.randrange(4)
    if what == 0:
        return (varied(rng, samples.OUTCOME_TREE, is_json=True),)
    if what == 1:
        return (varied(rng, samples.OUTCOME_PACKED, is_json=False),)
    if what == 2:
        return (varied(rng, samples.LETTER_TREE, is_json=True),)
    return (varied(rng, samples.LETTER_PACKED, is_json=False),)


def _decode_outcome(parts: Parts) -> None:
    value = parts[0] if parts else b""
    for codec in {codec_of(value), JSON}:
        with contextlib.suppress(SchemaError):
            outcome = codec.decode_outcome(value)
            assert codec.decode_outcome(codec.encode_outcome(outcome)) == outcome
        with contextlib.suppress(SchemaError):
            letter = codec.decode_dead_letter(value)
            assert codec.decode_dead_letter(codec.encode_dead_letter(letter)) == letter


def _payload(rng: Random) -> Parts:
    is_json = rng.randrange(2) == 0
    return (varied(rng, samples.TASK_TREE["payload"], is_json=is_json), b"" if is_json else b"m")


def _decode_payload(parts: Parts) -> None:
    raw, kind = (*parts, b"", b"")[:2]
    codec = MSGPACK if kind else JSON
    wanted: tuple[Any, ...] = (Any, Typed, dict[str, Any], list[int], str, bytes)
    for as_type in wanted:
        with contextlib.suppress(SchemaError):
            codec.decode_payload(msgspec.Raw(raw), as_type)


def _entry(rng: Random) -> Parts:
    good = samples.entry(rng, shape=rng.choice(samples.SHAPES), headers=(("trace", b"\0"),))
    return (damaged(rng, good) if rng.randrange(4) else noise(rng),)


def _decode_entry(parts: Parts) -> None:
    with contextlib.suppress(SchemaError):
        entry = decode_entry(parts[0] if parts else b"")
        assert all(map(math.isfinite, (entry.key_ms, entry.deadline_ms, entry.arrived_ms))), entry
        again = encode_entry(
            task_id=entry.id.encode(), shape=entry.shape.encode(), max_attempts=entry.max_attempts,
            key_ms=entry.key_ms, deadline_ms=entry.deadline_ms, arrived_ms=entry.arrived_ms, receipt=entry.receipt,
            headers=encode_headers(entry.headers), wire=entry.wire,
        )  # fmt: skip
        assert decode_entry(again) == entry._replace(attempt=1, evictions=0, causes=())


def _small(rng: Random) -> Parts:
    """Headers, a shape and a receipt."""
    shape, receipt = rng.choice(samples.SHAPES), samples.RECEIPT
    bad_shape = shape if not rng.randrange(4) else damaged(rng, shape.encode()).decode("utf-8", "replace")
    if rng.randrange(2):
        receipt = written(rng, bent(rng, msgspec.msgpack.decode(receipt)), is_json=False)
    return (bad_shape.encode(), damaged(rng, receipt), text(rng).encode("utf-8", "replace"), noise(rng))


def _decode_small(parts: Parts) -> None:
    shape, receipt, name, content = (*parts, b"", b"", b"", b"")[:4]
    with contextlib.suppress(ValueError):
        assert parse_shape(shape.decode(errors="replace")).text
    decode_receipt(receipt)
    headers = ((name.decode(errors="replace"), content), ("content-type", content))
    with contextlib.suppress(SchemaError):
        check_headers(headers)
        codec_for(headers)


_TOML = b"""kafka = "127.0.0.1:9092"
cell = "main"
drain_ms = 5
[park]
tasks = 10
[http]
port = 8080
[worker]
slots = 8
[log]
level = "info"
"""
_TOML_ODD = (
    b"[[park]]\n", b"[park.tasks]\n", b"x = 1979-05-27T07:32:00Z\n", b"a.b.c = inf\n", b"'' = {}\n", b"park = []\n",
    b"port = 1e400\n", b"\xff", b"tasks = 99999999999999999999999\n", b"x = " + b"[" * 400 + b"]" * 400, b"park = 1\n",
    b'redis = "redis://[::1"\n', b'redis = "redis://:p@h:x"\n', b'kafka = ",,"\n', b"kafka = nan\n",
)  # fmt: skip


def _settings(rng: Random) -> Parts:
    toml = noise(rng) if not rng.randrange(10) else damaged(rng, _TOML, _TOML_ODD)
    leaf = rng.choice(list(LEAVES.values()))
    name = leaf.variable if rng.randrange(3) else "TASKYARD_" + text(rng)
    odd = rng.choice(("", "1", "-1", "nan", "tcp://1", "true", "redis://[", "redis://h:99999999", "\0", text(rng)))
    return (toml, name.encode("utf-8", "surrogatepass"), odd.encode("utf-8", "surrogatepass"))


def _configure(directory: Path, parts: Parts) -> None:
    toml, name, value = (*parts, b"", b"", b"")[:3]
    file = directory / "taskyard.toml"
    file.write_bytes(toml)
    # The system hands bytes that are no text over as lone surrogates.
    environment = {name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")}
    with contextlib.suppress(ConfigError):
        found = configure(environment=environment, directory=directory)
        found.settings.cell_config()


@contextlib.contextmanager
def wire_targets() -> Generator[list[Target]]:
    """All of them."""
    with tempfile.TemporaryDirectory() as directory:
        yield [
            Target("records", _record, _read, 250),
            Target("tasks", _task, _decode_task, 150),
            Target("outcomes", _outcome, _decode_outcome, 120),
            Target("payloads", _payload, _decode_payload, 80),
            Target("entries", _entry, _decode_entry, 120),
            Target("small", _small, _decode_small, 70),
            Target("settings", _settings, partial(_configure, Path(directory)), 20),
        ]
