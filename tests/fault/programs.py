"""The processes of ours in a run, as servers that can be started, paused, killed and started again."""

import contextlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import tests.fault
from taskyard.compose.kafka import Kafka
from taskyard.compose.process import Server

# Where `tests` and `taskyard` are imported from; not resolved, so that a copy of the tree runs itself.
_ROOT = Path(next(iter(tests.fault.__path__))).parents[1]
_QUOTED_LINES = 15


class Broker(Kafka):
    """Kafka for a run of seconds: compiled once and quickly, which on few cores leaves more to everyone."""

    def environment(self) -> Mapping[str, str]:
        """Ours, with the option for the JRE."""
        return {**os.environ, "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1"}


class Program(Server):
    """A module of ours with this Python. life: `<name>.<pid>`, of the process that runs now."""

    ready_within_s = 60.0
    stop_within_s = 20.0

    def __init__(self, directory: Path, name: str, module: str, *arguments: object) -> None:
        super().__init__(directory / name, 0)
        self.name = name
        self._module = module
        self._arguments = [str(argument) for argument in arguments]

    def command(self) -> Sequence[str]:
        """Run the module."""
        return [sys.executable, "-m", self._module, *self._arguments]

    def environment(self) -> Mapping[str, str]:
        """Without settings of whoever runs the tests, and with the tree on the path."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("TASKYARD_")}
        return {**ours, "PYTHONPATH": str(_ROOT)}

    @property
    def life(self) -> str:
        """The name of this process among those of its name."""
        return f"{self.name}.{self.pid}"

    def end_of_log(self) -> str:
        """The last lines that it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_QUOTED_LINES:])

    def is_ready(self) -> bool:
        """A producer is ready when it runs."""
        return self.is_running


class Dispatcher(Program):
    """A dispatcher. newer: by how many builds its library is ahead; it counts from the next start on."""

    def __init__(self, directory: Path, name: str, settings: Path, *, newer: int = 0) -> None:
        super().__init__(directory, name, "tests.fault.dispatcher")
        self._settings = settings
        self.newer = newer

    def command(self) -> Sequence[str]:
        """Run it on its port."""
        return [*super().command(), str(self._settings), str(self.port), str(self.newer)]

    def is_ready(self) -> bool:
        """Whether it says so."""
        with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
            connection.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(100)


class Worker(Program):
    """A worker."""

    def __init__(self, directory: Path, name: str, settings: Path, fleet: Path) -> None:
        super().__init__(directory, name, "tests.fault.worker", settings, fleet, directory / name)

    def is_ready(self) -> bool:
        """Whether this process has said that all its instances are registered."""
        with contextlib.suppress(FileNotFoundError):
            return "worker_running" in self.log.read_text(errors="replace")[self._log_began :]
        return False

    def spawn(self) -> None:
        """Start it, noting where its part of the log begins."""
        if not self.is_running:
            self._log_began = len(self.log.read_text(errors="replace")) if self.log.exists() else 0
        super().spawn()
