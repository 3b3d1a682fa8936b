"""The demo on the screen: a live page on a terminal, a line a second elsewhere."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape

from taskyard.dispatcher.cli.rehearsal.figures import spread
from taskyard.dispatcher.cli.rehearsal.rehearsal import Rehearsal
from taskyard.dispatcher.cli.terminal import duration, table
from taskyard.schemas.priority import PRIORITIES

_DRAW_S = 0.25
_LINE_S = 1.0
_RATE_S = 3.0
_BAR = 24


class Phase(NamedTuple):
    """What is going on. ends_s: monotonic; 0 if it has no set end. note: shown beside it."""

    name: str
    ends_s: float = 0.0


class Screen:
    """Draws a rehearsal until it is told to stop. phase: set by the owner. note: asked for at each drawing."""

    def __init__(self, console: Console, note: Callable[[], str]) -> None:
        self.phase = Phase("starting")
        self.lag: dict[str, int] | None = None  # set by the owner's loop
        self._console = console
        self._note = note
        self._ended: deque[tuple[float, int]] = deque()  # (mono_s, tasks ended until then)

    def tell(self, text: str) -> None:
        """Print a line above the page."""
        self._console.print(f"[yellow]{time.strftime('%H:%M:%S')}[/] {escape(text)}", soft_wrap=True)

    async def run(self, at: Rehearsal) -> None:
        """Draw for ever."""
        if not self._console.is_terminal:
            while True:
                await asyncio.sleep(_LINE_S)
                self._console.print(self._line(at), soft_wrap=True)
        with self._live() as live:
            while True:
                live.update(self._page(at), refresh=True)
                await asyncio.sleep(_DRAW_S)

    @contextlib.contextmanager
    def _live(self) -> Generator[Live]:
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            yield live

    def _rate(self, at: Rehearsal) -> float:
        now_s, ended = time.monotonic(), len(at.account.ended)
        self._ended.append((now_s, ended))
        while now_s - self._ended[0][0] > _RATE_S:
            self._ended.popleft()
        first_s, first = self._ended[0]
        return (ended - first) / (now_s - first_s) if now_s > first_s else 0.0

    def _heading(self) -> str:
        left_s = self.phase.ends_s - time.monotonic()
        left = f", {duration(max(0.0, left_s) * 1000)} left" if self.phase.ends_s else ""
        note = self._note()
        return f"{self.phase.name}{left}" + (f" · {note}" if note else "")

    def _line(self, at: Rehearsal) -> str:
        account, last = at.account, at.gauge.last
        waits = account.recent_waits()
        p99 = " ".join(f"{p} {duration(spread(waits[p]).p99)}" for p in PRIORITIES if p in waits)
        parts = [
            self._heading(),
            f"published {len(account.sent)}, finished {account.succeeded}, dead {account.dead}",
            f"{self._rate(at):.0f}/s",
        ]
        if last:
            used, total = last.used.get("slots", 0), at.gauge.capacity["slots"]
            parts += [
                f"slots {used}/{total} ({used / total:.0%})",
                f"parked {last.parked}, later {last.later}, outbox {last.outbox}",
            ]
        parts += [f"lag {_total(self.lag)}", f"wait p99 {p99 or '-'}", f"up {_up(at)}"]
        return escape(" | ".join(parts))

    def _page(self, at: Rehearsal) -> RenderableType:
        parts: list[RenderableType] = [f"[bold]Taskyard demo[/]  {escape(self._heading())}", ""]
        parts += [self._tasks(at), "", self._priorities(at), "", self._types(at)]
        faults = [fault for fault in (at.gauge.fault, at.load.fault) if fault]
        parts += [f"[red]{escape(fault)}[/]" for fault in faults]
        return Group(*parts)

    def _tasks(self, at: Rehearsal) -> str:
        account, last = at.account, at.gauge.last
        level = f"parked {last.parked:,}   later {last.later:,}   outbox {last.outbox:,}" if last else ""
        return (
            f"[bold]tasks[/]      published {len(account.sent):,}   finished {account.succeeded:,}   "
            f"dead {account.dead:,}   open {account.open:,}   {self._rate(at):,.0f} finished/s\n"
            f"[bold]waiting[/]    {level}\n"
            f"[bold]processes[/]  {_up(at)}   [dim]kill -9 any: {_pids(at)}[/]"
        )

    def _priorities(self, at: Rehearsal) -> RenderableType:
        waits = at.account.recent_waits()
        rows: list[tuple[str, ...]] = []
        for priority in PRIORITIES:
            found = spread(waits.get(priority, ()))
            lag = "-" if self.lag is None else f"{self.lag[priority]:,}"
            shown = (duration(found.p50), duration(found.p99)) if found.size else ("-", "-")
            rows.append((priority, lag, *shown, f"{found.size:,}"))
        return table("priority", ">lag", ">wait p50", ">wait p99", ">started, last 5 s", rows=rows)

    def _types(self, at: Rehearsal) -> RenderableType:
        last = at.gauge.last
        if last is None:
            return ""
        rows: list[tuple[str, ...]] = []
        for agent_type, (used, total) in sorted(last.slots_by_type.items()):
            parked = last.parked_by_type.get(agent_type, 0)
            queued = max(0, at.account.open_by_type[agent_type] - parked)
            rows.append((agent_type, f"{used}/{total}", _bar(used, total), f"{queued:,}", f"{parked:,}"))
        used, total = last.used.get("slots", 0), at.gauge.capacity["slots"]
        rows.append(("[bold]fleet[/]", f"[bold]{used}/{total}[/]", _bar(used, total), "", f"{last.parked:,}"))
        return table("agent type", ">slots", "utilisation", ">queued or running", ">parked", rows=rows)


def _bar(used: int, total: int) -> str:
    share = min(1.0, used / total) if total else 0.0
    full = round(share * _BAR)
    style = "green" if share < 0.85 else "yellow" if share < 0.97 else "red"
    return f"[{style}]{'█' * full}[/][dim]{'·' * (_BAR - full)}[/] {share:4.0%}"


def _total(lag: dict[str, int] | None) -> str:
    return "-" if lag is None else f"{sum(lag.values()):,}"


def _pids(at: Rehearsal) -> str:
    return ", ".join(f"{name} {' '.join(map(str, pids))}" for name, pids in at.pids().items() if pids)


def _up(at: Rehearsal) -> str:
    shown: list[str] = []
    for kind in ("dispatcher", "worker"):
        up, wanted = at.processes.up(kind)
        shown.append(f"{up}/{wanted} {kind}s")
    return ", ".join(shown)
