"""Offsets with a note, stored under the name of a consumer group that has no members."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import for_code
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest

from taskyard.dispatcher.kafka.topics import connected
from taskyard.dispatcher.kafka.waits import timed
from taskyard.schemas.errors import DependencyError


class Stored(NamedTuple):
    """One stored offset. note: what was stored with it; empty if another tool has set the offset."""

    offset: int
    note: str


async def read_offsets(bootstrap: str, group: str) -> dict[tuple[str, int], Stored]:
    """Read all offsets of the group by topic and partition; none if the group does not exist. Raises DependencyError.

    Asked in our own words: aiokafka's admin client and its consumer do not look at the reply's error, so that a
    coordinator which is still loading would look like a group without offsets.
    """
    reply = await _ask(bootstrap, group, OffsetFetchRequest(group, None))
    _check([reply.error_code], f"read the offsets of {group}")
    rows = [(topic, *row) for topic, partitions in reply.topics for row in partitions]
    _check((error for *_, error in rows), f"read the offsets of {group}")
    return {(topic, partition): Stored(offset, note or "") for topic, partition, offset, note, _ in rows if offset >= 0}


async def store_offsets(bootstrap: str, group: str, offsets: Mapping[tuple[str, int], Stored]) -> None:
    """Store offsets; those of other partitions stay. Raises DependencyError; some may then have been stored.

    Kafka forgets a group without members a week after its last offset (`offsets.retention.minutes`).
    """
    topics: dict[str, list[tuple[int, int, str]]] = {}
    for (topic, partition), (offset, note) in offsets.items():
        topics.setdefault(topic, []).append((partition, offset, note))
    reply = await _ask(bootstrap, group, OffsetCommitRequest(group, -1, "", -1, list(topics.items())))
    errors = (error for _, partitions in reply.topics for _, error in partitions)
    _check(errors, f"store offsets of {group}")


async def _ask(bootstrap: str, group: str, request: Any) -> Any:
    async with connected(bootstrap) as client:
        lookup = client.coordinator_lookup(CoordinationType.GROUP, group)
        node = await timed(lookup, f"find the coordinator of {group}")
        return await timed(client.send(node, request, group=ConnectionGroup.COORDINATION), f"ask for {group}")


def _check(errors: Iterable[int], what: str) -> None:
    for error in errors:
        if error:
            raise DependencyError(f"cannot {what}: {for_code(error).__name__}")
