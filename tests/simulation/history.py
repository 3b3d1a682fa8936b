"""The topics as the history of a cell, over the simulated Kafka: what `kafka.history` is to the real one."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from taskyard.dispatcher.kafka.history import Extent, Mark
from taskyard.schemas.topics import Topics
from tests.simulation.broker import Broker, Record
from tests.simulation.network import Network
from tests.simulation.process import Process

_PAGE = 20
"""Outcomes in a page: small, so that a recovery has several steps."""


class SimHistory:
    """The history on the simulated Kafka. group: under which the marks are stored."""

    def __init__(self, process: Process, network: Network, broker: Broker, topics: Topics, group: str) -> None:
        self._process = process
        self._network = network
        self._broker = broker
        self._topics = topics
        self._group = group
        self._extents: dict[str, Extent] = {}

    async def _ask(self, call: str, effect: Callable[[], Any], told: object = None) -> Any:
        def at_the_broker() -> Any:
            self._broker.up()
            return effect()

        return await self._network.ask(self._process, "kafka", call, at_the_broker, told)

    async def extents(self) -> dict[str, Extent]:
        """All partitions of the task topics."""
        self._extents = await self._ask("extents", self._all)
        return self._extents

    def _all(self) -> dict[str, Extent]:
        found: dict[str, Extent] = {}
        for name in self._topics.tasks.values():
            topic = self._broker.topics[name]
            found |= {f"{topic.id}:{p}": Extent(name, p, 0, len(log)) for p, log in enumerate(topic.logs)}
        return found

    async def first_since(self, since_ms: int) -> dict[str, int]:
        """For each partition the first offset with a record of since_ms or later."""
        extents = self._extents
        return await self._ask("first_since", lambda: self._first(extents, since_ms), since_ms)

    def _first(self, extents: Mapping[str, Extent], since_ms: int) -> dict[str, int]:
        found: dict[str, int] = {}
        for name, extent in extents.items():
            logs = self._broker.topics[extent.topic].logs
            log: Sequence[Record] = logs[extent.partition] if extent.partition < len(logs) else ()
            first = next((record.offset for record in log if record.timestamp >= since_ms), None)
            if first is not None:
                found[name] = first
        return found

    async def marks(self) -> dict[str, Mark]:
        """The stored marks."""
        return await self._ask("marks", lambda: dict(self._broker.marks.get(self._group, {})))

    async def store(self, marks: Mapping[str, Mark]) -> None:
        """Store marks; one of a former life of a topic is replaced."""
        places = {(e.topic, e.partition): (name, marks[name]) for name, e in self._extents.items() if name in marks}
        await self._ask("store_marks", lambda: self._store(places), dict(marks))

    def _store(self, places: Mapping[tuple[str, int], tuple[str, Mark]]) -> None:
        stored = self._broker.marks.setdefault(self._group, {})
        at: dict[tuple[str, int], str] = self._broker.mark_places.setdefault(self._group, {})
        for place, (name, mark) in places.items():
            stored.pop(at.get(place, ""), None)
            stored[name], at[place] = mark, name

    async def outcomes(self, since_ms: int) -> AsyncGenerator[list[bytes]]:
        """Yield pages of what was published since then."""
        for topic in (self._topics.dead_letter, self._topics.results):
            found: list[bytes] = await self._ask("outcomes", lambda topic=topic: self._since(topic, since_ms), since_ms)
            for first in range(0, len(found), _PAGE):
                page = found[first : first + _PAGE]
                yield await self._ask("page", lambda page=page: page, len(page))

    def _since(self, topic: str, since_ms: int) -> list[bytes]:
        logs = self._broker.topics[topic].logs
        return [record.value for log in logs for record in log if record.timestamp >= since_ms and record.value]

    async def carried(self) -> list[bytes]:
        """The last value of each key of the carried tasks' topic."""
        return await self._ask("carried", self._last_of_each_key)

    def _last_of_each_key(self) -> list[bytes]:
        found: dict[bytes | None, bytes | None] = {}
        for log in self._broker.topics[self._topics.carried].logs:
            found |= {record.key: record.value for record in log}
        return [value for value in found.values() if value is not None]

    async def close(self) -> None:
        """Nothing is open."""
