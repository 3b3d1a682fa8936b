"""The worker process: hosts instances, runs their tasks, and stops in good order."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import WorkerCell
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.schemas.errors import ConfigError, SchemaError
from taskyard.schemas.limits import check_labels, check_name, check_units
from taskyard.workers.drain import Drain
from taskyard.workers.handler import inspect_handlers
from taskyard.workers.instance import Instance, InstanceSpec
from taskyard.workers.keeper import Keeper
from taskyard.workers.lifecycle import WORKER, Lifecycle, State
from taskyard.workers.link import Link
from taskyard.workers.pulse import Pulse
from taskyard.workers.reader import MAX_INSTANCES, Reader
from taskyard.workers.runner import Runner
from taskyard.workers.threads import Threads

log = logging.getLogger("taskyard.worker")

_MIN_LEASE_MS = 500
_AGAIN_S = 0.05
_GRACE_S = 5.0  # for loops and handlers to end once they are cancelled


class Worker:
    """One process that runs tasks on one or many instances. For one `run` only.

    handlers: agent type -> function of the payload, async or sync. The first parameter is decoded to its annotated
    type; a parameter annotated `Context` gets the attempt's context. The return value is the task's result; `Retry` and
    `GiveUp` end the attempt otherwise. A sync handler runs in a thread, which nothing can stop: one that has timed out
    keeps its thread, and so its slot in this process, until it returns.
    redis, cell: where the live state is. instances: how many, each with `slots`, or what each of them offers.
    lease_ms: silent for longer, an instance is evicted and its tasks run elsewhere. drain_s: how long running tasks may
    go on after a stop. threads: for sync handlers; 0: one for each slot.
    cells: makes the clients of the cell, instead of those of `redis`; each does one blocking read at a time.
    Raises ConfigError with every fault at once.
    """

    def __init__(  # noqa: PLR0913 - what can be set; all but the handlers have a default
        self,
        handlers: Mapping[str, Callable[..., Any]],
        *,
        redis: str = "redis://127.0.0.1:6379/0",
        cell: str = "main",
        instances: int | Sequence[InstanceSpec] = 1,
        slots: int = 8,
        lease_ms: int = 10_000,
        drain_s: float = 30.0,
        threads: int = 0,
        cells: Callable[[], WorkerCell] | None = None,
    ) -> None:
        checked, faults = inspect_handlers(handlers)
        specs = _specs(instances, slots, tuple(handlers))
        faults += _faults(specs, set(handlers))
        if lease_ms < _MIN_LEASE_MS:
            faults.append(f"lease_ms is {lease_ms}, at least {_MIN_LEASE_MS}")
        try:
            self._connection = Connection(redis, cell)
        except ValueError as error:
            faults.append(f"redis: {error}")
        if faults:
            raise ConfigError("a worker that cannot start:\n" + "\n".join(f"- {fault}" for fault in faults))
        self._cells = cells or partial(RedisCell, self._connection)
        self._drain_s = drain_s
        self._life = Lifecycle(WORKER)
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._started = asyncio.Event()
        self._compose(
            specs, Runner(checked, Threads(threads or sum(spec.capacity["slots"] for spec in specs))), lease_ms
        )

    def _compose(self, specs: Sequence[InstanceSpec], runner: Runner, lease_ms: int) -> None:
        cell, link = self._cells(), Link()
        self._instances = [Instance(spec) for spec in specs]
        self._runner = runner
        self._keeper = Keeper(cell, link, lease_ms)
        self._pulse = Pulse(cell, link, self._instances, lease_ms)
        groups = [self._instances[i : i + MAX_INSTANCES] for i in range(0, len(self._instances), MAX_INSTANCES)]
        # A cell object for each reader: it does one blocking read at a time.
        self._readers = [Reader(self._cells(), link, group, runner) for group in groups]
        self._drain = Drain(self._instances, self._readers, self._keeper, runner)

    @property
    def state(self) -> State:
        """Where the process stands in its lifecycle."""
        return self._life.state

    @property
    def instances(self) -> tuple[InstanceSpec, ...]:
        """What the instances offer, with their ids."""
        return tuple(instance.spec for instance in self._instances)

    async def started(self) -> None:
        """Wait until every instance has been registered."""
        await self._started.wait()

    def stop(self) -> None:
        """Stop in good order; `run` returns when that is done. A second call skips the wait for running tasks.

        SIGTERM and SIGINT do the same. Call it on the event loop.
        """
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def run(self) -> None:
        """Run tasks until stopped. Cancelled, it stops at once: what runs is cancelled and given to others."""
        try:
            with _on_signals(self.stop):
                async with asyncio.TaskGroup() as group:
                    await self._run(group)
        finally:
            await self._runner.close(_GRACE_S)
            await self._connection.close()
            log.info("worker_stopped")

    async def _run(self, group: asyncio.TaskGroup) -> None:
        keepers = [
            group.create_task(self._keeper.keep(instance), name=f"keep-{instance.spec.id}")
            for instance in self._instances
        ]
        readers = [group.create_task(reader.run(), name=f"read-{i}") for i, reader in enumerate(self._readers)]
        pulse = group.create_task(self._pulse.run(), name="beat")
        start = group.create_task(self._start(), name="start")
        try:
            await self._stopping.wait()
        except asyncio.CancelledError:
            self._hurry.set()
            raise
        finally:
            self._life.move("draining")
            log.info("worker_draining", extra={"at_most_s": self._drain_s})
            await _end(start, *readers)
            await self._drain.run(drain_s=self._drain_s, hurry=self._hurry)
            # Those whose instance has left end by themselves; the others wait for a cell that does not answer.
            await asyncio.wait(keepers, timeout=_GRACE_S)
            await _end(pulse, *keepers)
            self._life.move("stopped")

    async def _start(self) -> None:
        for instance in self._instances:
            await instance.registered.wait()
        self._life.move("running")
        log.info("worker_running", extra={"instances": len(self._instances)})
        self._started.set()


async def _end(*tasks: asyncio.Task[None]) -> None:
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        # Again, because one cancellation may be lost (see Link.once) and a read blocks for long.
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)


@contextlib.contextmanager
def _on_signals(stop: Callable[[], None]) -> Generator[None]:
    loop = asyncio.get_running_loop()
    taken: list[signal.Signals] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        # Not in a thread, not on Windows: who runs the worker there calls `stop`.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, stop)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


def default_ids(count: int) -> list[str]:
    """Name this process's instances: host, process, number. A process that is started again within a lease has other
    names, so that it need not wait until the former ones are evicted."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "host"
    return [f"{host}-{os.getpid()}-{i}" for i in range(count)]


def _specs(instances: int | Sequence[InstanceSpec], slots: int, types: tuple[str, ...]) -> list[InstanceSpec]:
    if isinstance(instances, int):
        return [InstanceSpec(id=name, types=types, capacity={"slots": slots}) for name in default_ids(instances)]
    return [spec if spec.types else msgspec.structs.replace(spec, types=types) for spec in instances]


def _faults(specs: Sequence[InstanceSpec], types: set[str]) -> list[str]:
    faults: list[str] = [] if specs else ["instances: at least one"]
    ids = [spec.id for spec in specs]
    faults += [f"instance {name}: its id occurs {ids.count(name)} times" for name in set(ids) if ids.count(name) > 1]
    for spec in specs:
        missing = sorted(set(spec.types) - types)
        if missing:
            faults.append(f"instance {spec.id}: no handler for {', '.join(missing)}")
        if "slots" not in spec.capacity:
            faults.append(f"instance {spec.id}: its capacity has no slots")
        try:
            check_name(spec.id, field="id")
            check_units(spec.capacity, field="capacity")
            check_labels(spec.labels, field="labels")
        except SchemaError as error:
            faults.append(f"instance {spec.id}: {error}")
    return faults
