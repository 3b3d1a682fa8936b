"""Kafka and Valkey for a run: given ones, or embedded ones that are started again when they die."""

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from taskyard.compose import embedded
from taskyard.compose.process import Server, ServiceError
from taskyard.dispatcher.cli.configure import Configured, shown
from taskyard.dispatcher.settings import Settings

_WATCH_S = 0.2
_RESTART_S = 0.5


class Stand(NamedTuple):
    """Where a run takes place. servers: those that are ours to keep running. directory: for the run's files, ours."""

    settings: Settings
    servers: tuple[Server, ...]
    directory: Path

    async def watch(self, tell: Callable[[str], None], deaths: list[str]) -> None:
        """Start embedded servers again when they die, for ever."""
        while True:
            for server in self.servers:
                if not server.is_running:
                    deaths.append(f"{server.name} ended; started again on the same data")
                    tell(f"{server.name} has ended; starting it again on the same data")
                    await asyncio.sleep(_RESTART_S)
                    with contextlib.suppress(ServiceError):
                        await asyncio.to_thread(server.start)
                        tell(f"{server.name} is back (pid {server.pid})")
            await asyncio.sleep(_WATCH_S)


@contextlib.contextmanager
def stand(found: Configured, name: str, on_progress: Callable[[str], None]) -> Generator[Stand]:
    """Use the services that the settings name, start the others, until the block is left.

    name: of the cell, and with a dot the topics' prefix, where the settings name none: a run of ours must not feed
    the agents of a cell that is in use.
    Raises ServiceError if one cannot be had.
    """
    names = {"cell": name, "prefix": f"{name}."}
    changes = {path: value for path, value in names.items() if found.origins[path] == "default"}
    for path in ("kafka", "redis"):
        if found.origins[path] != "default":
            value = shown(path, getattr(found.settings, path))
            on_progress(f"using {path} at {value}, named by {found.origins[path]}")
    with contextlib.ExitStack() as stack:
        servers = _missing(stack, found.origins, on_progress)
        for path, server in servers.items():
            changes[path] = server.address if isinstance(server, embedded.Kafka) else server.url
        directory = stack.enter_context(_directory(servers))
        yield Stand(msgspec.structs.replace(found.settings, **changes), tuple(servers.values()), directory)


def _missing(
    stack: contextlib.ExitStack, origins: Mapping[str, str], on_progress: Callable[[str], None]
) -> dict[str, embedded.Kafka | embedded.Valkey]:
    is_missing = {path: origins[path] == "default" for path in ("kafka", "redis")}
    if all(is_missing.values()):
        both = stack.enter_context(embedded.start(on_progress=on_progress))
        return {"kafka": both.kafka_server, "redis": both.redis_server}
    if is_missing["kafka"]:
        on_progress("starting Kafka…")
        return {"kafka": stack.enter_context(embedded.start_kafka(on_progress=on_progress))}
    if is_missing["redis"]:
        on_progress("starting Valkey…")
        return {"redis": stack.enter_context(embedded.start_valkey())}
    return {}


@contextlib.contextmanager
def _directory(servers: Mapping[str, Server]) -> Generator[Path]:
    """A folder for logs and settings: beside the servers' data, which is swept even after a kill, else a temporary."""
    for server in servers.values():
        home = server.directory.parent / "run"
        home.mkdir()
        yield home
        return
    with tempfile.TemporaryDirectory(prefix="taskyard-run-") as home:
        yield Path(home)
