"""The dispatcher's metrics. Their names are a contract: dashboards and alerts use them."""

from collections import Counter as Count
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from taskyard.schemas.priority import PRIORITIES

_OUTCOMES = {"1": "placed", "2": "placed", "3": "placed", "o": "placed", "p": "parked", "k": "known", "x": "dead"}
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """One registry for each dispatcher; children with labels are kept where they are used for each task."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.tasks_applied = Counter(
            "taskyard_tasks_applied", "Tasks that took effect", ["priority", "outcome"], registry=registry
        )
        self.refused = Counter(
            "taskyard_records_refused", "Records sent to the dead letter at intake", ["priority", "reason"],
            registry=registry,
        )  # fmt: skip
        self.fenced = Counter(
            "taskyard_batches_fenced", "Batches refused because their partition stands elsewhere", ["priority"],
            registry=registry,
        )  # fmt: skip
        self.apply_seconds = Histogram(
            "taskyard_apply_seconds", "Round trip of one apply call", buckets=_SECONDS, registry=registry
        )
        self.lag = Gauge(
            "taskyard_intake_lag_records", "Records that are not applied yet", ["priority", "partition"],
            registry=registry,
        )  # fmt: skip
        self.paused = Gauge(
            "taskyard_intake_paused", "1 while a full park or outbox keeps the priority waiting", ["priority"],
            registry=registry,
        )  # fmt: skip
        wait = Histogram(
            "taskyard_wait_seconds", "From Kafka to the start of the last attempt, of succeeded tasks", ["priority"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        # Each task adds to one of them, and looking a label up takes as long as counting.
        self.wait = {priority: wait.labels(priority) for priority in PRIORITIES}
        self.outcomes = Counter("taskyard_outcomes_published", "Outcomes published", ["kind"], registry=registry)
        self.failures = Counter(
            "taskyard_loop_failures", "Times a loop could not reach Kafka or the cell", ["loop"], registry=registry
        )
        self._of_the_cell(registry)
        self._of_recovery(registry)

    def _of_the_cell(self, registry: CollectorRegistry) -> None:
        self.parked = Gauge("taskyard_parked_tasks", "Tasks that are parked", registry=registry)
        self.parked_bytes = Gauge("taskyard_parked_bytes", "Bytes of parked tasks", registry=registry)
        self.later = Gauge("taskyard_later_tasks", "Tasks that wait for their next attempt", registry=registry)
        self.outbox = Gauge("taskyard_outbox_entries", "Outcomes that wait for Kafka", registry=registry)
        self.utilisation = Gauge("taskyard_utilisation_ratio", "Slots used, of all", registry=registry)
        self.instances = Gauge("taskyard_instances", "Instances", ["state"], registry=registry)
        self.moved = Counter(
            "taskyard_tasks_moved", "Tasks moved by the tick: settled, due, expired, evicted, recalled", ["by"],
            registry=registry,
        )  # fmt: skip

    def _of_recovery(self, registry: CollectorRegistry) -> None:
        self.begun = Gauge(
            "taskyard_cell_begun", "0 while the cell takes no tasks because it has no history", registry=registry
        )
        self.recoveries = Counter(
            "taskyard_recoveries",
            "Recoveries of a cell that had lost everything",
            registry=registry,
        )
        self.carried = Counter(
            "taskyard_tasks_carried", "Old unfinished tasks copied to the topic of carried ones", registry=registry
        )
        self.watermark_age = Gauge(
            "taskyard_watermark_age_seconds",
            "Age of the oldest unfinished task, about",
            registry=registry,
        )
        self.watermark_behind = Gauge(
            "taskyard_watermark_behind_records", "Records that would be read again if the cell were lost",
            registry=registry,
        )  # fmt: skip
        self.lost = Counter(
            "taskyard_records_lost", "Records gone from Kafka before or after they were applied: retention, truncation",
            ["priority", "by"], registry=registry,
        )  # fmt: skip

    def applied(self, priority: str, results: str) -> None:
        """Count the results of one batch."""
        for result, count in Count(results).items():
            self.tasks_applied.labels(priority, _OUTCOMES[result]).inc(count)

    def published(self, kinds: Iterable[str]) -> None:
        """Count a page of the outbox by kind."""
        for kind, count in Count(kinds).items():
            self.outcomes.labels(kind).inc(count)
