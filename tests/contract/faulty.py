"""A debug build of the function library that fails at the call it is told to, made from the library's own text."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from taskyard.dispatcher.cell.connection import Connection, Library, OnSent, Word, library
from taskyard.schemas.errors import DependencyError
from tests.contract.raw import Raw, changed, raw_of

_CALL = re.compile(r"\bredis\.(p?call)\b")
_PAGE = re.compile(r"^local PAGE = \d+", re.MULTILINE)
SMALL_PAGE = 3
STEPPED = {"finish", "leave", "evict", "register", "recall", "expire", "remember"}
"""Functions that the library says go in steps."""


def faulty(*, has_small_pages: bool = False) -> Library:
    """Build it, under a name and a prefix of its own, so that it lives beside the library.

    has_small_pages: an instance is taken back SMALL_PAGE entries at a time, so that few make several pages.
    """
    name, prefix = ("taskyard_faulty_pages", "tyfp") if has_small_pages else ("taskyard_faulty", "tyf")
    text = library().text
    if has_small_pages:
        text, found = _PAGE.subn(f"local PAGE = {SMALL_PAGE}", text)
        assert found == 1, "the library says elsewhere how large a page is"
    calls = Path(__file__).with_name("faulty.lua").read_text() + _CALL.sub(r"faulty.\1", text)
    calls = re.sub(r"'(?:ty1|tyf)_", f"'{prefix}_", calls)
    return Library(name, prefix, library().build, calls)


class FaultyConnection(Connection):
    """A connection whose calls of the library can be made to fail."""

    def __init__(self, url: str, cell: str, *, has_small_pages: bool = False) -> None:
        super().__init__(url, cell, functions=faulty(has_small_pages=has_small_pages))

    async def arm(self, k: int) -> int:
        """Let the k-th `redis.call` from now on fail, 0: none. Returns how many were made since the last arm."""
        return int(await self._direct("arm", k))

    async def raw(self) -> Raw:
        """Read all keys of the cell, in one moment."""
        return raw_of(await self._direct("raw"))

    async def keep(self) -> None:
        """Keep a copy of all keys of the cell."""
        await self._direct("keep")

    async def restore(self) -> None:
        """Make the cell's keys those of the copy."""
        await self._direct("restore")

    async def _direct(self, function: str, *arguments: Word) -> Any:
        return await Connection.call(self, f"faulty_{function}", *arguments)

    async def writing(self) -> set[str]:
        """Name the library's functions that may write."""
        await self.load()
        found = await self.command("FUNCTION", "LIST", "LIBRARYNAME", self._functions.name)
        functions = dict(zip(found[0][::2], found[0][1::2], strict=True))[b"functions"]
        told = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in functions]
        names = {row[b"name"].decode().split("_", 1)[1] for row in told if b"no-writes" not in row[b"flags"]}
        return {name for name in names if not name.startswith("faulty_")}


def is_fault(error: DependencyError) -> bool:
    """Whether this is the failure that was asked for."""
    return "FAULT at call" in str(error)


class TornConnection(FaultyConnection):
    """Every call that writes fails once, at a place that `choose` gives, has then changed nothing, and is repeated.

    One that has stopped between two steps is undone first.
    """

    choose: Callable[[int], int] | None = None
    """Of how many calls -> at which to fail. Set by the test; without it nothing fails."""
    on_stop: Callable[[], Awaitable[None]]
    """Called where a function that goes in steps has stopped between them. Set by the test."""
    _functions_that_write: set[str] | None = None

    async def call(self, function: str, *arguments: Word, on_sent: OnSent | None = None) -> Any:
        """Call it as if nothing had happened."""
        if self._functions_that_write is None:
            self._functions_that_write = await self.writing()
        if self.choose is None or function not in self._functions_that_write:
            return await super().call(function, *arguments, on_sent=on_sent)
        before = await self.raw()
        k = self.choose(await self._calls_of(function, *arguments))
        await self.arm(k)
        try:
            return await super().call(function, *arguments)
        except DependencyError as error:
            after = await self.raw()
            if not is_fault(error):
                assert after == before
                raise
            if difference := changed(before, after):
                assert function in STEPPED, f"{function} failing at call {k} has changed {difference}"
                # The steps that were done do not count again: the repeated call may do more than the one that failed.
                await self.on_stop()
                await self.restore()
        finally:
            await self.arm(0)
        return await super().call(function, *arguments)

    async def _calls_of(self, function: str, *arguments: Word) -> int:
        await self.keep()
        await self.arm(0)
        try:
            await super().call(function, *arguments)
        except DependencyError:
            return 1  # it will refuse again
        finally:
            await self.restore()
        return await self.arm(0)
