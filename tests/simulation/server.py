"""The cell's server: the twin behind a network, which can be away, come back older, or empty."""

import asyncio
import pickle
import random
from collections.abc import Callable, Coroutine
from typing import Any, cast

from taskyard.dispatcher.cell.contract import CellConfig, Delivery, DispatcherCell, FleetView, OnSent, Opening
from taskyard.dispatcher.cell.twin import TwinCell
from taskyard.dispatcher.cell.twin_state import TwinState
from taskyard.schemas.errors import DependencyError
from tests.simulation.network import Network
from tests.simulation.process import BEGIN_MS, NOWHERE, Process, nobody

READS = frozenset({"applied", "outbox", "read", "lease"})
"""Calls that do not touch a task."""
VIEWS = frozenset(name for name in vars(FleetView) if not name.startswith("_"))


class SimTwin(TwinCell):
    """A twin whose server may be restarted: `open` then finds another run id."""

    is_restarted = False

    @property
    def state(self) -> TwinState:
        """All that it holds."""
        return self._state

    @state.setter
    def state(self, state: TwinState) -> None:
        self._state = state

    async def open(self, config: CellConfig) -> Opening:
        """Name the history anew if the server was restarted."""
        if self.is_restarted:
            self.is_restarted, self.state.generation = False, ""
        return await super().open(config)

    def has_news(self, cursors: dict[str, str]) -> bool:
        """Whether a read behind these cursors would find something."""
        return any(
            next(live.queue.behind(cursor), None) is not None
            for name, cursor in cursors.items()
            if (live := self.state.instances.get(name)) is not None
        )


class Server:
    """Executes calls one by one. on_executed: told of each call that may have changed something."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seed: str) -> None:
        self._loop = loop
        self._chance = random.Random(f"{seed}/server")
        self.clock_offset_ms = 0
        self.is_down = False
        self.is_full = False
        self.calls = 0
        self.twin = SimTwin(self._chance, self.now_ms)
        self.on_executed: Callable[[str, tuple[Any, ...], Any], None] = nobody
        self._snapshots: dict[str, tuple[float, bytes]] = {}
        self._reading: list[tuple[asyncio.Future[list[Delivery]], dict[str, str], int]] = []

    def now_ms(self) -> int:
        """The server's clock."""
        return BEGIN_MS + self.clock_offset_ms + int(self._loop.time() * 1000)

    def execute(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Execute one call. Raises DependencyError if the server is away or refuses it."""
        if self.is_down:
            raise DependencyError("the cell is down")
        if self.is_full and name in ("apply", "register", "resync", "open"):
            raise DependencyError(f"the cell refused {name}: out of memory")
        self.calls += 1
        if name == "read":
            return self._read(*arguments, **options)
        end = _run(getattr(self.twin, name)(*arguments, **options))
        if name not in READS and name not in VIEWS:
            self.on_executed(name, arguments, end)
            self._wake()
        return end

    def _read(self, cursors: dict[str, str], *, count: int, block_ms: int) -> Any:
        found = _run(self.twin.read(cursors, count=count, block_ms=0))
        if found or not block_ms:
            return found
        reply: asyncio.Future[list[Delivery]] = self._loop.create_future()
        self._reading.append((reply, cursors, count))
        self._loop.call_later(block_ms / 1000, _nothing, reply, context=NOWHERE)
        return reply

    def _wake(self) -> None:
        for waiting in list(self._reading):
            reply, cursors, count = waiting
            if reply.done():
                self._reading.remove(waiting)
            elif self.twin.has_news(cursors):
                self._reading.remove(waiting)
                reply.set_result(_run(self.twin.read(cursors, count=count, block_ms=0)))

    def stop(self) -> None:
        """Go away: blocked reads break."""
        self.is_down = True
        for reply, _, _ in self._reading:
            if not reply.done():
                reply.set_exception(DependencyError("the cell went away"))
        self._reading.clear()

    def snapshot(self, name: str) -> None:
        """Keep the state of this moment for a restart."""
        state = self.twin.state
        chance, state.random = state.random, random.Random(0)
        self._snapshots[name] = self._loop.time(), pickle.dumps(state)
        state.random = chance

    def restart(self, name: str) -> float:
        """Come back with the state of a snapshot, or with the present one; return the moment it is of."""
        taken_s, dump = self._snapshots.get(name, (self._loop.time(), b""))
        if dump:
            state = pickle.loads(dump)
            state.random = self._chance
            self.twin.state = state
        self.is_down, self.twin.is_restarted = False, True
        return taken_s

    def restart_empty(self) -> None:
        """Come back with nothing."""
        self.twin.state = TwinState(self._chance)
        self.is_down, self.twin.is_restarted = False, True


class SimCell:
    """A process's client of the cell: WorkerCell, DispatcherCell and FleetView, whatever they ask for."""

    def __init__(self, process: Process, network: Network, server: Server) -> None:
        self._process = process
        self._network = network
        self._server = server

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if name.startswith("_"):
            raise AttributeError(name)
        network, process, server = self._network, self._process, self._server

        def call(*arguments: Any, on_sent: OnSent | None = None, **options: Any) -> Coroutine[Any, Any, Any]:
            if on_sent is not None:
                on_sent()
            told = (arguments, options)

            def execute() -> Any:
                if name == "lease" and process.has_ended:  # a request that the network has delivered once more
                    process.kept_leases.add(arguments[0])
                return server.execute(name, arguments, options)

            asked = network.ask(process, "cell", name, execute, told)
            is_given_back = name == "lease" and options.get("ttl_ms") == 0
            return _given_back(process, arguments[0], asked) if is_given_back else asked

        return call


async def _given_back(process: Process, lease: str, call: Coroutine[Any, Any, Any]) -> Any:
    """Give a lease back; note it as kept as long as that could not be told."""
    process.kept_leases.add(lease)
    end = await call
    process.kept_leases.discard(lease)
    return end


def client(process: Process, network: Network, server: Server) -> Any:
    """Make a client of the cell."""
    return cast("DispatcherCell", SimCell(process, network, server))


def _run(call: Coroutine[Any, Any, Any]) -> Any:
    """Run a call of the twin, which never waits."""
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the twin waited")


def _nothing(reply: "asyncio.Future[list[Delivery]]") -> None:
    if not reply.done():
        reply.set_result([])
