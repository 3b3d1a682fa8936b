"""`taskyard worker`: instances with the user's handlers, until they are told to stop."""

from typing import Annotated

import structlog
from cyclopts import Parameter

from taskyard.dispatcher.cli import logs
from taskyard.dispatcher.cli.flags import NONE, Common, configured, setting
from taskyard.dispatcher.cli.handlers import Handlers, load
from taskyard.dispatcher.cli.loop import run
from taskyard.dispatcher.cli.pairs import pairs
from taskyard.dispatcher.settings import Settings
from taskyard.workers.instance import InstanceSpec
from taskyard.workers.worker import Worker, default_ids


def worker(
    handlers: Annotated[str, Parameter(help="module:name of a mapping of agent types to functions")],
    /,
    *,
    slots: Annotated[str | None, setting("worker.slots", "--slots")] = None,
    instances: Annotated[str | None, setting("worker.instances", "--instances")] = None,
    type: Annotated[  # noqa: A002 - what it is called everywhere
        tuple[str, ...], Parameter(name="--type", help="serve only this agent type; may be repeated (default: all)")
    ] = (),
    label: Annotated[
        tuple[str, ...], Parameter(name="--label", metavar="NAME=VALUE", help="tasks may ask for it; may be repeated")
    ] = (),
    capacity: Annotated[
        tuple[str, ...],
        Parameter(name="--capacity", metavar="NAME=UNITS", help="of each instance, such as gpu=1; may be repeated"),
    ] = (),
    log_level: Annotated[str | None, setting("log.level", "--log-level")] = None,
    log_format: Annotated[str | None, setting("log.format", "--log-format")] = None,
    common: Common = NONE,
) -> None:
    """Run one or more instances with your handlers; the working directory is searched for their module.

    SIGTERM ends it in order: what runs is finished, what has not started goes to other instances.
    """
    found = configured(
        common,
        {
            "worker.slots": ("--slots", slots),
            "worker.instances": ("--instances", instances),
            "log.level": ("--log-level", log_level),
            "log.format": ("--log-format", log_format),
        },
    )
    labels = pairs("--label", label, str, "as in region=eu")
    units = pairs("--capacity", capacity, int, "as in gpu=1, with a whole number")
    loaded = load(handlers, only=type)
    logs.configure(found.settings.log)
    for warning in found.warnings:
        structlog.get_logger(__name__).warning("odd_setting", detail=warning)
    run(_work(loaded, found.settings, labels, units))


async def _work(handlers: Handlers, settings: Settings, labels: dict[str, str], units: dict[str, int]) -> None:
    mine = settings.worker
    offered = {"slots": mine.slots, **units}
    specs = [
        InstanceSpec(id=name, types=tuple(handlers), capacity=offered, labels=labels)
        for name in default_ids(mine.instances)
    ]
    await Worker(
        handlers,
        redis=settings.redis,
        cell=settings.cell,
        instances=specs,
        lease_ms=mine.lease_ms,
        drain_s=mine.drain_ms / 1000,
        threads=mine.threads,
    ).run()
