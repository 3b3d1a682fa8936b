"""The rig: the services under test, child processes that end with the bench, and the clock of a run."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import redis

from bench.pairs import Sample
from bench.server_use import per_task, use_of
from taskyard.compose import leash
from taskyard.compose.embedded import Services

ROOT = Path(__file__).parents[1]
WITHIN_S = 120.0
# Between two looks at a run's progress: small against its second or more, seldom enough to leave the server alone.
_LOOK_S = 0.01
_QUOTED_CHARS = 2_000
# Of a run's tasks, done before its clock starts: by then every process is under way.
_WARM_UP = 0.1


class Rig:
    """Kafka and Valkey, and the processes that use them. One run at a time."""

    def __init__(self, services: Services) -> None:
        self.kafka = services.kafka
        self.redis_url = services.redis
        self.redis: Any = redis.Redis.from_url(services.redis)  # pyright: ignore[reportUnknownMemberType]
        self.server_pids = {"valkey": services.redis_pid, "kafka": services.kafka_pid}
        self._runs = 0
        # A rewrite in the middle of a run would be that run's bad luck; `reset` does it between runs.
        self.redis.config_set("auto-aof-rewrite-percentage", 0)

    def valkey_cpu_s(self) -> float:
        """Processor time that Valkey has used so far, all threads."""
        return cpu_s(self.server_pids["valkey"])

    def valkey_rss_bytes(self) -> int:
        """Memory that the system has given to Valkey."""
        return rss_bytes(self.server_pids["valkey"])

    def used_bytes(self) -> int:
        """Memory that Valkey has allocated, as it counts itself."""
        return self.redis.info("memory")["used_memory"]

    def new_name(self) -> str:
        """Return a name that no other run has: of a cell, a consumer group."""
        self._runs += 1
        return f"bench-{self._runs}"

    def reset(self) -> None:
        """Empty Valkey and its append-only file, as they were before the first run."""
        self.redis.flushall()
        self.redis.bgrewriteaof()
        wait_for(lambda: not self.redis.info("persistence")["aof_rewrite_in_progress"], "the AOF to be rewritten")

    @contextlib.contextmanager
    def child(self, *command: str) -> Generator["Child"]:
        """Run a command until the block is left, or until this process ends, however it ends (Linux)."""
        with tempfile.TemporaryDirectory(prefix="taskyard-bench-") as home:
            child = Child(command, Path(home))
            try:
                yield child
            finally:
                child.stop()

    def timed(
        self, done: Callable[[], int], count: int, children: Mapping[str, "Child"],
        has_begun: Callable[[], bool] | None = None,
    ) -> Sample:  # fmt: skip
        """Watch a run until `done()` is `count`.

        The clock starts with `has_begun()`, or else when a tenth is done: starting processes is not in it.
        Details: `rss_bytes` of each process at the end, and `server`: see `server_use.per_task`.
        """
        pids = {**{name: child.pid for name, child in children.items()}, **self.server_pids}

        def is_well() -> bool:
            for name, child in children.items():
                child.check(name)
            return True

        wait_for(lambda: is_well() and (has_begun() if has_begun else done() >= count * _WARM_UP), "the run to begin")
        used = use_of(self.redis)
        began_s, first, before = time.monotonic(), done(), {name: cpu_s(pid) for name, pid in pids.items()}
        wait_for(lambda: is_well() and done() >= count, f"{count} tasks to be done")
        took_s, timed = time.monotonic() - began_s, count - first
        if timed <= 0:
            raise RuntimeError(f"all {count} tasks were done at the first look; the run needs more of them")
        spent = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
        held = {name: rss_bytes(pid) for name, pid in pids.items()}
        details = {"rss_bytes": held, "server": per_task(used, use_of(self.redis), timed)}
        return Sample(timed / took_s, {name: 1e6 * took / timed for name, took in spent.items()}, details)


class Child:
    """A child process; what it says goes to a file that is shown if it fails."""

    def __init__(self, command: Sequence[str], home: Path) -> None:
        self._log = home / "log.txt"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKYARD_")}
        program = [sys.executable, "-I", "-S", str(leash.__file__), str(os.getpid()), *command]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                program, cwd=home, env={**environment, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid

    def check(self, name: str) -> None:
        """Raise RuntimeError with the end of its log if it has failed."""
        if self._process.poll() not in (None, 0):
            said = self._log.read_text(errors="replace")[-_QUOTED_CHARS:]
            raise RuntimeError(f"{name} ended with code {self._process.returncode}; its log ends with\n{said}")

    def output(self) -> str:
        """Wait for its end and return what it printed. Raises RuntimeError if it failed."""
        printed, _ = self._process.communicate(timeout=WITHIN_S)
        self.check("a process of the bench")
        return printed.decode()

    def stop(self) -> None:
        """Ask it to end, then make it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def taskyard(rig: Rig, cell: str, *words: str) -> tuple[str, ...]:
    """Make the command line of a `taskyard` command on a cell of these services."""
    code = "from taskyard.dispatcher.cli import main; main()"
    common = ("--kafka", rig.kafka, "--redis", rig.redis_url, "--cell", cell, "--log-level", "warning")
    return (sys.executable, "-c", code, *words, *common)


def wait_for(value: Callable[[], Any], what: str) -> Any:
    """Return the first value that is true. Raises TimeoutError after 120 s."""
    deadline_s = time.monotonic() + WITHIN_S
    while not (found := value()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {WITHIN_S:.0f} s for {what}")
        time.sleep(_LOOK_S)
    return found


def cpu_s(pid: int) -> float:
    """Processor time of all threads of a process, to the nanosecond; 0 where the system does not tell (Linux does)."""
    total_ns = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total_ns += int(file.read_text().split()[0])
    return total_ns / 1e9


def rss_bytes(pid: int) -> int:
    """Memory of a process that is in RAM; 0 where the system does not tell (Linux does)."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
