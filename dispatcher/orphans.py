"""Orphans: copies of carried tasks that nobody will delete, and that a total loss would bring back.

A carrier was cut off after it had published a copy and before the cell had noted it, and then the task ended. Whoever
begins to carry looks for them once. A task that the cell does not know has ended, unless the cell has gone back to
before it was applied. Then its record is read again, but a watermark that was stored before may have passed it already,
and its copy is all that a loss would leave. So nothing is said before all stored marks are below what is applied.
"""

from taskyard.dispatcher.cell.contract import CellConfig, DispatcherCell
from taskyard.dispatcher.clients import History
from taskyard.schemas.entry import decode_entry
from taskyard.schemas.errors import SchemaError

_AT_ONCE = 1_000


async def orphans(cell: DispatcherCell, history: History, config: CellConfig, *, before_ms: int) -> list[str] | None:
    """Return the ids whose copies are orphans, among tasks that arrived before then; None: not to be told now.

    A task that lives is noted as carried: its copy is there. Raises DependencyError. Cost: reads the whole topic.
    """
    opening = await cell.open(config)
    if not opening.is_begun or opening.replaying or await _has_gone_back(cell, history):
        return None
    ids = [name for entry in await history.carried() if (name := _id_of(entry, before_ms))]
    found: list[str] = []
    for first in range(0, len(ids), _AT_ONCE):
        page = ids[first : first + _AT_ONCE]
        found += [name for name, is_alive in zip(page, await cell.carry(page), strict=True) if not is_alive]
    return found if await cell.open(config) == opening else None


async def _has_gone_back(cell: DispatcherCell, history: History) -> bool:
    """Whether a stored mark is above what is applied."""
    extents = await history.extents()
    marks = {name: mark.offset for name, mark in (await history.marks()).items() if name in extents}
    stand = await cell.applied(list(marks))
    return any(offset > stand.get(name, extents[name].begin) for name, offset in marks.items())


def _id_of(entry: bytes, before_ms: int) -> str:
    try:
        found = decode_entry(entry)
    except SchemaError:
        return ""  # `Recovery` tells of those
    return found.id if found.arrived_ms < before_ms else ""
