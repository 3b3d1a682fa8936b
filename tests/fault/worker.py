"""A worker process of a run: hosts instances whose handlers write down when an attempt starts and how it ends.

Run as `python -m tests.fault.worker SETTINGS FLEET JOURNAL`: a settings file, a JSON list of instances, and the path of
the journal without its process id.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

import msgspec

from taskyard.dispatcher.cli import logs
from taskyard.dispatcher.cli.configure import configure
from taskyard.dispatcher.cli.loop import run
from taskyard.dispatcher.settings import Settings
from taskyard.workers.context import Context
from taskyard.workers.instance import InstanceSpec
from taskyard.workers.worker import Worker
from tests.fault.journal import Journal


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """The payload. ms: how long the attempt takes. how: `exit` ends the process, `block` blocks its event loop,
    `endless` never ends."""

    ms: int = 0
    how: str = "sleep"


class Handlers:
    """One function for every agent type."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def work(self, order: Order, context: Context) -> None:
        """Do as the task says, and write it down."""
        name = (context.task.id, context.attempt, context.instance)
        self._journal.note("s", *name)
        try:
            await _obey(order)
        except asyncio.CancelledError:
            self._journal.note("c", *name)
            raise
        except BaseException:
            self._journal.note("x", *name)
            raise
        self._journal.note("r", *name)


async def _obey(order: Order) -> None:
    match order.how:
        case "exit":
            os._exit(7)
        case "block":
            time.sleep(order.ms / 1000)  # noqa: ASYNC251 - the fault
        case "endless":
            await asyncio.Event().wait()
        case _:
            await asyncio.sleep(order.ms / 1000)


async def _work(settings: Settings, specs: list[InstanceSpec], handlers: Handlers) -> None:
    types = {agent_type for spec in specs for agent_type in spec.types}
    await Worker(
        dict.fromkeys(sorted(types), handlers.work),
        redis=settings.redis,
        cell=settings.cell,
        instances=specs,
        lease_ms=settings.worker.lease_ms,
        drain_s=settings.worker.drain_ms / 1000,
    ).run()


def main(settings_file: Path, fleet_file: Path, journal: Path) -> None:
    """Run the instances until SIGTERM."""
    settings = configure(file=settings_file, environment={}).settings
    logs.configure(settings.log)
    specs = msgspec.json.decode(fleet_file.read_bytes(), type=list[InstanceSpec])
    file = journal.with_name(f"{journal.name}.{os.getpid()}.runs")
    run(_work(settings, specs, Handlers(Journal(file))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
