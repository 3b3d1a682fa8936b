"""What happened in a run, as its parties wrote it down: the only thing that the checker looks at.

All times are seconds of this machine's monotonic clock, which its processes share.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

NEVER_S = math.inf


Fate = Literal["succeeds", "dies", "either"]


class Published(NamedTuple):
    """A task that a producer sent.

    fate: how it was made to end. how: what its handler is told to do. appended_s: when Kafka took it, by the broker's
    clock; NEVER_S if the producer has no acknowledgement. partition, offset: -1 if unknown.
    """

    task_id: str
    priority: str
    type: str
    fate: Fate
    how: str
    sent_s: float
    appended_s: float = NEVER_S
    topic: str = ""
    partition: int = -1
    offset: int = -1


How = Literal["returned", "raised", "cancelled", "open"]


class Run(NamedTuple):
    """One start of an attempt by a handler.

    process: one life of a worker process. how: `open` if no end was written.
    """

    task_id: str
    attempt: int
    instance: str
    process: str
    started_s: float
    ended_s: float = NEVER_S
    how: How = "open"


class Ended(NamedTuple):
    """One record of `results`. digest: of its bytes, so that a repeated record is told from a second outcome.

    failed: the attempts that the cell says ended without success. reason: of a dead one.
    placed_s, arrived_s: 0 if unknown.
    """

    task_id: str
    attempt: int
    status: str
    instance: str
    digest: bytes
    ended_s: float
    placed_s: float = 0.0
    arrived_s: float = 0.0
    failed: tuple[int, ...] = ()
    reason: str = ""


class Letter(NamedTuple):
    """One record of `dead-letter`."""

    task_id: str
    attempt: int
    reason: str


class Disturbance(NamedTuple):
    """A fault, as it was made.

    kind: `lost`: a worker process (`subject`) could not keep its leases; `rollback`: the live state may have gone back,
    by at most back_s; `other`: anything else. until_s: when it was over.
    """

    kind: Literal["lost", "rollback", "other"]
    what: str
    began_s: float
    until_s: float
    subject: str = ""
    back_s: float = 0.0


class History(NamedTuple):
    """All of it.

    slots: of each instance. deaths: when a worker process ended. dropped: tasks that were lost on purpose, by an
    operator who removed a topic. left: what the cell still had when all was over, by name; 0 is right.
    unexpected: what no scenario asked for, such as a process that ended by itself.
    """

    published: Sequence[Published]
    runs: Sequence[Run]
    ended: Sequence[Ended]
    letters: Sequence[Letter]
    disturbances: Sequence[Disturbance]
    slots: Mapping[str, int]
    deaths: Mapping[str, float]
    dropped: frozenset[str] = frozenset()
    left: Mapping[str, int] = {}
    unexpected: Sequence[str] = ()
