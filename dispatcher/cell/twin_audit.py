"""The audit of the twin: it keeps most things once, so little can be wrong, and nothing of it can be mended."""

from taskyard.dispatcher.cell import twin_headroom as headroom
from taskyard.dispatcher.cell.audit_contract import Finding, Page
from taskyard.dispatcher.cell.twin_view import TwinView


class TwinAudit(TwinView):
    """The contract's AuditCell: queues against vectors and places. All else is derived when it is asked for."""

    async def keys(self, cursor: str) -> tuple[str, tuple[str, ...]]:  # noqa: ARG002 - the contract's
        """List the queues: the twin has no other keys."""
        return "", tuple(f"q:{name}" for name in self._state.instances)

    async def examine(self, walk: str, subject: str = "", cursor: str = "") -> Page:  # noqa: ARG002 - all in one page
        """Look at all instances, or at one queue; other walks find nothing."""
        names = {"instances": list(self._state.instances), "queue": [subject]}.get(walk, [])
        return Page("", tuple([finding for name in names for finding in await self._found(name)]))

    async def _found(self, name: str) -> list[Finding]:
        drift = await self.audit(name)
        wrong = {resource: units for resource, units in drift.used.items() if units}
        found = [Finding("used", "used", name, "", "", f"{wrong} more than on the queue")] if wrong else []
        live = self._state.instances.get(name)
        if live and not headroom.is_rounded(self._state, live):
            found.append(Finding("vector", "instance", name, "", "", "its headroom is not of its registration"))
        if drift.misplaced:
            found.append(Finding("misplaced", "queue", name, "", "", f"{drift.misplaced} entries"))
        return found

    async def mend(self, finding: Finding) -> tuple[Finding, ...]:  # noqa: ARG002 - a bug of the twin stays visible
        """Mend nothing."""
        return ()
