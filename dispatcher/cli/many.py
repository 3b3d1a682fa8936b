"""Publishing a stream of tasks: many on the way at once, every bad line told, every acknowledged id printed."""

import asyncio
import os
import stat
import sys
from types import TracebackType
from typing import Self

from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn

from taskyard.dispatcher.cli.lines import Line, Lines
from taskyard.dispatcher.cli.terminal import err, fail
from taskyard.dispatcher.settings import Settings
from taskyard.producers.kafka import Acknowledgement
from taskyard.producers.producer import Producer
from taskyard.schemas.errors import ConfigError, DependencyError, SchemaError
from taskyard.schemas.limits import Limits
from taskyard.schemas.task import Task

# Sent and not acknowledged yet: a few batches for each partition.
_ON_THE_WAY = 5_000
_TOLD_EVERY = 500


async def publish_file(settings: Settings, name: str) -> int:
    """Publish the tasks of a file of JSON lines, or of standard input for `-`. Returns the exit code.

    Raises ConfigError if there is no such file; DependencyError, with how many were acknowledged, if Kafka fails.
    """
    limits = Limits(payload_bytes=settings.intake.payload_bytes)
    descriptor = _opened(name)
    try:
        async with Producer(settings.kafka, prefix=settings.prefix, limits=limits) as producer:
            stream = _Stream(producer, "standard input" if name == "-" else name)
            lines = Lines(descriptor)
            with _Meter(lines, descriptor) as meter:
                await stream.run(lines, meter)
    finally:
        if name != "-":
            os.close(descriptor)
    if stream.bad:
        fail(f"{stream.bad} bad lines were skipped, {stream.published} tasks were published")
    return 1 if stream.bad else 0


class _Stream:
    """Tasks on their way: one task sends, another waits for the acknowledgements in the same order."""

    def __init__(self, producer: Producer, source: str) -> None:
        self._producer = producer
        self._source = source
        self._waiting: asyncio.Queue[tuple[str, Acknowledgement] | None] = asyncio.Queue(_ON_THE_WAY)
        self.published = 0  # written by `_acknowledge`
        self.bad = 0  # written by `_send`

    async def run(self, lines: Lines, meter: "_Meter") -> None:
        """Publish all lines. Raises DependencyError, within a group, that says how many were acknowledged."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(lines), name="send")
            group.create_task(self._acknowledge(meter), name="acknowledge")

    async def _send(self, lines: Lines) -> None:
        async for line in lines.read():
            await self._line(line)
        await self._waiting.put(None)

    async def _line(self, line: Line) -> None:
        if line.task is not None:
            fault = await self._sent(line.task)
        else:
            fault = line.fault
        if fault:
            self.bad += 1
            fail(f"{self._source}, line {line.number}: {fault}")

    async def _sent(self, task: Task) -> str:
        try:
            acknowledgement = await self._producer.send(task)
        except SchemaError as error:
            return str(error)
        await self._waiting.put((task.id, acknowledgement))
        return ""

    async def _acknowledge(self, meter: "_Meter") -> None:
        while sent := await self._waiting.get():
            task_id, acknowledgement = sent
            try:
                await acknowledgement
            except DependencyError as error:
                raise DependencyError(f"{error} ({self.published} tasks were published before)") from error
            self.published += 1
            print(task_id, flush=self._waiting.empty())
            if self.published % _TOLD_EVERY == 0:
                meter.tell(self.published)


class _Meter:
    """Progress on standard error; nothing unless that is a terminal to which no ids are printed."""

    def __init__(self, lines: Lines, descriptor: int) -> None:
        self._lines = lines
        status = os.fstat(descriptor)
        self._total = status.st_size if stat.S_ISREG(status.st_mode) else None
        columns = (TextColumn("{task.fields[count]:,} published"), TextColumn("{task.fields[share]}"))
        is_off = not sys.stderr.isatty() or sys.stdout.isatty()
        self._progress = Progress(
            *columns, TimeElapsedColumn(), console=err(), transient=True, redirect_stdout=False, disable=is_off
        )
        self._bar: TaskID = self._progress.add_task("", total=self._total, count=0, share="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tell(self, published: int) -> None:
        """Show how far it has come."""
        share = f"{100 * self._lines.read_bytes / self._total:.0f} % read" if self._total else ""
        self._progress.update(self._bar, count=published, share=share)


def _opened(name: str) -> int:
    if name == "-":
        return sys.stdin.fileno()
    try:
        return os.open(name, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"{name} cannot be opened: {error.strerror}") from error
