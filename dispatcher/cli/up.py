"""`taskyard up`: Kafka and Valkey for development."""

import asyncio
import shlex
import time
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.markup import escape

from taskyard.compose import embedded
from taskyard.dispatcher.cli.flags import NONE, Common, settings_of
from taskyard.dispatcher.cli.terminal import err, fail, out, warn
from taskyard.dispatcher.kafka import topics as kafka
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.errors import ConfigError
from taskyard.schemas.topics import topics

_WATCH_S = 0.5


def up(
    *,
    data: Annotated[Path, Parameter(show_default=True, help="where both keep their data")] = Path(".taskyard"),
    kafka_port: Annotated[int, Parameter(show_default=True, help="port of Kafka; 0 takes a free one")] = 9092,
    redis_port: Annotated[int, Parameter(show_default=True, help="port of Valkey; 0 takes a free one")] = 6379,
    common: Common = NONE,
) -> int:
    """Run real Kafka and Valkey for development, on 127.0.0.1 only, until Ctrl-C or SIGTERM.

    The topics are created. The data is kept and used again by the next start.
    """
    if common.kafka is not None or common.redis is not None:
        raise ConfigError("`taskyard up` starts servers of its own: --kafka-port and --redis-port say where")
    settings = settings_of(common)
    progress = err()
    with embedded.start(
        data,
        kafka_port=kafka_port,
        redis_port=redis_port,
        on_progress=lambda line: progress.print(f"[dim]{escape(line)}[/]"),
    ) as services:
        asyncio.run(_create(services.kafka, settings))
        _show(services, settings)
        return _until_told(services)


async def _create(bootstrap: str, settings: Settings) -> None:
    wanted = msgspec.structs.replace(settings.topics, create=True, replication=1)
    for fault in await kafka.check_topics(bootstrap, topics(settings.prefix), wanted):
        warn(f"topic {fault.topic} {fault.what}")


def _show(services: embedded.Services, settings: Settings) -> None:
    names = topics(settings.prefix).names
    taken: dict[str, str] = {}
    if services.kafka != Settings().kafka:
        taken["TASKYARD_KAFKA"] = services.kafka
    if services.redis != Settings().redis:
        taken["TASKYARD_REDIS"] = services.redis
    if settings.prefix:
        taken["TASKYARD_PREFIX"] = settings.prefix
    exports = "".join(f"  export {name}={shlex.quote(value)}\n" for name, value in taken.items())
    out().print(
        f"[bold]Kafka[/]   {services.kafka}, topics {escape(', '.join(names))}\n"
        f"[bold]Valkey[/]  {services.redis}\n"
        f"[bold]Data[/]    {escape(str(services.directory))}\n\n"
        f"In other terminals:\n{escape(exports)}"
        "  taskyard dispatcher\n"
        "  taskyard worker taskyard.compose.example_handlers:handlers\n"
        """  taskyard publish --type summarise --payload '{"text": "to be counted"}'\n"""
        "  taskyard status\n\n"
        "Ctrl-C stops both; the data stays.",
        soft_wrap=True,
    )


def _until_told(services: embedded.Services) -> int:
    """Wait for Ctrl-C or SIGTERM (which `embedded` turns into SystemExit), the ways to end this; or for a death."""
    servers = (services.kafka_server, services.redis_server)
    try:
        while all(server.is_running for server in servers):
            time.sleep(_WATCH_S)
    except (KeyboardInterrupt, SystemExit):
        err().print("[dim]stopping Kafka and Valkey…[/]")
        return 0
    for server in servers:
        if not server.is_running:
            fail(f"{server.name} has ended by itself; its log: {server.log}")
    return 1
