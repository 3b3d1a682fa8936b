"""A run of the real system: dispatchers and workers as processes, a load, and an account of every task."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from taskyard.compose.process import free_port
from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import Drift
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.cell.view import RedisView
from taskyard.dispatcher.cli.configure import as_toml
from taskyard.dispatcher.cli.rehearsal.account import Account
from taskyard.dispatcher.cli.rehearsal.gauge import Gauge
from taskyard.dispatcher.cli.rehearsal.interrupts import Interrupts
from taskyard.dispatcher.cli.rehearsal.load import Due, Load
from taskyard.dispatcher.cli.rehearsal.processes import Processes
from taskyard.dispatcher.cli.rehearsal.results import Results
from taskyard.dispatcher.cli.rehearsal.services import Stand
from taskyard.dispatcher.kafka import topics as kafka
from taskyard.producers.producer import Producer
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.topics import topics
from taskyard.workers.instance import InstanceSpec

_HOST = "taskyard.dispatcher.cli.rehearsal.host"
_COMMAND = "taskyard.dispatcher.cli"
_READY_WITHIN_S = 90.0
_TOPICS_WITHIN_S = 15.0
_POLL_S = 0.1
_AUDITS_AT_ONCE = 8
_PRODUCER_TIMEOUT_S = 10.0
_STOP_WITHIN_S = 15.0


class Cast(NamedTuple):
    """What a run puts up. hosts: the instances of each worker process. sample_s: between two looks at the cell."""

    dispatchers: int
    hosts: Sequence[Sequence[InstanceSpec]]
    sample_s: float = 0.5

    @property
    def fleet(self) -> list[InstanceSpec]:
        """All instances."""
        return [spec for host in self.hosts for spec in host]


class Rehearsal:
    """One run, put up by `rehearsal`. Its loops run while the block does."""

    def __init__(self, place: Stand, cast: Cast, interrupts: Interrupts, tell: Callable[[str], None]) -> None:
        settings = place.settings
        self.settings = settings
        self.cast = cast
        self.interrupts = interrupts
        self.account = Account()
        self.processes = Processes(place.directory, _environment(), tell)
        self.service_deaths: list[str] = []
        self.measured = slice(0, 0)  # the samples taken while tasks were published
        self._place = place
        self._tell = tell
        self._connection = Connection(settings.redis, settings.cell)
        self._view = RedisView(self._connection)
        self._results = Results(settings.kafka, topics(settings.prefix), self.account)
        self._ports: list[int] = []
        self.gauge = Gauge(self._view, cast.fleet, every_s=cast.sample_s)
        producer = Producer(settings.kafka, prefix=settings.prefix, timeout_s=_PRODUCER_TIMEOUT_S)
        self._producer = producer
        self.load = Load(producer, self.account)

    async def _start(self) -> None:
        """Make the topics, note where the results begin, and start all processes."""
        settings, directory = self.settings, self._place.directory
        await self._check_topics()
        await self._results.seek_to_end()
        file = directory / "settings.toml"
        file.touch(mode=0o600)  # the address of Redis may hold a password
        file.write_text(as_toml(settings))
        for number in range(1, self.cast.dispatchers + 1):
            port = free_port()
            self._ports.append(port)
            flags = ("--config", str(file), "--http-port", str(port))
            self.processes.start("dispatcher", f"dispatcher-{number}", _COMMAND, "dispatcher", *flags)
        for number, specs in enumerate(self.cast.hosts, 1):
            fleet = directory / f"fleet-{number}.json"
            fleet.write_bytes(msgspec.json.encode(specs))
            self.processes.start("worker", f"worker-{number}", _HOST, str(file), str(fleet))

    async def _check_topics(self) -> None:
        """Create what is missing; a broker shows a topic a moment after it has been created."""
        deadline_s = time.monotonic() + _TOPICS_WITHIN_S
        while True:
            faults = await kafka.check_topics(self.settings.kafka, topics(self.settings.prefix), self.settings.topics)
            fatal = [f"topic {fault.topic} {fault.what}" for fault in faults if fault.is_fatal]
            if not fatal:
                return
            if time.monotonic() > deadline_s or not self.settings.topics.create:
                raise DependencyError("; ".join(fatal))
            await asyncio.sleep(_POLL_S)

    async def ready(self) -> None:
        """Wait for dispatchers and instances, or for an interrupt."""
        wanted, deadline_s = len(self.cast.fleet), time.monotonic() + _READY_WITHIN_S
        while not self.interrupts.stopping.is_set():
            last = self.gauge.last
            here = last.instances if last else 0
            if here >= wanted and all(await asyncio.gather(*map(_is_ready, self._ports))):
                return
            if time.monotonic() > deadline_s:
                raise DependencyError(
                    f"not ready within {_READY_WITHIN_S:.0f} s: {here} of {wanted} instances have registered. "
                    + self._logs()
                )
            await asyncio.sleep(_POLL_S)

    async def publish(self, plan: Iterable[Due]) -> None:
        """Publish the plan, until it ends or the run is interrupted."""
        first = len(self.gauge.samples)
        self.gauge.is_measured = True
        try:
            await self.load.run(plan, self.interrupts.stopping)
        finally:
            self.gauge.is_measured = False
            self.measured = slice(first, len(self.gauge.samples))

    async def settle(self, *, within_s: float) -> bool:
        """Wait until every published task has ended. False if it took too long, or was skipped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.account.open and not self.interrupts.hurry.is_set():  # noqa: ASYNC110 - two conditions
                    await asyncio.sleep(_POLL_S / 2)
        return not self.account.open

    async def audit(self) -> list[Drift]:
        """Compare the ledger of every instance with its vector; return those that differ, or did not answer."""
        limit = asyncio.Semaphore(_AUDITS_AT_ONCE)

        async def one(name: str) -> Drift:
            async with limit:
                return await self._view.audit(name)

        found = await asyncio.gather(*(one(spec.id) for spec in self.cast.fleet))
        return [drift for drift in found if drift.misplaced or any(drift.used.values())]

    def pids(self) -> dict[str, list[int]]:
        """The process ids of all that belongs to the run, for whoever wants to kill one."""
        found = {
            kind: [child.pid for child in self.processes.of(kind) if child.is_up] for kind in ("dispatcher", "worker")
        }
        return found | {server.name: [server.pid] for server in self._place.servers if server.is_running}

    async def lag(self) -> dict[str, int]:
        """Records that no dispatcher has applied yet, per priority. Raises DependencyError."""
        names = topics(self.settings.prefix).tasks
        found = await kafka.lag(self.settings.kafka, list(names.values()), RedisCell(self._connection).applied)
        return {priority: found[topic] for priority, topic in names.items()}

    async def stop(self) -> None:
        """Stop workers, then dispatchers, in order."""
        if self.interrupts.hurry.is_set():
            return  # whoever interrupts twice waits for nothing more: the processes are killed
        drain_s = self.settings.worker.drain_ms / 1000
        await self.processes.stop("worker", within_s=drain_s + _STOP_WITHIN_S)
        await self.processes.stop("dispatcher", within_s=_STOP_WITHIN_S)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Start the processes; then run the loops while the block runs: supervisors, reader of the results, gauge."""
        try:
            await self._start()
            async with asyncio.TaskGroup() as group:
                watching = self._place.watch(self._tell, self.service_deaths)
                loops = [
                    group.create_task(self.processes.watch(), name="watch-processes"),
                    group.create_task(watching, name="watch-services"),
                    group.create_task(self._results.run(), name="results"),
                    group.create_task(self.gauge.run(), name="gauge"),
                ]
                async with self._producer:
                    yield
                for loop in loops:
                    loop.cancel()
        finally:
            self.processes.kill()
            await self._connection.close()

    def _logs(self) -> str:
        children = [*self.processes.of("dispatcher"), *self.processes.of("worker")]
        return "The logs end with\n" + "\n".join(f"{child.name}:\n{child.end_of_log()}" for child in children)


async def _is_ready(port: int) -> bool:
    """Ask a dispatcher on this machine."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(b"GET /ready HTTP/1.0\r\n\r\n")
                return b" 200 " in await reader.readline()
    except (OSError, TimeoutError):
        return False


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TASKYARD_")}
