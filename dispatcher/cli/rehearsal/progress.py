"""The progress of a replay: a bar on a terminal, a line every five seconds elsewhere."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from taskyard.dispatcher.cli.rehearsal.rehearsal import Rehearsal

_DRAW_S = 0.25
_LINE_S = 5.0


class Progress:
    """Writes to one console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def tell(self, line: str) -> None:
        """Print a line for a person."""
        self._console.print(f"[dim]{escape(line)}[/]", soft_wrap=True)

    @contextlib.asynccontextmanager
    async def shown(self, at: Rehearsal, total: int) -> AsyncGenerator[None]:
        """Show how far a run of `total` tasks is, while the block runs."""
        show = self._bar if self._console.is_terminal else self._lines
        async with asyncio.TaskGroup() as group:
            loop = group.create_task(show(at, total), name="progress")
            yield
            loop.cancel()

    async def _lines(self, at: Rehearsal, total: int) -> None:
        while True:
            await asyncio.sleep(_LINE_S)
            self.tell(f"{len(at.account.ended):,} of {total:,} tasks ended, {_level(at)}")

    async def _bar(self, at: Rehearsal, total: int) -> None:
        text = TextColumn("{task.completed:,.0f} of {task.total:,.0f} tasks ended, {task.description}")
        with Bars(BarColumn(30), text, TimeElapsedColumn(), console=self._console, transient=True) as bars:
            bar = bars.add_task("", total=total)
            while True:
                bars.update(bar, completed=len(at.account.ended), description=escape(_level(at)))
                await asyncio.sleep(_DRAW_S)


def _level(at: Rehearsal) -> str:
    last, account = at.gauge.last, at.account
    shown = f"{account.open:,} open"
    if last is not None:
        shares = {name: last.used.get(name, 0) / units for name, units in at.gauge.capacity.items() if units}
        name = max(shares, key=lambda name: shares[name])
        shown += f", {last.parked:,} parked, {last.outbox:,} in the outbox, {shares[name]:.0%} of {name} used"
    fault = at.gauge.fault or at.load.fault
    return f"{shown}, {fault}" if fault else shown
