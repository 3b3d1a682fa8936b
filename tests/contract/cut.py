"""Ways to lose the last moments of a server: a link to a replica that is cut, and a file that ends early."""

import asyncio
import contextlib
import shutil
from pathlib import Path

from taskyard.compose.process import free_port

_CHUNK_BYTES = 65_536


class Link:
    """A replica's connection to its primary, which ends after a number of bytes: what comes later is lost."""

    def __init__(self, primary_port: int) -> None:
        self.port = free_port()
        self._primary_port = primary_port
        # Written by cut_after and by the pump that counts down.
        self._left: int | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Let the replica connect."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    def cut_after(self, size_bytes: int) -> None:
        """End the connection once so many more bytes have gone to the replica; it comes to no other."""
        self._left = size_bytes

    async def stop(self) -> None:
        """End what is left of it."""
        self._close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _close(self) -> None:
        # At once: a replica that is cut off would find the primary again here.
        if self._server:
            self._server.close()

    async def _connected(self, replica: asyncio.StreamReader, to_replica: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        primary, to_primary = await asyncio.open_connection("127.0.0.1", self._primary_port)
        up = asyncio.create_task(self._pump(replica, to_primary), name="link-up")
        try:
            await self._pump_down(primary, to_replica)
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
            to_replica.close()
            to_primary.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                writer.write(data)
                await writer.drain()

    async def _pump_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if self._left is None:
                    writer.write(data)
                else:
                    writer.write(data[: self._left])
                    self._left = max(0, self._left - len(data))
                await writer.drain()
                if self._left == 0:
                    self._close()
                    return


def appended(directory: Path) -> Path:
    """The file in which a server notes what it writes."""
    [path] = (directory / "appendonlydir").glob("*.incr.aof")
    return path


def copy_cut(directory: Path, to: Path, size_bytes: int) -> None:
    """Copy a server's files to where another one starts, the file of its writes cut after so many bytes."""
    shutil.rmtree(to / "appendonlydir", ignore_errors=True)
    shutil.copytree(directory / "appendonlydir", to / "appendonlydir")
    with appended(to).open("r+b") as file:
        file.truncate(size_bytes)
