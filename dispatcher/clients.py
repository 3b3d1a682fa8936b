"""What a dispatcher reaches the world through: the cell, and Kafka. Given to it, so that a test may give it others."""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from taskyard.dispatcher.cell.audit import RedisAudit
from taskyard.dispatcher.cell.audit_contract import AuditCell
from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import DispatcherCell, FleetView, Incarnation
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.cell.view import RedisView
from taskyard.dispatcher.kafka import topics as kafka
from taskyard.dispatcher.kafka.consumer import Record, TopicConsumer
from taskyard.dispatcher.kafka.history import Extent, Mark, TopicHistory
from taskyard.dispatcher.kafka.producer import OutgoingRecord, TopicProducer
from taskyard.dispatcher.kafka.topics import TopicFault, TopicState
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.topics import Topics


class Consumer(Protocol):
    """A member of the consumer group of one topic; `kafka.consumer.TopicConsumer` says what each call promises."""

    on_change: Callable[[frozenset[int]], None]

    async def start(self) -> None: ...
    async def describe(self) -> TopicState: ...
    async def poll(self, *, records: int, timeout_ms: int) -> dict[int, list[Record]]: ...
    def seek(self, offsets: Mapping[int, int]) -> None: ...
    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]: ...
    async def ends(self, partitions: Iterable[int]) -> dict[int, int]: ...
    async def commit(self, offsets: Mapping[int, int]) -> None: ...
    async def stop(self) -> None: ...


class Producer(Protocol):
    """Publishes outcomes, as `kafka.producer.TopicProducer` does."""

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[int]: ...
    async def stop(self) -> None: ...


class History(Protocol):
    """The topics as the history of a cell, as `kafka.history.TopicHistory` has them. One call at a time."""

    async def extents(self) -> dict[Incarnation, Extent]: ...
    async def first_since(self, since_ms: int) -> dict[Incarnation, int]: ...
    async def marks(self) -> dict[Incarnation, Mark]: ...
    async def store(self, marks: Mapping[Incarnation, Mark]) -> None: ...
    async def carried(self) -> list[bytes]: ...
    def outcomes(self, since_ms: int) -> AsyncGenerator[list[bytes]]: ...
    async def close(self) -> None: ...


class Clients(Protocol):
    """Makes the clients of one dispatcher. cell, view, audit: one of each for all its loops."""

    cell: DispatcherCell
    view: FleetView
    audit: AuditCell

    def consumer(self, topic: str, group: str) -> Consumer: ...
    def producer(self) -> Producer: ...
    def history(self, topics: Topics, group: str) -> History: ...
    async def check_topics(self, topics: Topics) -> list[TopicFault]: ...
    async def close(self) -> None: ...


class RealClients:
    """Those of Redis and Kafka at the addresses in the settings. Nothing is connected before it is used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = Connection(settings.redis, settings.cell)
        self.cell: DispatcherCell = RedisCell(self._connection)
        self.view: FleetView = RedisView(self._connection)
        self.audit: AuditCell = RedisAudit(self._connection)

    def consumer(self, topic: str, group: str) -> TopicConsumer:
        """Make a member of the group."""
        session_timeout_ms = self._settings.intake.session_timeout_ms
        return TopicConsumer(self._settings.kafka, topic, group=group, session_timeout_ms=session_timeout_ms)

    def producer(self) -> TopicProducer:
        """Make a producer of outcomes."""
        return TopicProducer(self._settings.kafka)

    def history(self, topics: Topics, group: str) -> TopicHistory:
        """Make a reader of the history; it is closed by who uses it."""
        return TopicHistory(self._settings.kafka, topics, group=group)

    async def check_topics(self, topics: Topics) -> list[TopicFault]:
        """Create missing topics if the settings say so; return what differs from them."""
        return await kafka.check_topics(self._settings.kafka, topics, self._settings.topics)

    async def close(self) -> None:
        """Close the connections to the cell; consumers and producers are closed by who uses them."""
        await self._connection.close()
