"""The settings: one frozen tree, documented here and nowhere else.

Each field's description is what `taskyard config` shows. Where values come from (defaults, a TOML file, the
environment, flags) and how faults are gathered is `dispatcher.cli.configure`.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from taskyard.dispatcher.cell.contract import MAX_BATCH, CellConfig
from taskyard.dispatcher.cell.recovery import CARRIED_AGE_MS

Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Permille = Annotated[int, Meta(ge=0, le=1000)]
Port = Annotated[int, Meta(ge=0, le=65_535)]


class TopicSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The topics of the cell."""

    create: Annotated[bool, Meta(description="create topics that are missing; off: only check them")] = True
    partitions: Annotated[Positive, Meta(description="partitions of each topic that is created")] = 4
    replication: Annotated[Positive, Meta(description="copies of each topic that is created")] = 1


class ParkSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the park and the outbox. A full one pauses intake, lowest priority first; Kafka keeps the rest."""

    tasks: Annotated[
        Positive, Meta(description="parked tasks, and those that wait for a retry; passed by less than one batch")
    ] = 1_000_000
    bytes: Annotated[Positive, Meta(description="bytes of parked tasks at most")] = 4 << 30
    outbox: Annotated[Positive, Meta(description="outcomes at most that wait for Kafka")] = 1_000_000
    outbox_bytes: Annotated[Positive, Meta(description="memory at most of outcomes that wait for Kafka")] = 1 << 30
    age_ms: Annotated[Positive, Meta(description="a parked task older than that goes to the dead letter")] = 86_400_000
    unknown_type_age_ms: Annotated[
        Positive, Meta(description="the same once no instance has served its agent type for so long")
    ] = 3_600_000


class RetrySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The wait between attempts: full jitter below a cap that doubles from `base_ms` to `cap_ms`."""

    base_ms: Annotated[Positive, Meta(description="cap of the first wait")] = 1_000
    cap_ms: Annotated[Positive, Meta(description="cap of every wait")] = 60_000


class OrderSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How long a task may be passed by later critical ones, and what is kept free for those."""

    slack_critical_ms: Annotated[Natural, Meta(description="slack of critical tasks")] = 0
    slack_high_ms: Annotated[Natural, Meta(description="slack of high tasks")] = 10_000
    slack_normal_ms: Annotated[Natural, Meta(description="slack of normal tasks")] = 60_000
    slack_low_ms: Annotated[Natural, Meta(description="slack of low tasks")] = 600_000
    headroom_permille: Annotated[Permille, Meta(description="share of the slots that only critical tasks take")] = 50
    hold_after_ms: Annotated[
        Positive, Meta(description="a first task that waits longer gets an instance held for it")
    ] = 30_000


class IntakeSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Reading Kafka and applying batches."""

    batch: Annotated[int, Meta(ge=1, le=MAX_BATCH, description="tasks in one apply call at most")] = 1_000
    batch_bytes: Annotated[Positive, Meta(description="bytes in one apply call, about")] = 4 << 20
    payload_bytes: Annotated[Positive, Meta(description="payload of a task at most")] = 256 << 10
    session_timeout_ms: Annotated[
        int, Meta(ge=1_000, description="a dispatcher silent for longer loses its partitions")
    ] = 6_000
    remember_tasks: Annotated[Positive, Meta(description="finished ids that are known to be repeated")] = 500_000
    remember_ms: Annotated[
        Positive, Meta(description="how long they are known at least, unless remember_tasks / 2 others end sooner")
    ] = 600_000


class TickSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What a dispatcher does from time to time."""

    period_ms: Annotated[Positive, Meta(description="between two settles, evictions and retries")] = 100
    view_ms: Annotated[Positive, Meta(description="between two readings of the free vectors")] = 50
    recall_after_ms: Annotated[
        Positive, Meta(description="a queued task that its instance has not read for longer is taken back")
    ] = 5_000


class RecoverySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What happens when Redis has lost everything: Kafka is read again from the unfinished watermark."""

    automatic: Annotated[bool, Meta(description="recover by itself; off: wait for `taskyard recover --start`")] = True
    grace_ms: Annotated[Natural, Meta(description="before Kafka is read again, so that workers tell what they run")] = (
        10_000
    )
    watermark_ms: Annotated[Positive, Meta(description="between two storings of the unfinished watermark")] = 5_000
    carry_after_ms: Annotated[
        int, Meta(ge=2 * CARRIED_AGE_MS, description="an older unfinished task is kept in the topic of carried ones")
    ] = 600_000


class AuditSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The comparison of what the cell keeps twice, by one dispatcher at a time."""

    mend: Annotated[bool, Meta(description="mend what can be mended; off: only tell")] = True
    round_ms: Annotated[Positive, Meta(description="time of one round over the whole cell, at least")] = 60_000


class HttpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """/live, /ready and /metrics of a dispatcher."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="port to listen on; 0 takes a free one and logs it")] = 8080


class WorkerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The instances of one worker process."""

    slots: Annotated[Positive, Meta(description="tasks that an instance runs at once")] = 8
    instances: Annotated[Positive, Meta(description="instances in this process")] = 1
    lease_ms: Annotated[int, Meta(ge=500, description="an instance silent for longer is evicted")] = 10_000
    drain_ms: Annotated[Natural, Meta(description="time to finish what runs after SIGTERM")] = 30_000
    threads: Annotated[Natural, Meta(description="threads for sync handlers; 0: one per slot")] = 0


class LogSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Logs, to standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="the least that is shown")] = "info"
    format: Annotated[
        Literal["auto", "console", "json"], Meta(description="auto: for a person on a terminal, else JSON")
    ] = "auto"


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set. In the environment: TASKYARD_ and the path in capitals, as in TASKYARD_HTTP_PORT."""

    kafka: Annotated[str, Meta(min_length=1, description="bootstrap servers, host:port,host:port")] = "127.0.0.1:9092"
    redis: Annotated[str, Meta(min_length=1, description="Redis or Valkey, redis://[user:password@]host:port/db")] = (
        "redis://127.0.0.1:6379/0"
    )
    cell: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z", description="name of the cell: its keys and consumer groups")
    ] = "main"
    prefix: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9._-]{0,100}\Z", description="put in front of every topic name")
    ] = ""
    drain_ms: Annotated[Natural, Meta(description="time for a dispatcher to end what it began after SIGTERM")] = 10_000
    topics: TopicSettings = field(default_factory=TopicSettings)
    park: ParkSettings = field(default_factory=ParkSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    order: OrderSettings = field(default_factory=OrderSettings)
    intake: IntakeSettings = field(default_factory=IntakeSettings)
    tick: TickSettings = field(default_factory=TickSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    log: LogSettings = field(default_factory=LogSettings)

    def cell_config(self) -> CellConfig:
        """What the cell itself must know of this."""
        return CellConfig(
            headroom_permille=self.order.headroom_permille,
            parked_limit=self.park.tasks,
            parked_bytes_limit=self.park.bytes,
            outbox_limit=self.park.outbox,
            outbox_bytes_limit=self.park.outbox_bytes,
            retry_base_ms=self.retry.base_ms,
            retry_cap_ms=self.retry.cap_ms,
            unknown_type_age_ms=self.park.unknown_type_age_ms,
            parked_age_ms=self.park.age_ms,
            done_limit=self.intake.remember_tasks,
            done_age_ms=self.intake.remember_ms,
        )

    def slack_ms(self) -> dict[str, int]:
        """Slack by priority, most urgent first."""
        order = self.order
        return {
            "critical": order.slack_critical_ms,
            "high": order.slack_high_ms,
            "normal": order.slack_normal_ms,
            "low": order.slack_low_ms,
        }
