"""Kafka's clients in a simulated process: what `kafka.consumer` and `kafka.producer` are to the real one."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from taskyard.dispatcher.kafka.producer import OutgoingRecord, partition_of
from taskyard.dispatcher.kafka.topics import TopicState
from taskyard.schemas.errors import DependencyError
from tests.simulation.broker import Broker, Record
from tests.simulation.network import Network
from tests.simulation.process import Process

_HEARTBEAT_S = 0.4
_AGAIN_S = 0.1


class SimConsumer:
    """A member of the group of one topic. It believes in its partitions until it hears of a rebalance."""

    def __init__(self, process: Process, network: Network, broker: Broker, topic: str, group: str) -> None:
        self.topic = topic
        self.on_change: Callable[[frozenset[int]], None] = lambda _: None
        self._process = process
        self._network = network
        self._broker = broker
        self._group = group
        self._member = ""
        self._generation = 0
        self._positions: dict[int, int] = {}
        self._membership: asyncio.Task[None] | None = None

    def _ask(self, call: str, effect: Callable[[], Any], told: object = None) -> Any:
        return self._network.ask(self._process, "kafka", call, effect, (self.topic, told))

    async def start(self) -> None:
        """Join the group."""
        await self.stop()
        self.on_change(frozenset())
        await self._ask("bootstrap", self._broker.up)
        self._member = f"{self._process.name}-{self._process.chance.getrandbits(32):08x}"
        self._membership = asyncio.create_task(self._stay(), name=f"membership {self.topic}")

    async def _stay(self) -> None:
        while True:
            try:
                await self._join()
                await self._beat_until_rebalance()
            except DependencyError:
                await asyncio.sleep(_AGAIN_S)
            self._positions = {}
            self.on_change(frozenset())

    async def _join(self) -> None:
        member, name = self._member, self._process.name
        self._generation, ours = await self._ask(
            "join", lambda: self._broker.join(self._group, self.topic, member, name)
        )
        committed: dict[int, int] = await self._ask("fetch_offsets", self._committed)
        self._positions = {partition: committed.get(partition, 0) for partition in sorted(ours)}
        self.on_change(ours)

    def _committed(self) -> dict[int, int]:
        self._broker.up()
        return dict(self._broker.group(self._group, self.topic).committed)

    async def _beat_until_rebalance(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            beat = partial(self._broker.beat, self._group, self._member, self._generation)
            # An answer that does not come changes nothing: it believes in its partitions.
            with contextlib.suppress(DependencyError):
                answer = await self._ask("heartbeat", beat)
                if answer != "fine":
                    return

    async def describe(self) -> TopicState:
        """Ask for the topic's id."""
        return await self._ask("describe", self._state)

    def _state(self) -> TopicState:
        self._broker.up()
        topic = self._broker.topics[self.topic]
        return TopicState(topic.id, len(topic.logs))

    async def poll(self, *, records: int, timeout_ms: int) -> dict[int, list[Record]]:
        """Read what is there, at most so many; wait for it."""
        before = dict(self._positions)
        if not before:
            await asyncio.sleep(timeout_ms / 1000)
            return {}
        found: dict[int, list[Record]] = await self._ask(
            "fetch", lambda: self._broker.fetch(self.topic, before, records, timeout_ms / 1000), before
        )
        # What was asked for from another position than where it stands by now is dropped.
        kept = {p: rows for p, rows in found.items() if self._positions.get(p) == before[p]}
        for partition, rows in kept.items():
            self._positions[partition] = rows[-1].offset + 1
        return kept

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Read each of these partitions from its offset on."""
        for partition, offset in offsets.items():
            if partition not in self._positions:
                raise DependencyError(f"partition {partition} of {self.topic} is not ours any more")
            self._positions[partition] = offset

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        """The first offset of each."""
        ours = list(partitions)
        await self._ask("beginnings", self._broker.up)
        return dict.fromkeys(ours, 0)

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The end of each."""
        ours = list(partitions)
        return await self._ask("ends", lambda: self._ends(ours))

    def _ends(self, partitions: Sequence[int]) -> dict[int, int]:
        self._broker.up()
        logs = self._broker.topics[self.topic].logs
        return {partition: len(logs[partition]) for partition in partitions if partition < len(logs)}

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Store offsets in the group."""
        if offsets:
            member, generation, told = self._member, self._generation, dict(offsets)
            await self._ask("commit", lambda: self._broker.commit(self._group, member, generation, told), told)

    async def stop(self) -> None:
        """Leave the group."""
        membership, self._membership = self._membership, None
        if membership is None:
            return
        membership.cancel()
        await asyncio.wait([membership])
        member = self._member
        self._positions = {}
        with contextlib.suppress(DependencyError):
            await self._ask("leave_group", lambda: self._broker.leave(self._group, member))


class SimProducer:
    """Publishes outcomes, topic by topic: a failure in between leaves the first ones published."""

    def __init__(self, process: Process, network: Network, broker: Broker) -> None:
        self._process = process
        self._network = network
        self._broker = broker

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[int]:
        """Publish the records and return when all are acknowledged."""
        pages: dict[str, list[OutgoingRecord]] = {}
        for record in records:
            pages.setdefault(record[0], []).append(record)
        for topic, page in pages.items():
            told = (topic, [record[1].decode() for record in page])
            await self._network.ask(self._process, "kafka", "publish", lambda page=page: self._append(page), told)
        return []

    def _append(self, page: Sequence[OutgoingRecord]) -> None:
        self._broker.up()
        for topic, key, value, headers in page:
            partition = partition_of(key, len(self._broker.topics[topic].logs))
            self._broker.append(topic, partition, value, key or None, headers)

    async def stop(self) -> None:
        """Close the producer."""
