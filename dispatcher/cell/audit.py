"""The audit of a cell on Redis or Valkey: typed calls of `library/audit.lua`."""

from typing import Any

from taskyard.dispatcher.cell.audit_contract import Finding, Page
from taskyard.dispatcher.cell.connection import Connection

_LIMIT = 100
"""Entries or fields of one page, about: some 0.5 ms of the server's time."""
_KEYS = 1_000


class RedisAudit:
    """The contract's AuditCell; without state of its own."""

    def __init__(self, connection: Connection) -> None:
        self._call = connection.call
        self._command = connection.command
        self._root = connection.root

    async def keys(self, cursor: str) -> tuple[str, tuple[str, ...]]:
        """List a page of the cell's keys. Looks at all keys of the server, 1,000 a call."""
        following, names = await self._command("SCAN", cursor or "0", "MATCH", f"{self._root}:*", "COUNT", _KEYS)
        skip = len(self._root) + 1
        return "" if following == b"0" else following.decode(), tuple([_text(name)[skip:] for name in names])

    async def examine(self, walk: str, subject: str = "", cursor: str = "") -> Page:
        """Look at one page of a walk."""
        following, rows, flat, long = await self._call("examine", walk, subject, cursor, _LIMIT)
        counts = {_text(flat[n]): flat[n + 1] for n in range(0, len(flat), 2)}
        is_moved = bool(counts.pop("moved", 0)) if walk == "queue" else False
        return Page(_text(following), _findings(rows), counts, tuple(map(_text, long)), is_moved)

    async def mend(self, finding: Finding) -> tuple[Finding, ...]:
        """Check once more what was found and mend it."""
        return _findings(await self._call("mend", finding.part, finding.subject, finding.at))


def _findings(rows: list[list[Any]]) -> tuple[Finding, ...]:
    return tuple([Finding(*map(_text, row)) for row in rows])


def _text(value: Any) -> str:
    # Whatever another client has written, it must be told; to be mended it must be text.
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
