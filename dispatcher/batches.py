"""From a plan to the batch that the cell applies."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import count

from taskyard.dispatcher.arrivals import Arrival
from taskyard.dispatcher.cell.contract import Batch, Planned
from taskyard.dispatcher.core.fleet import Instance
from taskyard.dispatcher.core.plan import Decision
from taskyard.dispatcher.core.receipt import Receipt, encode_receipt
from taskyard.dispatcher.intake import Chunk
from taskyard.schemas.entry import encode_entry, encode_headers


def batch_of(
    chunk: Chunk, arrivals: Sequence[Arrival], decisions: Sequence[Decision], *, policy: str, seed: int,
    view_age_ms: int, parked_permille: int,
) -> Batch:  # fmt: skip
    """Make the batch of a chunk. arrivals: in order of their keys, with one decision each."""
    # Numbered in the order in which they are first asked for.
    shapes: dict[str, int] = defaultdict(count().__next__)
    instances: dict[Instance, int] = defaultdict(count().__next__)
    tasks: list[Planned] = []
    for index, (arrival, decision) in enumerate(zip(arrivals, decisions, strict=True)):
        candidates = tuple(map(instances.__getitem__, decision.candidates))
        receipt = encode_receipt(_receipt(decision, policy, seed, index, view_age_ms))
        tasks.append(Planned(shapes[arrival.shape], candidates, _entry(arrival, receipt)))
    return Batch(chunk.ranges, [(i.id, i.tag) for i in instances], list(shapes), tasks, chunk.refused, parked_permille)


def _receipt(decision: Decision, policy: str, seed: int, index: int, view_age_ms: int) -> Receipt:
    chosen = decision.candidates
    return Receipt(
        policy,
        decision.pool_size,
        chosen[0].id if chosen else "",
        decision.load,
        chosen[1].id if len(chosen) > 1 else "",
        decision.runner_up_load,
        view_age_ms,
        seed,
        index,
        decision.reason,
    )


def _entry(arrival: Arrival, receipt: bytes) -> bytes:
    return encode_entry(
        task_id=arrival.id.encode(),
        shape=arrival.shape.encode(),
        max_attempts=arrival.max_attempts,
        key_ms=arrival.key_ms,
        deadline_ms=arrival.deadline_ms,
        arrived_ms=arrival.arrived_ms,
        receipt=receipt,
        headers=encode_headers(arrival.headers),
        wire=arrival.wire,
    )
