"""The processes of a run: started, watched, started again when they die, stopped in order.

They end with this process even if it is killed (Linux): `compose.leash`.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from taskyard.compose import leash
from taskyard.schemas.errors import DependencyError

_WATCH_S = 0.1
_RESTART_S = 1.0
# A process that dies this soon, so often in a row, will not live: its log says why.
_SHORT_LIFE_S = 3.0
_SHORT_LIVES = 3
_QUOTED_LINES = 15


class Child:
    """One process under one name, over its restarts. Written by Processes only."""

    def __init__(self, kind: str, name: str, command: Sequence[str], log: Path) -> None:
        self.kind = kind
        self.name = name
        self.command = command
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0
        self.dead_since_s = 0.0
        self.short_lives = 0
        self.is_wanted = True

    @property
    def is_up(self) -> bool:
        """Whether the process exists."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the last start; 0 if there was none."""
        return self.process.pid if self.process else 0

    def end_of_log(self) -> str:
        """The last lines that it wrote, for a person."""
        lines = self.log.read_text(errors="replace").splitlines()[-_QUOTED_LINES:] if self.log.exists() else []
        return "\n".join(f"  | {line}" for line in lines) or "  | (nothing)"


class Processes:
    """The supervisor of a run. tell: called with a line for a person when a process dies or comes back."""

    def __init__(self, directory: Path, environment: Mapping[str, str], tell: Callable[[str], None]) -> None:
        self.directory = directory
        self._environment = dict(environment)
        self._tell = tell
        self._children: list[Child] = []
        self.deaths: list[str] = []

    def start(self, kind: str, name: str, module: str, *arguments: str) -> None:
        """Run a module of ours with this Python, and keep it running until `stop`. Call it on the main thread.

        The kernel's signal to a child comes when the thread that forked ends.
        """
        command = [sys.executable, "-m", module, *arguments]
        child = Child(kind, name, command, self.directory / f"{name}.log")
        self._children.append(child)
        self._spawn(child)

    def of(self, kind: str) -> list[Child]:
        """The processes of a kind."""
        return [child for child in self._children if child.kind == kind]

    def up(self, kind: str) -> tuple[int, int]:
        """How many of a kind are running, and how many should be."""
        children = self.of(kind)
        return sum(child.is_up for child in children), len(children)

    async def watch(self) -> None:
        """Look after the processes for ever. Raises DependencyError with the log's end if one cannot live."""
        while True:
            for child in self._children:
                if child.is_wanted and not child.is_up:
                    self._look_after(child)
            await asyncio.sleep(_WATCH_S)

    async def stop(self, kind: str, *, within_s: float) -> None:
        """End all of a kind with SIGTERM, and with SIGKILL those that take longer. Idempotent."""
        children = self.of(kind)
        for child in children:
            child.is_wanted = False
            if child.process is not None and child.is_up:
                child.process.terminate()
        deadline_s = time.monotonic() + within_s
        while any(child.is_up for child in children) and time.monotonic() < deadline_s:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(_WATCH_S / 4)
        for child in children:
            if child.is_up:
                self._told_death(f"{child.name} did not end within {within_s:.0f} s of SIGTERM and was killed")
        self._kill(children)

    def kill(self) -> None:
        """End whatever is still running, at once. Idempotent."""
        self._kill(self._children)

    def _kill(self, children: Sequence[Child]) -> None:
        for child in children:
            child.is_wanted = False
            if child.process is not None:
                child.process.kill()
                child.process.wait()

    def _look_after(self, child: Child) -> None:
        now_s = time.monotonic()
        if not child.dead_since_s:
            assert child.process is not None
            child.dead_since_s = now_s
            self._told_death(f"{child.name} (pid {child.pid}) {_how(child.process.returncode)}; starting it again")
            child.short_lives = child.short_lives + 1 if now_s - child.started_s < _SHORT_LIFE_S else 0
            if child.short_lives >= _SHORT_LIVES:
                raise DependencyError(f"{child.name} does not stay alive. Its log ends with\n{child.end_of_log()}")
        elif now_s - child.dead_since_s > _RESTART_S:
            self._spawn(child)
            self._tell(f"{child.name} is back (pid {child.pid})")

    def _told_death(self, text: str) -> None:
        self.deaths.append(text)
        self._tell(text)

    def _spawn(self, child: Child) -> None:
        leashed = [sys.executable, "-I", "-S", str(Path(leash.__file__)), str(os.getpid()), *child.command]
        with child.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal must reach us alone, who then stop the processes in order.
            child.process = subprocess.Popen(
                leashed,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self._environment,
                start_new_session=True,
            )
        child.started_s = time.monotonic()
        child.dead_since_s = 0.0


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
