"""The auditor: compares what the cell keeps twice, slowly and all the time, by one dispatcher of the cell at a time.

Nothing should ever be found: whatever is, is a bug or damage from outside, and is told even if it could be mended.
Two at once do no harm, as the command `taskyard audit` beside a dispatcher: both count what they find.
"""

import time

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from taskyard.dispatcher.cell.audit_contract import KINDS, AuditCell, Finding
from taskyard.dispatcher.cell.contract import DispatcherCell
from taskyard.dispatcher.inspection import Found, Inspection
from taskyard.dispatcher.lease import Lease

log = structlog.get_logger()

PAUSE_S = 0.25
"""Between two steps."""
_LEASE_MS = 5_000
# Pages of one step at most: about 0.7 ms of the server's time each, so 5 % of it. A large cell's round takes longer.
_PAGES = 20
# What a first round is taken to have: one that has fewer ends early.
_FIRST = 2_000

ADVICE = {
    "lost": "only Kafka has the task: its place is kept, so that a recovery replays its record; please report this",
    "overcommitted": "nothing comes onto it until enough has finished; please report this",
    "unreadable": "a worker or dispatcher of another version wrote it; run that version until it has gone",
}
"""What to do about a kind that is not mended."""
_UNMENDED = "mend it with `taskyard audit --mend`, or set audit.mend; please report this"
_MENDED = "it is mended; please report this"


def advice(found: Found) -> str:
    """Say what to do about a finding."""
    return _MENDED if found.is_mended else ADVICE.get(found.finding.kind, _UNMENDED)


class AuditMetrics:
    """Part of the dispatcher's metrics; only the dispatcher that audits moves them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.findings = Counter("taskyard_audit_findings", "What the audit has found", ["kind"], registry=registry)
        self.mended = Counter("taskyard_audit_mended", "What of it was mended", ["kind"], registry=registry)
        self.drift = Gauge("taskyard_audit_drift", "Findings of the last whole round; must read 0", registry=registry)
        self.round_time = Gauge(
            "taskyard_audit_round_timestamp_seconds", "When the last whole round ended, Unix time", registry=registry
        )
        for kind in KINDS:  # so that an alert sees the first one as an increase
            self.findings.labels(kind)
            self.mended.labels(kind)


class Auditor:
    """Run by one asyncio task, a step every PAUSE_S. owner: this dispatcher's random name, for the lease."""

    def __init__(
        self,
        cell: DispatcherCell,
        audit: AuditCell,
        metrics: AuditMetrics,
        owner: str,
        *,
        round_ms: int,
        is_mending: bool,
    ) -> None:
        self._audit = audit
        self._metrics = metrics
        self._lease = Lease(cell, "audit", owner, _LEASE_MS)
        self._round_s = round_ms / 1000
        self._is_mending = is_mending
        self._round: Inspection | None = None
        self._told = 0
        self._began_s = -self._round_s
        self._expected = _FIRST
        self._known: set[Finding] = set()

    async def step(self) -> None:
        """Look at as many pages as are due, if the lease is ours. Raises DependencyError."""
        if not await self._lease.held():
            self._round = None
            self._metrics.drift.set(0)  # whoever audits tells it
            return
        now_s = time.monotonic()
        if self._round is None:
            if now_s < self._began_s + self._round_s:
                return
            self._round, self._told, self._began_s = Inspection(self._audit, is_mending=self._is_mending), 0, now_s
        share = (now_s - self._began_s + PAUSE_S) / self._round_s
        await self._look(self._round, min(_PAGES, int(share * self._expected) + 1 - self._round.pages))

    async def stop(self) -> None:
        """Give the lease back, so that another takes over at once."""
        await self._lease.give_back()

    async def _look(self, inspection: Inspection, pages: int) -> None:
        is_more = True
        for _ in range(pages):
            is_more = is_more and await inspection.step()
            self._tell(inspection.found)
        if not is_more:
            self._end(inspection)

    def _tell(self, found: list[Found]) -> None:
        """Count what is new; log it unless it was there in the last round too and stays."""
        for row in found[self._told :]:
            self._metrics.findings.labels(row.finding.kind).inc()
            if row.is_mended:
                self._metrics.mended.labels(row.finding.kind).inc()
            if row.finding not in self._known:
                _log(row)
        self._told = len(found)

    def _end(self, inspection: Inspection) -> None:
        found = inspection.found
        self._known = {row.finding for row in found if not row.is_mended}
        self._metrics.drift.set(len(found))
        self._metrics.round_time.set_to_current_time()
        self._expected = inspection.pages
        self._round = None


def _log(found: Found) -> None:
    finding = found.finding
    tell = log.warning if found.is_mended else log.error
    tell("audit_finding", kind=finding.kind, part=finding.part, subject=finding.subject, at=finding.at,
         task=finding.task, detail=finding.detail, mended=found.is_mended, next=advice(found))  # fmt: skip
