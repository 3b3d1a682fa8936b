"""Embedded services: real Kafka and real Valkey as child processes, for a laptop, tests and benches.

    with embedded.start() as services:
        ...  # services.kafka, services.redis

The children end with the block, also on Ctrl-C and SIGTERM, and with this process even if it is killed (Linux).
Servers listen on 127.0.0.1 only.
"""

import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path
from types import FrameType

from taskyard.compose.artifacts import OnProgress, locked
from taskyard.compose.kafka import Kafka
from taskyard.compose.process import ServiceError
from taskyard.compose.valkey import AppendFsync, Valkey

_TEMPORARY = "taskyard-services-"
_LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class Services:
    """Both services, running. `kafka_server` and `redis_server` can be killed and started again one by one."""

    directory: Path
    kafka_server: Kafka
    redis_server: Valkey

    @property
    def kafka(self) -> str:
        """The bootstrap server, `127.0.0.1:port`."""
        return self.kafka_server.address

    @property
    def redis(self) -> str:
        """The address, `redis://127.0.0.1:port/0`."""
        return self.redis_server.url

    @property
    def kafka_pid(self) -> int:
        """The process id now; a restart changes it."""
        return self.kafka_server.pid

    @property
    def redis_pid(self) -> int:
        """The process id now; a restart changes it."""
        return self.redis_server.pid


def _silent(_: str) -> None:
    pass


@contextlib.contextmanager
def start(
    directory: Path | None = None,
    *,
    kafka_port: int = 0,
    redis_port: int = 0,
    appendonly: AppendFsync = "everysec",
    allocator: str = "",
    on_progress: OnProgress = _silent,
) -> Generator[Services]:
    """Run Kafka and Valkey beside each other until the block is left.

    directory: kept and used again if given, else a temporary one. Ports: 0 takes a free one.
    allocator: a shared library that Valkey uses instead of the C library's malloc.
    on_progress: called with a line for a person, from this thread.
    Raises ServiceError if one cannot be had; then neither is left running.
    Cost: 2 to 4 s; the first time 43 MB are fetched.
    """
    with _directory(directory) as home, _sigterm_leaves_the_block(), contextlib.ExitStack() as stack:
        valkey = Valkey(home / "valkey", redis_port, appendonly=appendonly, allocator=allocator)
        kafka = Kafka(home / "kafka", kafka_port, on_progress=on_progress)
        # Left in reverse: Kafka first, so that nothing more comes in; then the state it was applied to.
        stack.callback(valkey.stop)
        stack.callback(kafka.stop)
        valkey.spawn()
        kafka.spawn()
        on_progress("starting Kafka and Valkey…")
        valkey.wait_ready()
        kafka.wait_ready()
        on_progress(f"Kafka on {kafka.address}, Valkey on {valkey.url}")
        yield Services(home, kafka, valkey)


@contextlib.contextmanager
def start_kafka(directory: Path | None = None, *, port: int = 0, on_progress: OnProgress = _silent) -> Generator[Kafka]:
    """Run Kafka alone until the block is left; otherwise as `start`."""
    with _directory(directory) as home, _sigterm_leaves_the_block(), contextlib.ExitStack() as stack:
        kafka = Kafka(home / "kafka", port, on_progress=on_progress)
        stack.callback(kafka.stop)
        kafka.start()
        yield kafka


@contextlib.contextmanager
def start_valkey(
    directory: Path | None = None, *, port: int = 0, appendonly: AppendFsync = "everysec"
) -> Generator[Valkey]:
    """Run Valkey alone until the block is left; otherwise as `start`. Cost: 0.1 s."""
    with _directory(directory) as home, _sigterm_leaves_the_block(), contextlib.ExitStack() as stack:
        valkey = Valkey(home / "valkey", port, appendonly=appendonly)
        stack.callback(valkey.stop)
        valkey.start()
        yield valkey


@contextlib.contextmanager
def _directory(given: Path | None) -> Generator[Path]:
    """The given directory, or a temporary one that is removed; either is ours alone while the block runs."""
    if given is not None:
        home = given.absolute()
        home.mkdir(parents=True, exist_ok=True)
        with _owned(home):
            yield home
        return
    parent = Path(tempfile.gettempdir())
    # One at a time, so that no one sweeps a directory between its making and its locking.
    with locked(parent / f"{_TEMPORARY}{os.getuid()}.lock"):
        _sweep(parent)
        home = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=parent))
        owned = contextlib.ExitStack()
        owned.enter_context(_owned(home))
    with owned:
        try:
            yield home
        finally:
            shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _owned(home: Path) -> Generator[None]:
    """Hold the directory's lock; the kernel frees it when this process ends, however it ends."""
    with (home / _LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServiceError(f"{home} is in use by another process; stop that one or name another") from error
        yield


def _sweep(parent: Path) -> None:
    """Remove what killed processes of this user left behind: directories whose lock nobody holds."""
    for left in parent.glob(f"{_TEMPORARY}*/{_LOCK}"):
        with contextlib.suppress(OSError, ServiceError):
            if left.stat().st_uid == os.getuid():
                with _owned(left.parent):
                    shutil.rmtree(left.parent, ignore_errors=True)


@contextlib.contextmanager
def _sigterm_leaves_the_block() -> Generator[None]:
    """Turn a SIGTERM that the program does not handle itself into SystemExit, so that the block is left in order."""
    handled = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    if handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _exit:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(signal_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal_number)
