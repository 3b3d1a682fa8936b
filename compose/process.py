"""One server program as a child process of ours: started, awaited, stopped, killed, started again."""

import abc
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from taskyard.schemas.errors import DependencyError

_LEASH = Path(__file__).with_name("leash.py")
# Between two questions "are you ready?". Small against the 2 s that Kafka needs.
_POLL_S = 0.02
_QUOTED_LOG_LINES = 15
# Below the range from which Linux (32768) and macOS (49152) take the ports of outgoing connections: a client that
# keeps reconnecting to a dead server inside that range can connect to itself, and then the port is taken when the
# server comes back.
_PORTS = range(20_000, 32_000)


class ServiceError(DependencyError):
    """An embedded service could not be had. The message says why and what to do."""


def _new_spawner() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="taskyard-spawner")


# The kernel's parent-death signal is sent when the *thread* that forked ends, not its process. So every child is
# forked by one thread that lives as long as the process, whichever thread asks.
_spawner = [_new_spawner()]
# A forked copy of this process has the object but not the thread.
os.register_at_fork(after_in_child=lambda: _spawner.__setitem__(0, _new_spawner()))


def free_port() -> int:
    """Find a port on 127.0.0.1 that nothing listens on; another program can still take it before it is used."""
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    msg = f"no free port between {_PORTS.start} and {_PORTS.stop} on 127.0.0.1; stop some servers or name a port"
    raise ServiceError(msg)


class Server(abc.ABC):
    """A server program in a directory on a port of 127.0.0.1; both stay the same over restarts.

    Not for use by several threads at once. Two steps to start, `spawn` and `wait_ready`, so that several servers
    can start beside each other.
    """

    # Set by the subclass.
    name: str
    ready_within_s: float
    stop_within_s: float

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port or free_port()
        self.log = directory / "log.txt"
        # Written by spawn only.
        self._process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def command(self) -> Sequence[str]:
        """Prepare the directory and say what to run; called before each start, so it must be repeatable."""

    @abc.abstractmethod
    def is_ready(self) -> bool:
        """Ask the server itself, over its protocol; False or OSError mean not yet."""

    def environment(self) -> Mapping[str, str] | None:
        """The variables that the program sees; None: ours."""
        return None

    @property
    def pid(self) -> int:
        """The process id of the running server. Raises ServiceError if it was never started."""
        if self._process is None:
            raise ServiceError(f"{self.name} has not been started; call start() first")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process exists; it may not be ready yet."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers. Raises ServiceError with the last lines of its log."""
        self.spawn()
        self.wait_ready()

    def spawn(self) -> None:
        """Start the process and return at once; does nothing if it runs already."""
        if self.is_running:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid()), *self.command()]
        self._process = _spawner[0].submit(self._popen, command).result()

    def _popen(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal must reach us alone, who then stop the servers last.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self.environment(),
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Return when the server answers; raise ServiceError when it ended or the deadline has passed."""
        deadline_s = time.monotonic() + self.ready_within_s
        while True:
            with contextlib.suppress(OSError):
                if self.is_ready():
                    return
            if not self.is_running:
                code = self._process.returncode if self._process else None
                raise ServiceError(self._failure(f"ended with code {code} before it was ready"))
            if time.monotonic() > deadline_s:
                self.kill()
                raise ServiceError(self._failure(f"did not answer within {self.ready_within_s:.0f} s"))
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Ask the server to end in order and wait; kill it if it takes longer than `stop_within_s`. Idempotent."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        try:
            self._process.wait(self.stop_within_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def pause(self) -> None:
        """Stop the process where it is (SIGSTOP): its connections stay open and nobody answers. `resume` ends it.

        Returns when its last thread stands still: on a busy machine one may still have answered after the signal.
        """
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused process go on. Harmless if it runs."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the server as a crash would (SIGKILL), and wait until it is gone. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Stop the server in order and start it again on the same directory and port."""
        self.stop()
        self.start()

    def _failure(self, what: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_QUOTED_LOG_LINES:] if self.log.exists() else []
        quoted = "\n".join(f"  | {line}" for line in lines) or "  | (nothing)"
        return (
            f"{self.name} on 127.0.0.1:{self.port} {what}. Its log ends with\n{quoted}\n"
            f"The whole log: {self.log} (kept if you name a directory). If the port is taken, name another one; if "
            f"the machine is short of memory or disk, free some; or use running services with --kafka and --redis."
        )
