"""The connection to Redis or Valkey: commands, and calls of the function library that is one cell's."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from taskyard.dispatcher.cell.pool import OnSent, Pool, Word
from taskyard.schemas.errors import DependencyError

LIBRARY_FILES = (
    "keys",
    "vector",
    "settings",
    "headroom",
    "entry",
    "front",
    "move",
    "pull",
    "apply",
    "lease",
    "finish",
    "tick",
    "carry",
    "check",
    "index",
    "audit",
)
"""The function library, in the order in which one part uses another."""
_ALONE = frozenset(("tick", "carry", "audit"))
"""Parts that no other uses. Each is a block of its own: of one block's names Lua takes 200."""

_BUILD = 17
"""Of the library's text, from 1: raised with every change of it. A server keeps the newest of those with one name."""

_CALL_TIMEOUT_S = 5.0
_CONNECTIONS = 16


class Library(NamedTuple):
    """A function library. prefix: of its functions' names, the version of their arguments and replies.

    Of two texts under one name the newer build stays, so that old and new dispatchers of a rolling upgrade do not take
    the library from each other. A change of arguments, replies or keys needs another name and prefix: both then live
    side by side.
    """

    name: str
    prefix: str
    build: int
    text: str


def library() -> Library:
    """Read the function library as one text."""
    folder = Path(__file__).with_name("library")
    parts = {name: (folder / f"{name}.lua").read_text() for name in LIBRARY_FILES}
    blocks = [f"do\n{text}end\n" if name in _ALONE else text for name, text in parts.items()]
    return Library("taskyard_v1", "ty1", _BUILD, "\n".join(blocks))


class Connection:
    """A pool of connections to the server that has one cell. Safe for any number of asyncio tasks."""

    def __init__(self, url: str, cell: str, *, functions: Library | None = None) -> None:
        """Connect on first use. Raises ValueError if `url` is not redis://, rediss:// or unix://."""
        self._functions = functions or library()
        self.root = f"ty:{{{cell}}}"
        self._url = url
        self._pool = Pool(url, _CONNECTIONS)
        # One for each reader: a blocked read would keep a connection of the pool.
        self._readers: list[Pool] = []

    async def command(self, *words: Word) -> Any:
        """Run one command. Raises DependencyError if the server does not answer or refuses."""
        return await self._pool.exchange(words, _CALL_TIMEOUT_S)

    async def call(self, function: str, *arguments: Word, on_sent: OnSent | None = None) -> Any:
        """Call a function of the library on this cell; loads the library if the server lost it.

        on_sent: called as soon as the request is written, so that the caller may use the time until the reply.
        """
        words = ("FCALL", f"{self._functions.prefix}_{function}", 1, self.root, *arguments)
        try:
            return await self._pool.exchange(words, _CALL_TIMEOUT_S, on_sent)
        except DependencyError as error:
            if "Function not found" not in str(error):
                raise
        await self.load()
        return await self._pool.exchange(words, _CALL_TIMEOUT_S, on_sent)

    async def load(self) -> None:
        """Load the library, unless it or a newer build is there.

        To load it is a write of 80 KB to the server's log, which a server that has no memory left refuses.
        """
        name, _, build, text = self._functions
        there = await self.loaded()
        if there is None or there[0] < build or (there[0] == build and there[1] != text):
            await self.command("FUNCTION", "LOAD", "REPLACE", f"#!lua name={name}\n-- build {build}\n{text}")

    async def loaded(self) -> tuple[int, str] | None:
        """Ask for the build and the text of the library that the server has; None if it has none of this name."""
        found = await self.command("FUNCTION", "LIST", "LIBRARYNAME", self._functions.name, "WITHCODE")
        if not found:
            return None
        code = dict(zip(found[0][::2], found[0][1::2], strict=True))[b"library_code"].decode()
        _, said, text = code.split("\n", 2)
        build = re.fullmatch(r"-- build (\d+)", said)
        return (int(build[1]), text) if build else (0, code)

    def reader(self, *, block_ms: int) -> Callable[..., Awaitable[Any]]:
        """Return a `command` on a connection of its own, for commands that block for at most block_ms."""
        pool = Pool(self._url, 1)
        self._readers.append(pool)

        async def command(*words: Word) -> Any:
            return await pool.exchange(words, block_ms / 1000 + _CALL_TIMEOUT_S)

        return command

    async def close(self) -> None:
        """Close all connections."""
        for pool in (self._pool, *self._readers):
            await pool.close()
