"""What goes to the terminal: results to standard output, everything else to standard error.

Colours, wrapping and live views only where the stream is a terminal (rich also honours NO_COLOR); piped output has one
line per row, whatever its width.
"""

import sys
from collections.abc import Sequence
from functools import cache
from typing import TextIO

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_WIDE = 100_000


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the caller: rich would end the process here."""
        raise  # noqa: PLE0704 - called from the handler of the BrokenPipeError


def out() -> Console:
    """The console of results."""
    return _console(sys.stdout)


def err() -> Console:
    """The console of progress, warnings and errors."""
    return _console(sys.stderr)


@cache
def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() else _WIDE
    return _Console(file=stream, width=width, highlight=False, emoji=False)


def warn(text: str) -> None:
    """Show something that goes on all the same but that a person should see."""
    err().print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)


def fail(text: str) -> None:
    """Show why the command ends without success."""
    err().print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)


def table(*columns: str, rows: Sequence[Sequence[object]]) -> Table:
    """Make a table without lines. A column whose name starts with `>` is right-aligned. Cells are markup."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        is_number = name.startswith(">")
        made.add_column(name.removeprefix(">"), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(str, row))
    return made


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def duration(ms: float) -> str:
    """Write a length of time as a person would say it, two units at most."""
    if ms < 0:
        return "-" + duration(-ms)
    if ms < 1_000:
        return f"{ms:.0f} ms"
    seconds = ms / 1_000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def size(count: int) -> str:
    """Write a number of bytes with a binary unit."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
