"""A whole system as processes, with a load on it: put up, disturbed, taken down, and its history read."""

import asyncio
import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from taskyard.compose.process import Server, ServiceError
from taskyard.compose.valkey import Valkey
from taskyard.dispatcher.cli.configure import as_toml
from taskyard.dispatcher.kafka.topics import check_topics
from taskyard.dispatcher.settings import IntakeSettings, RetrySettings, Settings, TopicSettings, WorkerSettings
from taskyard.schemas.topics import topics
from taskyard.workers.instance import InstanceSpec
from tests.fault.history import Disturbance, History, Published, Run
from tests.fault.journal import read_published, read_runs
from tests.fault.ledger import Ledger
from tests.fault.programs import Broker, Dispatcher, Program, Worker
from tests.fault.proxy import Proxy
from tests.fault.publisher import Plan
from tests.fault.records import Reader

LEASE_MS = 3_000
SESSION_MS = 2_000
PARTITIONS = 2
_WATCH_S = 0.05
_REVIVE_S = 0.5
_CALM_WITHIN_S = 90.0
# What the producer still has on its way after an outage.
_ACKNOWLEDGED_WITHIN_S = 60.0


class Host(NamedTuple):
    """A worker process. has_proxy: it alone reaches Valkey through a proxy of its own, under its name."""

    instances: int = 4
    slots: int = 10
    types: tuple[str, ...] = ("fast",)
    has_proxy: bool = False


class Layout(NamedTuple):
    """What is put up. proxied: `valkey` and `kafka` are reached through a proxy by everyone."""

    dispatchers: int = 2
    hosts: tuple[Host, ...] = (Host(), Host(), Host())
    plan: Plan = Plan()
    proxied: frozenset[str] = frozenset()


class Fleet:
    """The system, while the block of `fleet` runs. Used by one thread; a second one revives what dies."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        self.directory = directory
        self.layout = layout
        self._offset_s = time.time() - time.monotonic()
        self.proxies: dict[str, Proxy] = {}
        self.valkey = Valkey(directory / "valkey")
        if "valkey" in layout.proxied:
            self.proxies["valkey"] = Proxy(self.valkey.port)
        kafka_proxy = Proxy(0) if "kafka" in layout.proxied else None
        self.kafka = Broker(directory / "kafka", advertised_port=kafka_proxy.port if kafka_proxy else 0)
        if kafka_proxy:
            kafka_proxy.aim(self.kafka.port)
            self.proxies["kafka"] = kafka_proxy
        self.settings = self._settings()
        self.topics = topics(self.settings.prefix)
        self.ledger = Ledger(self.valkey, self.settings.cell)
        self.disturbances: list[Disturbance] = []
        self.deaths: dict[str, float] = {}
        # Tasks that were lost on purpose, asked for at the end.
        self.dropped: Callable[[], set[str]] = set
        self.unexpected: list[str] = []
        self._specs: list[InstanceSpec] = []
        file = self._written("settings.toml", as_toml(self.settings).encode())
        self.dispatchers = [Dispatcher(directory, f"dispatcher-{n}", file) for n in range(1, layout.dispatchers + 1)]
        self.workers = [self._worker(f"worker-{n}", host) for n, host in enumerate(layout.hosts, 1)]
        plan = self._written("plan.json", msgspec.json.encode(layout.plan))
        self.producer = Program(
            directory, "producer", "tests.fault.publisher", self._reached("producer"), plan, self.published
        )
        # Programs that are to be running: started again when they end. Written by both threads, whole entries only.
        self._wanted: dict[str, Program] = {}
        # Those that may end by themselves, and servers that have been replaced.
        self.mortal: set[str] = set()
        self.former: list[Server] = []
        self._is_over = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="watch-fleet", daemon=True)

    @property
    def servers(self) -> tuple[Server, ...]:
        """Both services."""
        return (self.valkey, self.kafka)

    # Putting up and taking down.

    def start(self) -> None:
        """Start everything and the load; return when the system takes tasks."""
        for server in self.servers:
            server.spawn()
        for server in self.servers:
            server.wait_ready()
        faults = asyncio.run(check_topics(self.kafka.address, self.topics, self.settings.topics))
        assert not faults, faults
        for program in (*self.dispatchers, *self.workers):
            program.spawn()
        for program in (*self.dispatchers, *self.workers):
            program.wait_ready()
            self._wanted[program.name] = program
        self._watching.start()
        self.producer.start()

    def finish(self) -> History:
        """End the load, wait until every task has ended, stop everything in order, and read what happened."""
        if not self.producer.is_running:
            self.unexpected.append(f"the producer ended; its log ends with\n{self.producer.end_of_log()}")
        self.producer.stop_within_s = _ACKNOWLEDGED_WITHIN_S
        self.producer.stop()
        published = read_published(self.published, self.mono_s)
        dropped = self.dropped()
        wanted = {task.task_id for task in published} - dropped
        reader = Reader(self.kafka.address, self.topics, self.mono_s)
        records = asyncio.run(reader.read(wanted, self.ledger.is_quiet, within_s=_CALM_WITHIN_S))
        left = asyncio.run(self.ledger.left())
        self._wanted.clear()
        for program in (*self.workers, *self.dispatchers):
            program.stop()
            self.deaths.setdefault(program.life, time.monotonic())
        runs = read_runs(sorted(self.directory.glob("*.runs")))
        self.disturbances += _blocked(published, runs)
        return History(
            published=published,
            runs=runs,
            ended=records.ended,
            letters=records.letters,
            disturbances=self.disturbances,
            slots={spec.id: spec.capacity["slots"] for spec in self._specs},
            deaths=self.deaths,
            dropped=frozenset(dropped),
            left=left,
            unexpected=self.unexpected,
        )

    def close(self) -> None:
        """Leave nothing behind."""
        self._is_over.set()
        self._wanted.clear()
        if self._watching.is_alive():
            self._watching.join()
        for program in (self.producer, *self.workers, *self.dispatchers, *self.servers, *self.former):
            program.kill()
        for proxy in self.proxies.values():
            proxy.stop()

    # Disturbing.

    @contextlib.contextmanager
    def disturbance(
        self, what: str, kind: Literal["rollback", "other"] = "other", *, back_s: float = 0.0
    ) -> Generator[None]:
        """Note that what the block does is a fault, and when."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.disturbances.append(Disturbance(kind, what, began_s, time.monotonic(), "", back_s))

    @contextlib.contextmanager
    def lost(self, worker: Program, what: str) -> Generator[None]:
        """Note that a worker cannot keep its leases while the block runs."""
        began_s, life = time.monotonic(), worker.life
        try:
            yield
        finally:
            self.disturbances.append(Disturbance("lost", what, began_s, time.monotonic(), life))

    def kill(self, program: Program) -> None:
        """Kill one of ours with SIGKILL; it stays away until `revive`."""
        self._wanted.pop(program.name, None)
        life, began_s = program.life, time.monotonic()
        program.kill()
        self._died(life, began_s)

    def revive(self, program: Program, *, is_awaited: bool = True) -> None:
        """Start it again and wait until it is ready."""
        program.spawn()
        self._wanted[program.name] = program
        if is_awaited:
            program.wait_ready()

    def end(self, program: Program) -> None:
        """End one of ours in order."""
        self._wanted.pop(program.name, None)
        life = program.life
        program.stop()
        self.deaths[life] = time.monotonic()

    def preserve(self, to: Path) -> None:
        """Copy logs and journals."""
        shutil.copytree(self.directory, to, ignore=shutil.ignore_patterns("data", "appendonlydir"), dirs_exist_ok=True)

    def until(self, is_so: Callable[[], bool], what: str, *, within_s: float = 30.0) -> None:
        """Wait for a condition. Raises ServiceError after the deadline."""
        deadline_s = time.monotonic() + within_s
        while not is_so():
            if time.monotonic() > deadline_s:
                raise ServiceError(f"not within {within_s:.0f} s: {what}")
            time.sleep(_WATCH_S)

    def flow(self, for_s: float) -> None:
        """Let the load run."""
        time.sleep(for_s)

    def now_s(self) -> float:
        """The monotonic clock."""
        return time.monotonic()

    def mono_s(self, wall_ms: float) -> float:
        """Turn a wall time into the monotonic clock's. Both are this machine's."""
        return wall_ms / 1000 - self._offset_s

    # What it is made of.

    @property
    def published(self) -> Path:
        """The producer's journal."""
        return self.directory / "producer.published"

    def _settings(self) -> Settings:
        return Settings(
            kafka=self._kafka_address(),
            redis=self._valkey_url("valkey"),
            cell="fault",
            topics=TopicSettings(partitions=PARTITIONS),
            retry=RetrySettings(base_ms=100, cap_ms=1_000),
            intake=IntakeSettings(session_timeout_ms=SESSION_MS),
            worker=WorkerSettings(lease_ms=LEASE_MS, drain_ms=10_000),
        )

    def _kafka_address(self) -> str:
        return f"127.0.0.1:{self.kafka.advertised_port}"

    def _valkey_url(self, proxy: str) -> str:
        port = self.proxies[proxy].port if proxy in self.proxies else self.valkey.port
        return f"redis://127.0.0.1:{port}/0"

    def _worker(self, name: str, host: Host) -> Worker:
        if host.has_proxy:
            self.proxies[name] = Proxy(self.valkey.port)
        # Fixed names: a process that is started again meets what the former one left.
        specs = [
            InstanceSpec(id=f"{name}-{n}", types=host.types, capacity={"slots": host.slots})
            for n in range(1, host.instances + 1)
        ]
        self._specs += specs
        fleet = self._written(f"{name}.json", msgspec.json.encode(specs))
        return Worker(self.directory, name, self._reached(name), fleet)

    def _reached(self, proxy: str) -> Path:
        """The settings of one who may have a proxy of its own."""
        if proxy not in self.proxies:
            return self.directory / "settings.toml"
        settings = msgspec.structs.replace(self.settings, redis=self._valkey_url(proxy))
        return self._written(f"{proxy}.toml", as_toml(settings).encode())

    def _written(self, name: str, content: bytes) -> Path:
        file = self.directory / name
        file.write_bytes(content)
        return file

    def _watch(self) -> None:
        while not self._is_over.wait(_WATCH_S):
            for program in list(self._wanted.values()):
                if not program.is_running and self._wanted.pop(program.name, None):
                    self._ended_by_itself(program)

    def _ended_by_itself(self, program: Program) -> None:
        self._died(program.life, time.monotonic() - _WATCH_S)
        if program.name not in self.mortal:
            self.unexpected.append(f"{program.life} ended by itself; its log ends with\n{program.end_of_log()}")
        if not self._is_over.wait(_REVIVE_S):
            program.spawn()
            self._wanted[program.name] = program

    def _died(self, life: str, began_s: float) -> None:
        now_s = self.deaths[life] = time.monotonic()
        self.disturbances.append(Disturbance("lost", f"{life} died", began_s, now_s, life))


@contextlib.contextmanager
def fleet(layout: Layout) -> Generator[Fleet]:
    """Put up a system under load until the block is left."""
    home = Path(tempfile.mkdtemp(prefix="taskyard-fault-"))
    made = Fleet(home, layout)
    try:
        made.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)


def _blocked(published: Sequence[Published], runs: Sequence[Run]) -> list[Disturbance]:
    """A handler that blocks its process's event loop keeps it from renewing its leases."""
    blocking = {task.task_id for task in published if task.how == "block"}
    return [
        Disturbance("lost", "blocked", run.started_s, run.ended_s, run.process)
        for run in runs
        if run.task_id in blocking
    ]
