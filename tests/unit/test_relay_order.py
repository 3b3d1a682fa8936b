"""In which order the relay publishes: what may be lost must not depend on when it is cut off."""

import random
import time
from collections.abc import Sequence

from taskyard.dispatcher.cell.contract import Batch, Ending, Planned, Registration
from taskyard.dispatcher.cell.twin import TwinCell
from taskyard.dispatcher.kafka.producer import OutgoingRecord
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.relay import Relay
from taskyard.schemas.codec import JSON
from taskyard.schemas.entry import NO_HEADERS, encode_entry
from taskyard.schemas.outcome import Outcome
from taskyard.schemas.task import AgentType, Task, TaskId
from taskyard.schemas.topics import topics

LONG_MS = 3_600_000


class Log:
    """Where records go, call by call."""

    def __init__(self) -> None:
        self.calls: list[set[str]] = []

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[int]:
        """Take them all."""
        self.calls.append({record[0] for record in records})
        return []

    async def stop(self) -> None:
        """Nothing is open."""


def planned(name: str, arrived_ms: float, *, deadline_ms: float = 0) -> Planned:
    """A task that came long ago."""
    wire = JSON.encode_task(Task(id=TaskId(name), type=AgentType("a")))
    encoded = encode_entry(
        task_id=name.encode(), shape=b"n|a|slots=1|", max_attempts=1, key_ms=arrived_ms, deadline_ms=deadline_ms,
        arrived_ms=arrived_ms, receipt=b"", headers=NO_HEADERS, wire=wire,
    )  # fmt: skip
    return Planned(0, (0,), encoded)


async def test_letters_come_before_outcomes_and_the_copies_of_carried_tasks_are_deleted_last() -> None:
    now_ms = int(time.time() * 1000)
    twin, log, old_ms = TwinCell(random.Random(1), lambda: now_ms), Log(), now_ms - LONG_MS
    await twin.begin({})
    await twin.register("i", "epoch", Registration(("a",), {"slots": 2}, {}, LONG_MS))
    tasks = [planned("carried", old_ms), planned("late", old_ms, deadline_ms=1)]
    await twin.apply(Batch((), [("i", "epoc")], ["n|a|slots=1|"], tasks))
    (delivery,) = await twin.queue("i", count=9)
    await twin.carry(["carried"])
    outcome = JSON.encode_outcome(Outcome(id="carried", type="a", status="succeeded", attempt=1))
    await twin.finish("i", "epoch", [Ending("carried", delivery.stream_id, 1, "succeeded", outcome)])
    names = topics()

    await Relay(twin, log, names, Metrics(), "me").step()

    assert log.calls == [{names.dead_letter}, {names.results}, {names.carried}]
    assert await twin.outbox(count=9) == []
