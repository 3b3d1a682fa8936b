"""The cell as an auditor sees it when all is over: what is left in it."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from taskyard.compose.valkey import Valkey
from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import Incarnation
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.cell.view import RedisView
from taskyard.schemas.errors import DependencyError


class Ledger:
    """Reads the cell straight from a server, past any proxy. server: the one that is the primary now."""

    def __init__(self, server: Valkey, cell: str) -> None:
        self.server = server
        self._cell = cell

    async def left(self) -> dict[str, int]:
        """Count what is still there, by name; every count is 0 once no task is under way."""
        async with self._connected() as connection:
            view = RedisView(connection)
            level = await view.level()
            places = await connection.command("HLEN", f"{connection.root}:where")
            found = {"parked": level.parked, "parked bytes": level.parked_bytes, "later": level.later}
            found |= {"outbox": level.outbox, "places": int(places), "drift": 0, "misplaced": 0, "queued": 0}
            for instance in await view.instances():
                drift = await view.audit(instance.id)
                found["drift"] += sum(map(abs, drift.used.values()))
                found["misplaced"] += drift.misplaced
                found["queued"] += len(await view.queue(instance.id, count=1_000))
            return found

    async def applied(self, lives: Sequence[Incarnation]) -> dict[Incarnation, int]:
        """Read up to which offset each partition's life was applied."""
        async with self._connected() as connection:
            return await RedisCell(connection).applied(lives)

    async def is_quiet(self) -> bool:
        """Whether nothing is left; False if the server does not answer."""
        try:
            return not any((await self.left()).values())
        except DependencyError:
            return False

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[Connection]:
        connection = Connection(self.server.url, self._cell)
        try:
            yield connection
        finally:
            await connection.close()
