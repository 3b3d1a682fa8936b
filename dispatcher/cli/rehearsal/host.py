"""A worker process of a run: hosts the instances that a file lists, with handlers that take as long as a task says.

Run as `python -m taskyard.dispatcher.cli.rehearsal.host SETTINGS FLEET`: a settings file and a JSON list of instances.
"""

import asyncio
import sys
from pathlib import Path

import msgspec

from taskyard.dispatcher.cli import logs
from taskyard.dispatcher.cli.configure import configure
from taskyard.dispatcher.cli.loop import run
from taskyard.dispatcher.settings import Settings
from taskyard.workers.errors import GiveUp
from taskyard.workers.instance import InstanceSpec
from taskyard.workers.worker import Worker


class Work(msgspec.Struct, frozen=True, omit_defaults=True):
    """The payload of a run's tasks. seconds: how long an attempt takes. fails: it ends as a failure."""

    seconds: float = 0.0
    fails: bool = False


async def work(order: Work) -> None:
    """Hold the slot for as long as the task says, as an agent that waits for a model."""
    await asyncio.sleep(order.seconds)
    if order.fails:
        raise GiveUp("failed in the recording")


def host(settings_file: Path, fleet_file: Path) -> None:
    """Run the instances until SIGTERM."""
    settings = configure(file=settings_file, environment={}).settings
    logs.configure(settings.log)
    run(_work(settings, msgspec.json.decode(fleet_file.read_bytes(), type=list[InstanceSpec])))


async def _work(settings: Settings, specs: list[InstanceSpec]) -> None:
    types = {agent_type for spec in specs for agent_type in spec.types}
    await Worker(
        dict.fromkeys(sorted(types), work),
        redis=settings.redis,
        cell=settings.cell,
        instances=specs,
        lease_ms=settings.worker.lease_ms,
        drain_s=settings.worker.drain_ms / 1000,
    ).run()


if __name__ == "__main__":
    host(Path(sys.argv[1]), Path(sys.argv[2]))
