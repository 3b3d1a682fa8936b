"""Good values of every kind, from which bad ones are made."""

from random import Random
from typing import Any

import msgspec

from taskyard.dispatcher.core.receipt import Receipt, encode_receipt
from taskyard.schemas.codec import JSON, MSGPACK, Codec
from taskyard.schemas.entry import Cause, encode_entry, encode_headers, type_headers
from taskyard.schemas.outcome import DeadLetter, Outcome
from taskyard.schemas.task import AgentType, Task, TaskId

CODECS: tuple[Codec, ...] = (JSON, MSGPACK)
HEADERS: tuple[tuple[str, bytes], ...] = (
    ("content-type", b"application/json"), ("content-type", b"application/msgpack"), ("Content-Type", b"text/plain"),
    ("content-type", b""), ("traceparent", b"00-ab-cd-01"), ("ce_id", b"\xff\x00"), ("", b""), ("x" * 300, b"y" * 300),
)  # fmt: skip
SHAPES = ("n|a|slots=1|", "c|a|slots=1|", "n|b|cpu_milli=250,slots=2|region=eu,zone=z1", "n|a|gpu=0,slots=1|")
RECEIPT = encode_receipt(Receipt("least-agent-load", 3, "i1", 0.25, "i2", 0.5, 12, 7, 1))


def tree(record: object) -> Any:
    """A record as plain maps and lists, its payload too."""
    return msgspec.json.decode(msgspec.json.encode(record))


TASK = Task(
    id=TaskId("task-1"), type=AgentType("agent"), priority="normal", payload=msgspec.Raw(b'{"text":["a",{"b":1.5}]}'),
    requirements={"slots": 2, "cpu_milli": 1500}, constraints={"region": "eu"}, tenant="tenant", session="session",
    deadline_ms=1_900_000_000_000, timeout_ms=5_000, max_attempts=5,
)  # fmt: skip
OUTCOME = Outcome(
    id="task-1", type="agent", status="succeeded", attempt=2, instance="i1", result=msgspec.Raw(b'{"answer":[1,2]}'),
    arrived_ms=1_800_000_000_000, started_ms=1_800_000_000_100, causes=(Cause(1, "i0", 5, "it failed"),), receipt=b"r",
)  # fmt: skip
LETTER = DeadLetter(
    reason="attempts", detail="it failed", id="task-1", type="agent", attempt=3, causes=(Cause(1, "i0", 5, "why"),),
    topic="tasks.normal", partition=1, offset=7, record=b'{"id":1}', at_ms=1_800_000_000_000,
)  # fmt: skip
TASK_TREE, OUTCOME_TREE, LETTER_TREE = tree(TASK), tree(OUTCOME), tree(LETTER)
# In MessagePack bytes are bytes.
LETTER_PACKED: Any = msgspec.msgpack.decode(MSGPACK.encode_dead_letter(LETTER))
OUTCOME_PACKED: Any = msgspec.msgpack.decode(
    MSGPACK.encode_outcome(msgspec.structs.replace(OUTCOME, result=msgspec.Raw(msgspec.msgpack.encode({"a": [1]}))))
)


def small_task(rng: Random, codec: Codec, task_id: str = "") -> bytes:
    """A good record of one of a few kinds."""
    return codec.encode_task(
        Task(id=TaskId(task_id or f"t{rng.randrange(50)}"), type=AgentType(rng.choice("ab")),
             payload=codec.encode_payload({"n": rng.randrange(9)}), deadline_ms=rng.choice((0, 1))),
    )  # fmt: skip


def entry(
    rng: Random, *, task_id: str = "t1", shape: str = SHAPES[0], wire: bytes | None = None, headers: type_headers = ()
) -> bytes:
    """A good entry of the task's first attempt."""
    return encode_entry(
        task_id=task_id.encode(), shape=shape.encode(), max_attempts=rng.choice((1, 3, 255)),
        key_ms=float(rng.randrange(1000)), deadline_ms=rng.choice((0.0, 0.0, 1.0, 9e15)), arrived_ms=1.8e12,
        receipt=RECEIPT, headers=encode_headers(headers), wire=JSON.encode_task(TASK) if wire is None else wire,
    )  # fmt: skip
