"""Simulated processes: whose code is running now, with a clock and a source of chance of its own."""

import asyncio
import contextlib
import random
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextvars import Context, ContextVar, copy_context
from typing import Any

BEGIN_MS = 1_800_000_000_000
"""The wall clock when a world begins."""


def nobody(*_: object) -> None:
    """Be told of something, and do nothing: until an owner sets another."""


class Process:
    """One life of a dispatcher or worker. offset_ms: how far its wall clock is off."""

    def __init__(self, name: str, kind: str, seed: str) -> None:
        self.name = name
        self.kind = kind
        self.chance = random.Random(f"{seed}/{name}")
        self.offset_ms = 0
        self.is_dead = False
        # Whether it has stopped in good order.
        self.has_ended = False
        # Leases that it could not give back, because the cell did not answer: they run out.
        self.kept_leases: set[str] = set()
        # Where its log lines go: (who, what, fields).
        self.log: Callable[[str, str, object], None] = nobody
        self.tasks: dict[asyncio.Task[Any], None] = {}
        # What would run while it is paused; None: it is not.
        self.frozen: deque[Any] | None = None
        self.context = copy_context()
        self.context.run(_CURRENT.set, self)

    def forget(self, task: asyncio.Task[Any]) -> None:
        """Drop a task that has ended."""
        self.tasks.pop(task, None)

    def __repr__(self) -> str:
        return self.name


_CURRENT: ContextVar[Process | None] = ContextVar("process", default=None)
NOWHERE = Context()
"""For what belongs to no process: servers, the network, the run itself."""


def process_of(context: Context | None) -> Process | None:
    """Whose context it is; of the code that runs now if there is none."""
    return _CURRENT.get() if context is None else context.get(_CURRENT)


class _Time:
    """Stands for the module `time` in the code under test."""

    @staticmethod
    def time() -> float:
        process = _CURRENT.get()
        if process is None:
            return time.time()
        return (BEGIN_MS + process.offset_ms) / 1000 + asyncio.get_running_loop().time()

    @staticmethod
    def time_ns() -> int:
        return int(_Time.time() * 1_000_000) * 1000

    @staticmethod
    def monotonic() -> float:
        return time.monotonic() if _CURRENT.get() is None else asyncio.get_running_loop().time()


class _Random:
    """Stands for the module `random`."""

    Random = random.Random

    def __getattr__(self, name: str) -> Any:
        process = _CURRENT.get()
        return getattr(random if process is None else process.chance, name)


class _Secrets:
    """Stands for the module `secrets`."""

    @staticmethod
    def token_hex(size: int) -> str:
        process = _CURRENT.get()
        return secrets.token_hex(size) if process is None else process.chance.randbytes(size).hex()

    @staticmethod
    def randbits(bits: int) -> int:
        process = _CURRENT.get()
        return secrets.randbits(bits) if process is None else process.chance.getrandbits(bits)


@contextlib.contextmanager
def simulated_modules() -> Generator[None]:
    """Give our own modules clocks and chance that are the process's; outside of one they are the real ones."""
    stand_ins: dict[str, Any] = {"time": _Time(), "random": _Random(), "secrets": _Secrets()}
    ours = [module for module in sorted(sys.modules) if module.startswith("taskyard.")]
    with changed(
        {
            f"{module}:{name}": stand_in
            for module in ours
            for name, stand_in in stand_ins.items()
            if vars(sys.modules[module]).get(name) is sys.modules[name]
        }
    ):
        yield


@contextlib.contextmanager
def changed(changes: Mapping[str, object]) -> Generator[None]:
    """Let globals of modules, named `module:name`, be others for a while."""
    before: list[tuple[Any, str, Any]] = []
    for path, value in changes.items():
        module_name, _, name = path.partition(":")
        module = sys.modules[module_name]
        before.append((module, name, getattr(module, name)))
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in reversed(before):
            setattr(module, name, value)
