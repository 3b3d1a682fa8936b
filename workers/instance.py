"""An instance: what it offers, what it holds, and how the cell has it."""

import asyncio
import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from taskyard.dispatcher.cell.contract import Registration, Report
from taskyard.workers.attempt import Attempt
from taskyard.workers.lifecycle import INSTANCE, STANDING, Lifecycle

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

    Endings are bounded without a bound of their own. Each belongs to an attempt that was read from the queue, and held
    capacity there. While the cell takes no endings it places no more than that capacity, and an instance whose
    lease or history was lost reads nothing until all that it kept has been accepted (`resumed` comes before `open`),
    however long that takes and however often it happens. So `held` never exceeds what the capacity allows.
    """

    def __init__(self, spec: InstanceSpec) -> None:
        self.spec = spec
        self.life = Lifecycle(INSTANCE)
        self.standing = Lifecycle(STANDING)
        self.epoch = ""
        self.generation = ""
        self.cursor = FIRST  # written by the reader, and where `serial` changes
        # What a read that came back has gone up to: told in beats.
        self.read_to = FIRST
        # Of the cursor's history. Who has read from a cursor of another one drops what it got.
        self.serial = 0
        self.held: dict[tuple[str, int], Attempt] = {}  # (task id, attempt) -> what runs or has not been finished
        self.adopted: set[str] = set()  # stream ids that a resync gave to held attempts
        self.wake = asyncio.Event()  # for the keeper: there are endings, or the standing has changed
        self.registered = asyncio.Event()  # it is open
        self.settled = asyncio.Event()  # an ending has been taken, or everything has
        self._recalled = FIRST
        self._endings: deque[Attempt] = deque()
        self._errors = 0.0
        self._errors_s = time.monotonic()

    @property
    def is_stopped(self) -> bool:
        """Whether nothing is read or told any more."""
        return self.life.state == "stopped"

    @property
    def has_lease(self) -> bool:
        """Whether it is registered, as far as this process knows."""
        return self.standing.state != "absent" and not self.is_stopped

    @property
    def may_finish(self) -> bool:
        """Whether the cell knows what it holds, so that endings may go out."""
        return self.standing.state in ("resumed", "open") and not self.is_stopped

    @property
    def is_open(self) -> bool:
        """Whether its queue may be read."""
        return self.standing.state == "open" and not self.is_stopped

    @property
    def must_resume(self) -> bool:
        """Whether its next registration begins closed: it has something to tell first, or takes nothing more."""
        return bool(self.held) or self.life.state == "draining"

    def new_epoch(self) -> str:
        """Begin another registration under a random name."""
        self.epoch = secrets.token_hex(8)
        return self.epoch

    def begin(self, generation: str, cursor: str) -> None:
        """The cell has taken the registration."""
        if self.life.state == "starting":
            self.life.move("running")
        self.generation = generation
        self.go_to(cursor)
        if self.must_resume:
            self.standing.move("resuming")
            self.wake.set()
        else:
            self.adopted.clear()
            self.open()

    def doubt(self) -> None:
        """The cell may have gone back in time: it is told what is held, and its queue is read from the beginning.

        What was finished in the time that was lost is on the queue once more, behind the cursor.
        """
        self.standing.move("resuming")
        self.registered.clear()
        self.go_to(FIRST)
        self.wake.set()

    def resume(self, generation: str, adopted: set[str]) -> None:
        """The cell knows what is held. adopted: the stream ids of what it gave one."""
        self.standing.move("resumed")
        self.generation, self.adopted = generation, adopted
        # Those too that were on their way when the standing was lost.
        self._endings = deque(attempt for attempt in self.held.values() if attempt.is_told)
        self.wake.set()

    def open(self) -> None:
        """Read the queue from now on."""
        self.standing.move("open")
        self.registered.set()

    def lose(self, why: Literal["stale", "unknown"]) -> None:
        """The registration is no more; it registers anew, unless it is draining and holds nothing any more.

        unknown: the cell has evicted it whole, or has lost it. What runs goes on, what has ended is kept, and the next
        registration begins with telling both. stale: another has the id, or what was here is being given to others
        just now: everything is stopped and forgotten.
        """
        running = self.running()
        if why == "stale":
            for attempt in running:
                attempt.take_away()
            self.held.clear()
            self._endings.clear()
            self.settled.set()
        is_last = self.life.state == "draining" and not self.held
        log.warning(
            "instance_refused",
            extra={
                "instance": self.spec.id,
                "why": why,
                "cancelled" if why == "stale" else "running": len(running),
                "next": "stop" if is_last else "register anew",
            },
        )
        self.standing.move("absent")
        self.registered.clear()
        if not self.held:
            self.life.move("stopped" if is_last else "starting")
        self.wake.set()

    def stop(self) -> None:
        """Nothing is read or told any more."""
        self.life.move("stopped")
        self.registered.clear()
        self.wake.set()
        self.settled.set()

    def go_to(self, cursor: str) -> None:
        """Read from another cursor; what has been read from the former one is dropped."""
        self.cursor = self.read_to = cursor
        self._recalled = FIRST
        self.serial += 1

    def skip(self, recalled: str) -> None:
        """Unread entries up to `recalled` were taken back: a read that is under way, and may bring them, is dropped.

        The cursor stays. What is on the queue up to there was not recalled: after a resync it may have to be read.
        """
        if _is_after(recalled, self.cursor) and _is_after(recalled, self._recalled):
            self._recalled = recalled
            self.serial += 1

    def has_read(self, serial: int) -> None:
        """A read that began with this serial has come back, and was started from."""
        if serial == self.serial:
            self.read_to = self._recalled if _is_after(self._recalled, self.cursor) else self.cursor

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
