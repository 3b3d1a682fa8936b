"""Kafka as a server: topics with ids and partitions, and groups with generations, sessions and eager rebalances."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from taskyard.dispatcher.kafka.history import Mark
from taskyard.schemas.errors import DependencyError
from tests.simulation.process import BEGIN_MS, NOWHERE

_REBALANCE_S = 0.8
"""Members that have not joined again by then are out."""


class Record(NamedTuple):
    """A record as a consumer sees it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class Topic(NamedTuple):
    """One life of a topic. id: another for each."""

    id: str
    logs: list[list[Record]]


class Member:
    """A member of a group, as the coordinator knows it."""

    def __init__(self, process: str, seen_s: float) -> None:
        self.process = process
        self.seen_s = seen_s
        self.joining: asyncio.Future[tuple[int, frozenset[int]]] | None = None
        self.partitions: frozenset[int] = frozenset()


class Group:
    """The consumers of one topic under one name."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.generation = 0
        self.members: dict[str, Member] = {}
        self.is_rebalancing = False
        self.committed: dict[int, int] = {}


class Broker:
    """One broker with all topics. Its clock is its own: virtual time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seed: str, *, session_s: float) -> None:
        self._loop = loop
        self._chance = random.Random(f"{seed}/broker")
        self._session_s = session_s
        self.topics: dict[str, Topic] = {}
        self.past: dict[str, Topic] = {}
        self.groups: dict[str, Group] = {}
        # Group -> incarnation -> the unfinished watermark, and which incarnation a place's is of.
        self.marks: dict[str, dict[str, Mark]] = {}
        self.mark_places: dict[str, dict[tuple[str, int], str]] = {}
        self.is_down = False
        self._waiting: list[tuple[asyncio.Future[Any], Callable[[], Any]]] = []

    # Topics.

    def create(self, name: str, partitions: int) -> Topic:
        """Create a topic, in place of one of the same name."""
        if name in self.topics:
            self.past[self.topics[name].id] = self.topics[name]
        self.topics[name] = Topic(self._chance.randbytes(16).hex(), [[] for _ in range(partitions)])
        return self.topics[name]

    def add_partition(self, name: str) -> None:
        """Give a topic one more partition. Its consumers learn of it with their next metadata."""
        self.topics[name].logs.append([])
        for group in self.groups.values():
            if group.topic == name and group.members:
                self._loop.call_later(self._chance.uniform(0.1, 2.0), self._rebalance, group, context=NOWHERE)

    def by_id(self, topic_id: str) -> Topic | None:
        """Find a topic's life, past ones too."""
        return self.past.get(topic_id) or next((t for t in self.topics.values() if t.id == topic_id), None)

    def append(
        self, name: str, partition: int, value: bytes | None, key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> int:  # fmt: skip
        """Append a record, stamp it, and wake who waits for it."""
        log = self.topics[name].logs[partition]
        now_ms = BEGIN_MS + int(self._loop.time() * 1000)
        log.append(Record(len(log), now_ms, key, value, tuple(headers)))
        self._wake()
        return len(log) - 1

    def up(self) -> None:
        """Raise DependencyError if the broker is down."""
        if self.is_down:
            raise DependencyError("Kafka is down")

    # Reading.

    def fetch(self, name: str, positions: Mapping[int, int], count: int, wait_s: float) -> asyncio.Future[Any]:
        """Read from these positions; wait for something to come. An offset out of range means: from the beginning."""
        self.up()
        reply: asyncio.Future[Any] = self._loop.create_future()

        def look() -> dict[int, list[Record]]:
            found: dict[int, list[Record]] = {}
            left, topic = count, self.topics[name]
            for partition, position in positions.items():
                log = topic.logs[partition] if partition < len(topic.logs) else []
                start = position if position <= len(log) else 0
                rows = log[start : start + left]
                if rows:
                    found[partition], left = rows, left - len(rows)
            return found

        found = look()
        if found or not positions:
            reply.set_result(found)
        else:
            self._waiting.append((reply, look))
            self._loop.call_later(wait_s, _nothing, reply, context=NOWHERE)
        return reply

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for reply, look in waiting:
            if reply.done():
                continue
            found = look()
            if found:
                reply.set_result(found)
            else:
                self._waiting.append((reply, look))

    # Groups.

    def group(self, name: str, topic: str) -> Group:
        """Find a group, or make it."""
        return self.groups.setdefault(name, Group(topic))

    def join(self, name: str, topic: str, member_id: str, process: str) -> asyncio.Future[tuple[int, frozenset[int]]]:
        """Join, or join again; the answer comes when all members have."""
        self.up()
        group = self.group(name, topic)
        if member_id not in group.members:
            group.members[member_id] = Member(process, self._loop.time())
        member = group.members[member_id]
        if member.joining is None or member.joining.done():
            member.joining = self._loop.create_future()
        joining = member.joining
        self._rebalance(group)
        self._complete(group, is_late=False)
        return joining

    def beat(self, name: str, member_id: str, generation: int) -> str:
        """Answer a heartbeat: `fine`, `rebalance` or `unknown`."""
        self.up()
        group = self.groups[name]
        member = group.members.get(member_id)
        if member is None:
            return "unknown"
        member.seen_s = self._loop.time()
        return "rebalance" if group.is_rebalancing or generation != group.generation else "fine"

    def leave(self, name: str, member_id: str) -> None:
        """Leave the group."""
        self.up()
        group = self.groups[name]
        if group.members.pop(member_id, None) is not None:
            self._rebalance(group)
            self._complete(group, is_late=False)

    def commit(self, name: str, member_id: str, generation: int, offsets: Mapping[int, int]) -> None:
        """Store offsets; refused from a member of another generation."""
        self.up()
        group = self.groups[name]
        if member_id not in group.members or generation != group.generation or group.is_rebalancing:
            raise DependencyError("the group has gone on without this member")
        group.committed.update(offsets)

    def expire_sessions(self) -> None:
        """Put out members that have been silent for too long. Called from time to time."""
        for group in self.groups.values():
            limit_s = self._loop.time() - self._session_s
            late = [
                name for name, member in group.members.items() if member.seen_s < limit_s and member.joining is None
            ]
            for name in late:
                del group.members[name]
            if late:
                self._rebalance(group)
                self._complete(group, is_late=False)

    def _rebalance(self, group: Group) -> None:
        if group.is_rebalancing:
            return
        group.is_rebalancing = True
        group.generation += 1
        generation = group.generation
        self._loop.call_later(_REBALANCE_S, self._end_rebalance, group, generation, context=NOWHERE)

    def _end_rebalance(self, group: Group, generation: int) -> None:
        if group.is_rebalancing and group.generation == generation:
            self._complete(group, is_late=True)

    def _complete(self, group: Group, *, is_late: bool) -> None:
        """End a rebalance once all have joined, or it is late: then without those who have not."""
        waiting = [member for member in group.members.values() if member.joining is not None]
        if not group.is_rebalancing or (len(waiting) < len(group.members) and not is_late):
            return
        group.members = {name: m for name, m in group.members.items() if m.joining is not None}
        group.is_rebalancing = False
        partitions = range(len(self.topics[group.topic].logs))
        members = sorted(group.members.items())
        for index, (_, member) in enumerate(members):
            member.partitions = frozenset(p for p in partitions if p % len(members) == index)
            member.seen_s = self._loop.time()
            joining, member.joining = member.joining, None
            if joining is not None and not joining.done():
                joining.set_result((group.generation, member.partitions))


def _nothing(reply: asyncio.Future[Any]) -> None:
    if not reply.done():
        reply.set_result({})
