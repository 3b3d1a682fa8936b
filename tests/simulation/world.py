"""The world of one seed: the real dispatchers and workers as processes on virtual time, and what may befall them."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from msgspec import structs

from taskyard.dispatcher.service import Dispatcher
from taskyard.schemas.codec import codec_of
from taskyard.schemas.topics import topics
from taskyard.workers.worker import Worker
from tests.simulation.broker import Broker
from tests.simulation.clients import SimClients
from tests.simulation.handlers import Handlers, Run
from tests.simulation.ledger import Ledger
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Network
from tests.simulation.process import NOWHERE, Process
from tests.simulation.server import Server, client
from tests.simulation.trace import Trace
from tests.simulation.workload import Crew, Publication, Scene

_LEASE_MS = 1_500
_SESSION_CHECK_S = 0.25
# Rounds of cancelling in which a dead process must be gone; it gets no answer from anybody meanwhile.
_ROUNDS = 200


class Violation(Exception):
    """A promise that was broken. The first one of a run ends it."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


class Running:
    """One life of a process. stop: ask it to stop in good order."""

    def __init__(self, process: Process, task: asyncio.Task[None], stop: Callable[[], None]) -> None:
        self.process = process
        self.task = task
        self.stop = stop
        self.is_stopping = False
        self.handlers: Handlers | None = None


class World:
    """Everything of one run. names: of processes, as the scene has them; each may have several lives."""

    def __init__(self, loop: VirtualLoop, scene: Scene, trace: Trace) -> None:
        self.loop = loop
        self.scene = scene
        self.trace = trace
        seed = str(scene.seed)
        self.network = Network(loop, seed)
        self.network.on_call = self._called
        loop.set_exception_handler(self._failed)
        self.broker = Broker(loop, seed, session_s=scene.settings.intake.session_timeout_ms / 1000)
        self.server = Server(loop, seed)
        self.ledger = Ledger(lambda: self.server.twin.state, self.broker, loop.time, self.violated)
        self.server.on_executed = self.ledger.executed
        self.broken: asyncio.Future[None] = loop.create_future()
        self.runs: list[Run] = []
        self.living: dict[str, Running] = {}
        self.lives: Counter[str] = Counter()
        # Worker -> the instances of its last life.
        self.present: dict[str, frozenset[str]] = {}
        self.doubled: set[str] = set()
        self.processes: list[Process] = []
        self.befallen: Counter[str] = Counter()
        self.published: set[str] = set()
        self.unpublished = len(scene.publications)
        self.poison: set[tuple[str, int, int]] = set()
        # Tasks whose records were deleted with their topic before they were applied.
        self.deleted: set[str] = set()
        # Tasks whose records were deleted at all: a cell that goes back cannot be told of them again.
        self.vanished: set[str] = set()
        # Processes that have stopped in good order, and whose a lease's owner is.
        self.stopped: set[Process] = set()
        self.owners: dict[str, Process] = {}
        self.is_rolling_back = False
        self.is_ending = False
        # When something was last wrong.
        self.disturbed_s = 0.0
        loop.on_move = self._moving
        self.crews = {crew.name: crew for crew in scene.crews}
        self.slowness: defaultdict[str, float] = defaultdict(lambda: 1.0)
        self.topics = topics(scene.settings.prefix)
        for topic in self.topics.names:
            self.broker.create(topic, scene.settings.topics.partitions)
        self._expire()

    def _called(self, process: Process, call: str, told: Any, end: object) -> None:
        self.trace.call(process, call, told, end)
        if call == "lease":
            self.owners[told[0][1]] = process

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something failed that nobody awaits: the world's own machinery, or a task that was forgotten."""
        self.trace.error(context.get("exception"))
        self.violated("no error is lost", f"{context['message']}: {context.get('exception')!r}")

    def violated(self, invariant: str, what: str) -> None:
        """Note the first broken promise; the run ends with it."""
        if not self.broken.done():
            self.trace.note("!", invariant, what)
            self.broken.set_exception(Violation(invariant, what))

    def _expire(self) -> None:
        self.broker.expire_sessions()
        self.loop.call_later(_SESSION_CHECK_S, self._expire, context=NOWHERE)

    # Processes.

    def start(self, name: str) -> None:
        """Begin a new life of a process, unless it lives or all are to end."""
        if name in self.living or self.is_ending:
            return
        self.lives[name] += 1
        life = name if self.lives[name] == 1 else f"{name}#{self.lives[name]}"
        process = Process(life, "worker" if name in self.crews else "dispatcher", str(self.scene.seed))
        process.log = self.trace.note
        self.processes.append(process)
        made = process.context.run(self._made, name, process)
        made.task.add_done_callback(lambda task: self._ended(made, task), context=NOWHERE)
        self.living[name] = made
        self.trace.note("world", "start", life)

    def _made(self, name: str, process: Process) -> Running:
        if name in self.crews:
            return self._worker(self.crews[name], process)
        dispatcher = Dispatcher(self.scene.settings, SimClients(process, self.network, self.broker, self.server))
        task = self.loop.create_task(dispatcher.serve(), name=name)
        return Running(process, task, dispatcher.stopping.set)

    def _worker(self, crew: Crew, process: Process) -> Running:
        handlers = Handlers(process, self._told)
        handlers.slowness = self.slowness[crew.name]
        specs = crew.specs
        if self.scene.has_new_ids and self.lives[crew.name] > 1:
            specs = tuple(structs.replace(spec, id=f"{spec.id}.{self.lives[crew.name]}") for spec in specs)
        self.present[crew.name] = frozenset(spec.id for spec in specs)
        worker = Worker(
            handlers.by_type(), instances=specs, lease_ms=_LEASE_MS, drain_s=0.5,
            cells=lambda: client(process, self.network, self.server),
        )  # fmt: skip
        running = Running(process, self.loop.create_task(worker.run(), name=crew.name), worker.stop)
        running.handlers = handlers
        return running

    def _told(self, run: Run) -> None:
        self.runs.append(run)
        self.trace.note(run.process, f"handler {run.how}", (run.instance, run.task_id, run.attempt))

    def _ended(self, made: Running, task: asyncio.Task[None]) -> None:
        self.living = {name: running for name, running in self.living.items() if running is not made}
        if made.process.is_dead:
            return
        error = None if task.cancelled() else task.exception()
        self.trace.note("world", "ended", made.process.name)
        self.stopped.add(made.process)
        made.process.has_ended = True
        if error is not None or not made.is_stopping:
            self.trace.error(error)
            self.violated("a process lives until it is stopped", f"{made.process.name} ended with {error!r}")

    def crash(self, name: str) -> None:
        """Kill a process: from now on nothing it does has an effect."""
        running = self.living.pop(name, None)
        if running is None:
            return
        process = running.process
        self.trace.note("world", "crash", process.name)
        process.is_dead = True
        if process.frozen is not None:
            self.loop.thaw(process)
        self._bury(process, _ROUNDS)

    def _bury(self, process: Process, rounds: int) -> None:
        for task in list(process.tasks):
            task.cancel()
        if process.tasks and rounds:
            self.loop.call_soon(self._bury, process, rounds - 1, context=NOWHERE)
        elif process.tasks:
            names = [task.get_name() for task in process.tasks]
            self.violated("a cancelled process ends", f"{process.name} goes on: {names}")

    def stop(self, name: str) -> None:
        """Ask a process to stop in good order."""
        running = self.living.get(name)
        if running is not None and not running.is_stopping:
            self.trace.note("world", "stop", running.process.name)
            running.is_stopping = True
            running.process.context.copy().run(running.stop)

    def pause(self, name: str, for_s: float) -> None:
        """Let a process stand still, as SIGSTOP does."""
        running = self.living.get(name)
        if running is None or running.process.frozen is not None:
            return
        process = running.process
        self.trace.note("world", "pause", (process.name, round(for_s, 3)))
        self.loop.freeze(process)
        self.loop.call_later(for_s, self._resume, process, context=NOWHERE)

    def _resume(self, process: Process) -> None:
        if process.frozen is not None and not process.is_dead:
            self.trace.note("world", "resume", process.name)
            self.loop.thaw(process)

    def double(self, name: str, for_s: float) -> None:
        """Let a process stand still, and another begin in its place; then both go on, until all is healed."""
        running = self.living.get(name)
        if running is None or running.is_stopping or running.process.frozen is not None or f"{name}~" in self.living:
            return
        self.doubled.add(name)
        self.living[f"{name}~"] = self.living.pop(name)
        self.pause(f"{name}~", for_s)
        self.loop.call_later(0.2, self.start, name, context=NOWHERE)

    async def gone(self) -> None:
        """Wait until no process lives."""
        while self.living:
            await asyncio.wait([running.task for running in self.living.values()])

    def close(self) -> None:
        """Kill what is left."""
        for name in list(self.living):
            self.crash(name)

    async def gone_for_good(self) -> None:
        """Wait until nothing of any process runs, the dead ones' clean-up included."""
        for _ in range(_ROUNDS):
            if not any(process.tasks for process in self.processes):
                return
            await asyncio.sleep(0)

    # What befalls it.

    def publish(self, one: Publication) -> None:
        """Append a record, as a service does; if Kafka is away, later."""
        if self.broker.is_down:
            self.loop.call_later(0.2, self.publish, one, context=NOWHERE)
            return
        name = self.topics.tasks[one.priority]
        partition = int(one.partition * len(self.broker.topics[name].logs))
        offset = self.broker.append(name, partition, one.value, headers=one.headers)
        self.trace.note("service", "publish", (name, partition, offset, one.task_id))
        self.unpublished -= 1
        if one.task_id:
            self.published.add(one.task_id)
        else:
            self.poison.add((name, partition, offset))

    def recreate(self, name: str) -> None:
        """Delete a topic and create it anew. What was not applied is lost, by whoever did that."""
        topic = self.broker.topics[name]
        for partition, log in enumerate(topic.logs):
            stand = self.server.twin.state.applied.get(f"{topic.id}:{partition}", 0)
            old, unapplied = ({record.value for record in rows} for rows in (log, log[stand:]))
            self.vanished |= {one.task_id for one in self.scene.publications if one.value in old}
            self.deleted |= {one.task_id for one in self.scene.publications if one.value in unapplied}
            self.poison -= {(name, partition, record.offset) for record in log}
        self.broker.create(name, len(topic.logs))

    def restart_when_gone(self, name: str, after_s: float) -> None:
        """Begin a new life some time after the end of the present one."""
        running = self.living.get(name)
        if running is None:
            return
        running.task.add_done_callback(
            lambda _: self.loop.call_later(after_s, self.start, name, context=NOWHERE), context=NOWHERE
        )

    def set_slowness(self, name: str, times: float) -> None:
        """Let the handlers of a worker take so many times as long."""
        self.slowness[name] = times
        running = self.living.get(name)
        if running is not None and running.handlers is not None:
            running.handlers.slowness = times

    def cell_up(self) -> None:
        """Start the cell's server again, with what it had."""
        if self.server.is_down and not self.is_rolling_back:
            self.server.restart("")

    def roll_back(self, snapshot: str) -> None:
        """Start the cell's server again, with what it had some time ago."""
        to_s = self.server.restart(snapshot)
        self.is_rolling_back = False
        self.trace.note("world", "rolled back", round(to_s, 3))
        self.stopped.clear()  # the leases that they gave back may be there again, until they run out
        self.ledger.rolled_back(to_s)

    def lose_cell(self) -> None:
        """Start the cell's server again, with nothing."""
        self.server.restart_empty()
        self.is_rolling_back = False
        self.trace.note("world", "lost the cell")
        self.ledger.lost({codec_of(value).decode_outcome(value).id for value in self.values(self.topics.results)})

    def values(self, topic: str) -> list[bytes]:
        """What a topic of ours has."""
        return [record.value for log in self.broker.topics[topic].logs for record in log if record.value is not None]

    def cell_roomy(self) -> None:
        """Let the cell's server have memory again."""
        self.server.is_full = False

    def kafka_up(self) -> None:
        """Let Kafka answer again."""
        self.broker.is_down = False

    def stop_all(self) -> None:
        """Ask every process to stop; none begins any more."""
        self.is_ending = True
        for name in list(self.living):
            self.stop(name)

    def heal(self) -> None:
        """End all faults: from now on everything works, and every process lives."""
        self.network.heal()
        self.broker.is_down = self.server.is_full = False
        self.cell_up()
        self.trace.note("world", "healed")
        for name in [name for name in self.living if name.endswith("~")]:
            self.crash(name)
        for name in (*self.scene.dispatchers, *self.crews):
            self.set_slowness(name, 1.0)
            running = self.living.get(name)
            if running is not None:
                self._resume(running.process)
            self.start(name)

    # What is left to do.

    def _moving(self, to_s: float) -> None:
        # Whatever is wrong is so until then. Who asks `is_calm` from time to time misses what is over by then.
        if not self.is_calm:
            self.disturbed_s = to_s

    @property
    def is_calm(self) -> bool:
        """Whether nothing is wrong at this moment."""
        is_served = not (self.server.is_down or self.server.is_full or self.broker.is_down or self.is_rolling_back)
        is_there = len(self.living) == len(self.scene.dispatchers) + len(self.crews)
        is_moving = all(running.process.frozen is None for running in self.living.values())
        return is_served and is_there and is_moving and self.network.is_quiet and not self.is_ending

    @property
    def is_done(self) -> bool:
        """Whether everything has drained, and everybody is there."""
        is_empty = not self.ledger.sight.spots and not self.server.twin.state.outbox.items
        is_there = len(self.living) == len(self.scene.dispatchers) + len(self.crews)
        return is_empty and is_there and not self.unapplied() and not self.unpublished

    def unapplied(self) -> dict[str, tuple[int, int]]:
        """Partitions of the tasks' topics whose end is not applied: (applied, end)."""
        applied: dict[str, int] = self.server.twin.state.applied
        found: dict[str, tuple[int, int]] = {}
        for name in self.topics.tasks.values():
            topic = self.broker.topics[name]
            for partition, log in enumerate(topic.logs):
                stand = applied.get(f"{topic.id}:{partition}", 0)
                if stand != len(log):
                    found[f"{name}-{partition}"] = stand, len(log)
        return found

    def left(self) -> str:
        """Say what has not drained."""
        spots = [f"{name} {spot.state} {spot.at}" for name, spot in self.ledger.sight.spots.items()]
        outbox = len(self.server.twin.state.outbox.items)
        return f"not applied {self.unapplied()}, in the cell {spots}, outbox {outbox}, living {sorted(self.living)}"
