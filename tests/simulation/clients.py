"""The clients that a simulated dispatcher is given."""

from typing import Any

from taskyard.dispatcher.kafka.topics import TopicFault
from taskyard.schemas.topics import Topics
from tests.simulation.broker import Broker
from tests.simulation.history import SimHistory
from tests.simulation.kafka import SimConsumer, SimProducer
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.server import Server, client


class SimClients:
    """All of one process; they reach their servers through the network."""

    def __init__(self, process: Process, network: Network, broker: Broker, server: Server) -> None:
        self._process = process
        self._network = network
        self._broker = broker
        self.cell: Any = client(process, network, server)
        self.view: Any = client(process, network, server)
        self.audit: Any = client(process, network, server)

    def consumer(self, topic: str, group: str) -> SimConsumer:
        """Make a member of the group."""
        return SimConsumer(self._process, self._network, self._broker, topic, group)

    def producer(self) -> SimProducer:
        """Make a producer of outcomes."""
        return SimProducer(self._process, self._network, self._broker)

    def history(self, topics: Topics, group: str) -> SimHistory:
        """Make a reader of the history."""
        return SimHistory(self._process, self._network, self._broker, topics, group)

    async def check_topics(self, topics: Topics) -> list[TopicFault]:
        """Find all topics there: the world made them."""
        await self._network.ask(self._process, "kafka", "check_topics", self._broker.up, len(topics.names))
        return []

    async def close(self) -> None:
        """Nothing is open."""
