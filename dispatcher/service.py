"""The dispatcher as a process: the only place where its parts are put together."""

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import Generator, Sequence
from typing import Protocol

import structlog

from taskyard.dispatcher.arrivals import Reader
from taskyard.dispatcher.audit import PAUSE_S as AUDIT_PAUSE_S
from taskyard.dispatcher.audit import AuditMetrics, Auditor
from taskyard.dispatcher.carry import Carry
from taskyard.dispatcher.clients import Clients, History, RealClients
from taskyard.dispatcher.core.fleet import Fleet
from taskyard.dispatcher.core.load import LeastAgentLoad
from taskyard.dispatcher.intake import Intake
from taskyard.dispatcher.lane import Lane
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.recovery import Recovery
from taskyard.dispatcher.relay import Relay
from taskyard.dispatcher.repeat import Step, repeat, until_done
from taskyard.dispatcher.settings import Settings
from taskyard.dispatcher.tick import Tick
from taskyard.dispatcher.watch import Watch
from taskyard.dispatcher.watermark import Watermark
from taskyard.dispatcher.web import Health, Web
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.limits import Limits
from taskyard.schemas.topics import topics

log = structlog.get_logger()

_BEAT_S = 0.5
_RELAY_IDLE_S = 0.02
_REPORT_S = 1.0
# How soon a lost cell is noticed, and whether a measured watermark may be stored is asked.
_RECOVERY_S = 0.5
_CARRY_S = 30.0
# For all duties together to give back what they hold.
_LAY_DOWN_S = 2.0
# A view of the fleet older than this is no ground to place on.
_STALE_VIEW_MS = 5_000


def consumer_group(cell: str, priority: str) -> str:
    """The group in which the dispatchers of a cell share one priority's partitions."""
    return f"taskyard.{cell}.{priority}"


def watermark_group(cell: str) -> str:
    """The group without members that keeps the unfinished watermark of a cell."""
    return f"taskyard.{cell}.unfinished"


async def run(settings: Settings) -> None:
    """Dispatch until SIGTERM or SIGINT, then end what was begun within `drain_ms`.

    Raises ConfigError if a setting cannot hold here. Waits for Kafka and Redis for as long as they are away.
    """
    await Dispatcher(settings).run()


class Duty(Protocol):
    """Something that one dispatcher of the cell does at a time, under a lease that `stop` gives back."""

    async def step(self) -> None: ...
    async def stop(self) -> None: ...


class Dispatcher:
    """One dispatcher. Its parts share one event loop; each mutable part has one owner."""

    def __init__(self, settings: Settings, clients: Clients | None = None) -> None:
        """Put the parts together. clients: those of the settings' addresses, unless others are given."""
        self.settings = settings
        self.stopping = asyncio.Event()
        self.health = Health()
        # 0 until `run` has bound it.
        self.http_port = 0
        self._name = secrets.token_hex(8)
        self.metrics = Metrics()
        self._clients: Clients = clients or RealClients(settings)
        self._cell = self._clients.cell
        self._view = self._clients.view
        self._fleet = Fleet(LeastAgentLoad())
        self._topics = topics(settings.prefix)
        self._lanes = [self._lane(priority, topic) for priority, topic in self._topics.tasks.items()]
        self._watch = Watch(self._view, self._fleet, self.metrics)
        self._recovery = Recovery(
            self._cell, self._history(), self._clients.producer(), settings, self.metrics, self._name, self.stopping
        )
        self._recovery.on_other_history = self._rewind
        self._duties = self._all_duties()

    def _all_duties(self) -> dict[str, tuple[Duty, float]]:
        """What one dispatcher of the cell does at a time, and the pause between two steps in seconds."""
        settings, clients, cell, metrics, name = self.settings, self._clients, self._cell, self.metrics, self._name
        watermark_s = min(_RECOVERY_S, settings.recovery.watermark_ms / 1000)
        tick = Tick(cell, self._view, self._fleet, settings, metrics, name)
        carry = Carry(cell, self._view, self._history(), clients.producer(), settings, metrics, name)
        auditor = Auditor(
            cell, clients.audit, AuditMetrics(metrics.registry), name,
            round_ms=settings.audit.round_ms, is_mending=settings.audit.mend,
        )  # fmt: skip
        return {
            "tick": (tick, settings.tick.period_ms / 1000),
            "relay": (Relay(cell, clients.producer(), self._topics, metrics, name), _RELAY_IDLE_S),
            "recovery": (self._recovery, _RECOVERY_S),
            "watermark": (Watermark(cell, self._view, self._history(), settings, metrics, name), watermark_s),
            "carry": (carry, _CARRY_S),
            "audit": (auditor, AUDIT_PAUSE_S),
        }

    def _rewind(self) -> None:
        log.warning("history_changed", name=self._name, next="workers tell what they run; Kafka is read again")
        for lane in self._lanes:
            lane.rewind()

    def _history(self) -> History:
        return self._clients.history(self._topics, watermark_group(self.settings.cell))

    def _lane(self, priority: str, topic: str) -> Lane:
        settings = self.settings
        limits = Limits(payload_bytes=settings.intake.payload_bytes)
        consumer = self._clients.consumer(topic, consumer_group(settings.cell, priority))
        reader = Reader(topic, priority, slack_ms=settings.slack_ms(), limits=limits)
        intake = Intake(consumer, reader, self._cell, self.metrics)
        return Lane(priority, intake, self._fleet, self._cell, settings.intake, self.metrics, self.stopping)

    async def run(self) -> None:
        """Start, serve until `stopping` is set, stop."""
        web = Web(self.settings.http.host, self.settings.http.port, self.health, self.metrics)
        self.http_port = web.port
        log.info("dispatcher_started", name=self._name, cell=self.settings.cell, http_port=web.port)
        try:
            with _signals(self.stopping):
                await self.serve()
        finally:
            web.stop()
            await self._clients.close()
            log.info("dispatcher_stopped", name=self._name)

    async def serve(self) -> None:
        """Serve until `stopping` is set, without HTTP and signals; the clients stay open."""
        async with asyncio.TaskGroup() as group:
            beat = group.create_task(self._beat(), name="beat")
            for part, step in (("cell", self._open), ("topics", self._check_topics), ("fleet", self._watch.step)):
                if not await self._until_done(part, step):
                    break
            else:
                await self._run_loops()
            beat.cancel()

    async def _run_loops(self) -> None:
        view_s = self.settings.tick.view_ms / 1000
        async with asyncio.TaskGroup() as group:
            loops = [
                *[group.create_task(self._run_lane(lane), name=f"lane {lane.priority}") for lane in self._lanes],
                group.create_task(self._repeat("watch", self._watch.step, view_s), name="watch"),
                *[
                    group.create_task(self._repeat(name, duty.step, pause_s), name=name)
                    for name, (duty, pause_s) in self._duties.items()
                ],
            ]
            group.create_task(self._end_by_deadline(loops), name="deadline")
        await self._lay_down()

    async def _lay_down(self) -> None:
        """Let all duties end at once, and in bounded time: what is not given back runs out."""
        stops = [asyncio.create_task(duty.stop(), name=f"stop {name}") for name, (duty, _) in self._duties.items()]
        _, late = await asyncio.wait(stops, timeout=_LAY_DOWN_S)
        for task in late:
            task.cancel()
        for end in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(end, Exception) and not isinstance(end, DependencyError):
                raise end

    async def _run_lane(self, lane: Lane) -> None:
        try:
            if await self._until_done(f"lane {lane.priority}", lane.start):
                async with asyncio.TaskGroup() as group:
                    report = self._repeat(f"report {lane.priority}", lane.report, _REPORT_S)
                    group.create_task(report, name=f"report {lane.priority}")
                    await self._repeat(f"lane {lane.priority}", lane.step)
        finally:
            await lane.stop()

    async def _repeat(self, name: str, step: Step, pause_s: float = 0) -> None:
        await repeat(name, step, stopping=self.stopping, metrics=self.metrics, pause_s=pause_s)

    async def _until_done(self, name: str, step: Step) -> bool:
        return await until_done(name, step, stopping=self.stopping, metrics=self.metrics)

    async def _end_by_deadline(self, loops: Sequence[asyncio.Task[None]]) -> None:
        """Once stopping: let each loop end its step; name and cancel what has not by the deadline."""
        await self.stopping.wait()
        log.info("dispatcher_draining", name=self._name)
        _, late = await asyncio.wait(loops, timeout=self.settings.drain_ms / 1000)
        for task in late:
            log.warning("loop_cut_off", loop=task.get_name(), next="its batch is applied or refused by the cell")
            task.cancel()

    async def _open(self) -> None:
        await self._cell.open(self.settings.cell_config())

    async def _check_topics(self) -> None:
        faults = await self._clients.check_topics(self._topics)
        missing = [fault.topic for fault in faults if fault.is_fatal]
        if missing:
            raise DependencyError(f"topics are missing: {', '.join(missing)}; create them, or set topics.create")
        for fault in faults:
            log.warning("topic_differs", topic=fault.topic, fault=fault.what)

    async def _beat(self) -> None:
        while True:
            now_s = time.monotonic()
            self.health.beat_s = now_s
            self.health.parts = {
                "cell": self._fleet.time_ms(now_s) - self._fleet.seen_ms < _STALE_VIEW_MS,
                "history": self._recovery.is_begun,
                "intake": all(lane.is_positioned for lane in self._lanes),
            }
            await asyncio.sleep(_BEAT_S)


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Generator[None]:
    """Set `stopping` on SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
