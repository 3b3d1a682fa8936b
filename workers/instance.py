"""An instance: what it offers, and what it holds while it is registered."""

import asyncio
import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence

import msgspec

from taskyard.dispatcher.cell.contract import Registration, Report
from taskyard.workers.attempt import Attempt
from taskyard.workers.lifecycle import INSTANCE, Lifecycle

log = logging.getLogger("taskyard.worker")

FIRST = "0-0"
"""The cursor before every entry."""

_MAX_BATCH = 200  # endings in one finish call: 1 ms of the server's time
_MAX_BATCH_BYTES = 2 << 20
_ERRORS_WEIGHT = 0.05  # of the last attempt in the share of errors: it looks back over some 20
_ERRORS_HALF_LIFE_S = 30.0  # an instance that gets no more tasks is forgiven


class InstanceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one instance of a worker offers.

    id: unique in the cell. types: agent types, all that the worker has handlers for if empty.
    capacity: resource name -> units, with `slots`. profile: shown to people, never interpreted.
    """

    id: str
    types: tuple[str, ...] = ()
    capacity: Mapping[str, int] = msgspec.field(default_factory=lambda: {"slots": 1})
    labels: Mapping[str, str] = {}
    profile: Mapping[str, str] = {}

    def registration(self, lease_ms: int) -> Registration:
        """Say it to the cell."""
        profile = {str(name): str(value) for name, value in self.profile.items()}
        return Registration(self.types, dict(self.capacity), dict(self.labels), lease_ms, profile)


class Instance:
    """One instance at run time. All its methods are synchronous and run on the event loop.

    Endings are bounded without a bound of their own: each belongs to an attempt that holds capacity in the cell, and
    while the cell takes no endings it places no more.
    """

    def __init__(self, spec: InstanceSpec) -> None:
        self.spec = spec
        self.life = Lifecycle(INSTANCE)
        self.epoch = ""
        self.generation = ""
        self.cursor = FIRST  # written by the reader, and where `serial` changes
        # What a read that came back has gone up to: told in beats. A cursor that a recall has moved says nothing of
        # whether this process reads at all.
        self.read_to = FIRST
        # Of the cursor's history. Who has read from a cursor of another one drops what it got.
        self.serial = 0
        self.held: dict[tuple[str, int], Attempt] = {}  # (task id, attempt) -> what runs or has not been finished
        self.adopted: set[str] = set()  # stream ids that a resync gave to held attempts
        self.lock = asyncio.Lock()  # a finish in flight and a resync exclude each other
        self.wake = asyncio.Event()  # there are endings, or there is no lease any more
        self.registered = asyncio.Event()
        self.settled = asyncio.Event()  # an ending has been taken, or everything has
        self._endings: deque[Attempt] = deque()
        self._errors = 0.0
        self._errors_s = time.monotonic()

    @property
    def is_live(self) -> bool:
        """Whether it holds a lease, as far as this process knows."""
        return self.life.state in ("running", "draining")

    def new_epoch(self) -> str:
        """Begin another registration under a random name."""
        self.epoch = secrets.token_hex(8)
        return self.epoch

    def begin(self, generation: str, cursor: str) -> None:
        """The cell has taken the registration."""
        self.life.move("running")
        self.generation = generation
        self.go_to(cursor)
        self.wake.clear()
        self.registered.set()

    def lose(self, why: str) -> None:
        """The registration is no more: stop what runs, forget it, and register anew unless draining."""
        running = [attempt for attempt in self.held.values() if attempt.how is None]
        is_last = self.life.state == "draining"
        next_step = "stop" if is_last else "register anew"
        log.warning(
            "instance_refused",
            extra={"instance": self.spec.id, "why": why, "cancelled": len(running), "next": next_step},
        )
        for attempt in running:
            attempt.take_away()
        self.held.clear()
        self.adopted.clear()
        self._endings.clear()
        self.registered.clear()
        self.life.move("stopped" if is_last else "starting")
        self.wake.set()
        self.settled.set()

    def go_to(self, cursor: str) -> None:
        """Read from another cursor; what has been read from the former one is dropped."""
        self.cursor = cursor
        self.serial += 1
        if _is_after(self.read_to, cursor):
            self.read_to = cursor

    def skip(self, recalled: str) -> None:
        """Entries up to `recalled` were taken back; those not read yet must not start."""
        if _is_after(recalled, self.cursor):
            self.go_to(recalled)

    def ended(self, attempt: Attempt) -> None:
        """Queue the ending of an attempt that is still this instance's."""
        if attempt.is_taken or attempt.is_told or attempt.how is None:
            return
        attempt.is_told = True
        if attempt.how != "unstarted":
            self._errors += _ERRORS_WEIGHT * ((attempt.how == "retry") - self._errors)
        self._endings.append(attempt)
        self.wake.set()

    def take_batch(self) -> list[Attempt]:
        """Take the oldest endings, as many as one call should carry; empty if there are none."""
        batch: list[Attempt] = []
        size_bytes = 0
        while self._endings and len(batch) < _MAX_BATCH:
            size_bytes += self._endings[0].size_bytes
            if batch and size_bytes > _MAX_BATCH_BYTES:
                break
            batch.append(self._endings.popleft())
        return batch

    def settle(self, attempts: Sequence[Attempt]) -> None:
        """Forget attempts whose endings the cell has taken."""
        for attempt in attempts:
            self.held.pop((attempt.task_id, attempt.number), None)
        self.settled.set()

    def running(self) -> list[Attempt]:
        """The attempts that have not ended."""
        return [attempt for attempt in self.held.values() if attempt.how is None]

    def report(self, cpu_permille: int, memory_permille: int) -> Report:
        """Measure the instance for a beat. Cost: about 0.2 us for each task held."""
        mono_s = time.monotonic()
        self._errors *= 0.5 ** ((mono_s - self._errors_s) / _ERRORS_HALF_LIFE_S)
        self._errors_s = mono_s
        held = self.held.values()
        counts = Counter(attempt.type for attempt in held)
        said = {a.task_id: a.context.said for a in held if a.context is not None and a.context.said}
        return Report(
            cursor=self.read_to,
            cpu_permille=cpu_permille,
            memory_permille=memory_permille,
            errors_permille=round(1000 * self._errors),
            running=tuple(counts[agent_type] for agent_type in self.spec.types),
            progress=said,
        )


def _is_after(stream_id: str, other: str) -> bool:
    return _parts(stream_id) > _parts(other)


def _parts(stream_id: str) -> tuple[int, int]:
    ms, _, sequence = stream_id.partition("-")
    return int(ms), int(sequence or 0)
