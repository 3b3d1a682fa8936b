"""The cell's contract: what the live state promises to the dispatcher's loops and to the workers.

Two implementations keep it, shown by one suite (tests/contract): `redis.RedisCell` over the function library in
`library/` with `view.RedisView`, and `twin.TwinCell` in memory. Expected refusals are values; only a server that does
not answer raises (DependencyError). All times are the server's, Unix ms.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from taskyard.dispatcher.cell.recovery import Incarnation, Opening, RecoveryCell
from taskyard.dispatcher.core.snapshot import InstanceView, Report, ShapeView, Vector
from taskyard.schemas.entry import Entry


class CellConfig(NamedTuple):
    """What the cell itself must know. Every dispatcher of a cell is given the same."""

    headroom_permille: int = 50
    parked_limit: int = 1_000_000
    parked_bytes_limit: int = 4 << 30
    outbox_limit: int = 1_000_000
    outbox_bytes_limit: int = 1 << 30
    retry_base_ms: int = 1_000
    retry_cap_ms: int = 60_000
    unknown_type_age_ms: int = 3_600_000
    parked_age_ms: int = 86_400_000
    done_limit: int = 500_000
    done_age_ms: int = 600_000


class Range(NamedTuple):
    """Records [start, end) of one partition. An end below the start moves the partition back: its log was cut."""

    partition: Incarnation
    start: int
    end: int


class Planned(msgspec.Struct, frozen=True, gc=False):
    """One task of a batch. shape and candidates index `Batch.shapes` and `Batch.instances`; at most 3 candidates.

    entry: encoded by `schemas.entry`; its id, key and deadline are the task's.
    """

    shape: int
    candidates: tuple[int, ...]
    entry: bytes


class Batch(NamedTuple):
    """What one apply call brings: at most MAX_BATCH tasks, in order of their keys.

    instances: (id, tag), the tag being the first four characters of the epoch that the plan saw.
    refused: encoded DeadLetter of each record that could not be read; they take effect with the offsets.
    parked_permille: the share of the park's bounds that this priority may fill.
    """

    ranges: Sequence[Range]
    instances: Sequence[tuple[str, str]]
    shapes: Sequence[str]
    tasks: Sequence[Planned]
    refused: Sequence[bytes] = ()
    parked_permille: int = 1000


MAX_BATCH = 2_000
OnSent = Callable[[], None]


class Applied(NamedTuple):
    """The batch took effect.

    results: per task one character: `1` `2` `3` placed on that candidate, `o` on another open instance, `p` parked,
    `k` skipped because the cell already knew the id, `x` dead because its deadline had passed.
    """

    results: str
    parked: int
    outbox: int
    now_ms: int


class Fenced(NamedTuple):
    """Refused, nothing changed: some range does not start where its partition stands. Seek to `applied`."""

    applied: dict[Incarnation, int]


class Full(NamedTuple):
    """Refused, nothing changed: the park or the outbox is at its bound. Pause this priority.

    parked: together with what waits for its retry. A batch that is taken may pass the bound by its own size.
    """

    parked: int
    parked_bytes: int
    outbox: int


class Recovering(NamedTuple):
    """Refused, nothing changed: the cell has no history yet, or has lost it. Some dispatcher has to call `begin`."""


class Registration(NamedTuple):
    """What an instance offers. capacity always has `slots`; profile is shown, never interpreted."""

    types: tuple[str, ...]
    capacity: Mapping[str, int]
    labels: Mapping[str, str]
    lease_ms: int = 10_000
    profile: Mapping[str, str] = {}


class Registered(NamedTuple):
    """The epoch is the current one. cursor: read the queue from there."""

    generation: str
    now_ms: int
    cursor: str


class Evicting(NamedTuple):
    """Not yet: `left` entries of the former registration are still being taken back. Call again."""

    left: int


class Refused(NamedTuple):
    """The caller's epoch is not current (`stale`), or the instance is not registered (`unknown`)."""

    why: Literal["stale", "unknown"]


class Beaten(NamedTuple):
    """The lease is renewed. A generation that differs from the registration's asks for `resync`.

    reason: why the instance is cordoned; empty if it is open. recalled: the newest stream id that was recalled; an
    entry up to it that has not started must not start.
    """

    generation: str
    now_ms: int
    reason: str
    recalled: str


class Delivery(NamedTuple):
    """One entry read from an instance's queue."""

    instance: str
    stream_id: str
    entry: bytes


class Ending(NamedTuple):
    """How one attempt ended, as the worker says it.

    how: `succeeded` (detail: the encoded Outcome), `retry` (detail: the cause; delay_ms below 0: the cell's backoff),
    `gave_up` (detail: the cause; dead letter at once), `unstarted` (given back; the attempt does not count).
    """

    task_id: str
    stream_id: str
    attempt: int
    how: Literal["succeeded", "retry", "gave_up", "unstarted"]
    detail: bytes
    delay_ms: int = -1


class Finished(NamedTuple):
    """accepted: per ending whether it counted; False if the task was no longer this instance's.

    pulled: parked tasks that came onto the queue in the same call.
    """

    accepted: tuple[bool, ...]
    pulled: int


class Running(NamedTuple):
    """A task that a worker runs, as it tells `resync`."""

    task_id: str
    stream_id: str
    attempt: int
    entry: bytes


class Resynced(NamedTuple):
    """Per running task its stream id from now on, or None: stop it, another has it or it is finished."""

    generation: str
    stream_ids: tuple[str | None, ...]


class Level(NamedTuple):
    """How full the cell is, in tasks and bytes."""

    parked: int
    parked_bytes: int
    later: int
    outbox: int
    instances: int
    now_ms: int


class Place(NamedTuple):
    """Where a task is.

    state: `queued`, `parked`, `later`, `finished` or `dead`. at: stream id, order key or a Unix time in ms, by state.
    via: `1` to `3` candidate of the plan, `o` open set, `u` pulled by a finish, `g` by a registration, `s` settle,
    `d` due, `e` evicted, `r` resync, `c` restored, `m` mended.
    """

    state: Literal["queued", "parked", "later", "finished", "dead"]
    at: str
    attempt: int
    instance: str
    shape: str
    via: str
    entry: Entry | None


class Outgoing(NamedTuple):
    """One entry of the outbox.

    kind: `outcome` (body: encoded Outcome), `dead` (body: the entry), `refused` (body: encoded DeadLetter),
    `uncarried` (body: the id of a carried task that has ended).
    """

    stream_id: str
    kind: Literal["outcome", "dead", "refused", "uncarried"]
    body: bytes
    reason: str = ""
    cause: str = ""
    instance: str = ""


class Drift(NamedTuple):
    """What the audit of one instance found: used by its vector less the sum over its stream, per resource, and entries
    without a place or with another's."""

    instance: str
    used: dict[str, int]
    misplaced: int


class WorkerCell(Protocol):
    """What a worker needs: a lease, its queue, and the ends of its tasks."""

    async def register(
        self, instance: str, epoch: str, registration: Registration, *, is_resuming: bool = False
    ) -> Registered | Evicting:
        """Offer an instance's capacity.

        is_resuming: it runs tasks already. Nothing is placed or pulled onto it until the last page of `resync`.
        """
        ...

    async def beat(self, instance: str, epoch: str, report: Report) -> Beaten | Refused: ...
    async def read(self, cursors: Mapping[str, str], *, count: int, block_ms: int) -> list[Delivery]: ...
    async def finish(self, instance: str, epoch: str, endings: Sequence[Ending]) -> Finished | Refused:
        """End attempts; what they free takes the best parked tasks. Repeating it is harmless.

        A success counts even if the cell has lost the entry, or has it elsewhere by now, as long as the attempt is the
        current one or the task is not known at all: the first finish of an attempt wins, once.
        """
        ...

    async def resync(
        self, instance: str, epoch: str, running: Sequence[Running], *, is_last: bool = True
    ) -> Resynced | Refused:
        """Tell a cell that may have gone back in time what this instance holds, in pages.

        is_last: an instance that was registered as resuming is open from now on, and pulls.
        """
        ...

    async def close_instance(self, instance: str, epoch: str, reason: str) -> bool:
        """Quiet: nothing more is placed or pulled onto it. False if the epoch is not current."""
        ...

    async def leave(self, instance: str, epoch: str) -> Evicting | Refused:
        """Unregister. What is still on its queue is taken back as by evict; Evicting(0) means gone."""
        ...


class DispatcherCell(RecoveryCell, Protocol):
    """What the dispatcher's loops need. Every call may be repeated; each is bounded by its `limit`."""

    async def open(self, config: CellConfig) -> Opening:
        """Load the library, store the config, return the generation (a new one if the server has another run id)."""
        ...

    async def applied(self, partitions: Sequence[Incarnation]) -> dict[Incarnation, int]: ...
    async def apply(self, batch: Batch, *, on_sent: OnSent | None = None) -> Applied | Fenced | Full | Recovering:
        """Make a batch take effect, exactly once. on_sent: called once the request is on its way."""
        ...

    async def evict(self, *, limit: int) -> tuple[str, int] | None:
        """Take back up to `limit` entries of an instance whose lease ran out: (instance, entries left), or None."""
        ...

    async def recall(self, instances: Sequence[str], *, min_age_ms: int, limit: int) -> int:
        """Take back what was queued for min_age_ms, and not read, when an instance last beat; cordon that instance."""
        ...

    async def settle(self, matches: Sequence[tuple[str, str]], *, limit: int) -> int:
        """Match parked tasks with open instances once more: each (instance, shape) takes what fits.

        The instance pulls; what is left of its capacity takes the shape, which a pull may not have seen behind many
        others that do not fit. Returns how many tasks were placed, at most `limit`.
        """
        ...

    async def due(self, *, limit: int) -> int:
        """Place or park the tasks whose backoff is over. Returns how many."""
        ...

    async def expire(self, *, limit: int) -> int:
        """Dead-letter parked tasks past their deadline or the age allowed. Returns how many."""
        ...

    async def hold(self, shape: str, instance: str) -> bool:
        """Keep `instance` for the first task of `shape`.

        False if either is held already, nothing of the shape is parked, or it could not run there at all.
        """
        ...

    async def cordon(self, instance: str, reason: str) -> bool:
        """Close the instance for a reason; with an empty reason open it again (which pulls)."""
        ...

    async def lease(self, name: str, owner: str, *, ttl_ms: int) -> bool:
        """Take or renew the named lease (`tick`, `relay`). True if `owner` has it now. ttl_ms 0 gives it back."""
        ...

    async def outbox(self, *, count: int) -> list[Outgoing]: ...
    async def newest_outgoing(self) -> str:
        """Return the stream id of the newest entry of the outbox; empty if there is none."""
        ...

    async def trim(self, stream_ids: Sequence[str]) -> int: ...


class FleetView(Protocol):
    """Reading for the dispatcher's plan and for ops. Nothing here changes state."""

    async def level(self) -> Level: ...
    async def unfinished(self) -> dict[int, int]:
        """Count the unfinished tasks by the arrival of their records: start of the bucket (Unix ms) -> tasks.

        No task that is not carried arrived before the first bucket; `recovery.BUCKET_MS` is the width.
        """
        ...

    async def resources(self) -> tuple[str, ...]: ...
    async def instances(self) -> list[InstanceView]: ...
    async def vectors(self) -> dict[str, Vector]: ...
    async def shapes(self) -> list[ShapeView]: ...
    async def find(self, task_id: str) -> Place | None: ...
    async def queue(self, instance: str, *, count: int) -> list[Delivery]: ...
    async def parked(self, shape: str, *, count: int) -> list[Entry]: ...
    async def audit(self, instance: str) -> Drift: ...
