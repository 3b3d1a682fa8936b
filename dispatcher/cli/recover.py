"""`taskyard recover`: from where a lost cell would be read again; starts that where it does not start by itself."""

import asyncio
import secrets
import time
from typing import Annotated, Any, NamedTuple

import msgspec
from cyclopts import Parameter
from rich.markup import escape

from taskyard.dispatcher.cell.contract import Incarnation
from taskyard.dispatcher.cell.redis import RedisCell
from taskyard.dispatcher.cli import logs
from taskyard.dispatcher.cli.flags import NONE, Common, settings_of
from taskyard.dispatcher.cli.overview import Reading, reading
from taskyard.dispatcher.cli.terminal import duration, err, out, print_json, table
from taskyard.dispatcher.kafka.history import Extent, Mark, TopicHistory
from taskyard.dispatcher.kafka.producer import TopicProducer
from taskyard.dispatcher.kafka.published import count_since
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.recovery import Recovery, Replay, replay_of
from taskyard.dispatcher.service import watermark_group
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.topics import topics

_STEP_S = 0.5


def recover(
    *,
    start: Annotated[
        bool, Parameter(help="recover a cell that has lost its history, and wait until it has begun")
    ] = False,
    json: Annotated[bool, Parameter(help="one line of JSON")] = False,
    common: Common = NONE,
) -> None:
    """Show whether the cell has its history, and from where Kafka would be read again if Redis lost everything.

    The watermark of a partition is an offset that no unfinished task is below. Dispatchers recover a lost cell by
    themselves, unless recovery.automatic is off: then `--start` does it.
    """
    settings = settings_of(common)
    asyncio.run(_recover(settings, is_start=start, is_json=json))


class Prospect(NamedTuple):
    """The cell and its topics at one moment. outcomes: records of `results` and `dead-letter` that would be read."""

    cell: str
    generation: str
    is_begun: bool
    extents: dict[Incarnation, Extent]
    marks: dict[Incarnation, Mark]
    applied: dict[Incarnation, int]
    replay: Replay
    outcomes: int

    @property
    def age_ms(self) -> int | None:
        """How long ago the oldest unfinished task had arrived, about; None if no watermark was measured yet."""
        since_ms = min((mark.since_ms for mark in self.marks.values()), default=0)
        return max(0, int(time.time() * 1000) - since_ms) if since_ms else None

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "cell": self.cell,
            "generation": self.generation,
            "begun": self.is_begun,
            "watermark_age_ms": self.age_ms,
            "records": self.replay.records,
            "outcomes": self.outcomes,
            "partitions": [self._partition(name, extent) for name, extent in self.extents.items()],
        }

    def _partition(self, name: Incarnation, extent: Extent) -> dict[str, Any]:
        applied, mark = self.applied.get(name), self.marks.get(name)
        watermark = mark.offset if mark else None
        lag = extent.end - (extent.begin if applied is None else applied)
        return {**extent._asdict(), "id": name, "watermark": watermark, "applied": applied, "lag": max(0, lag)}


async def _recover(settings: Settings, *, is_start: bool, is_json: bool) -> None:
    history = TopicHistory(settings.kafka, topics(settings.prefix), group=watermark_group(settings.cell))
    try:
        async with reading(settings) as at:
            found = await _prospect(settings, at, history)
            if is_start and not found.is_begun:
                await _start(settings, at, history, found)
                found = await _prospect(settings, at, history)
            elif is_start:
                err().print("nothing to be done: the cell has its history")
    finally:
        await history.close()
    if is_json:
        print_json(found.as_json())
    else:
        _print(found, settings)


async def _prospect(settings: Settings, at: Reading, history: TopicHistory) -> Prospect:
    """Read all of it; nothing is written. Raises DependencyError."""
    extents = await history.extents()
    marks = await history.marks()
    applied = await RedisCell(at.connection).applied(list(extents))
    replay = replay_of(extents, marks)
    names = topics(settings.prefix)
    outcomes = await count_since(settings.kafka, [names.results, names.dead_letter], replay.since_ms) if marks else 0
    generation, is_begun = await at.generation(), await at.is_begun()
    return Prospect(settings.cell, generation, is_begun, extents, marks, applied, replay, outcomes)


async def _start(settings: Settings, at: Reading, history: TopicHistory, found: Prospect) -> None:
    """Recover here, as a dispatcher would; one that is at it already is waited for."""
    logs.configure(settings.log)  # to standard error: what it finds and does is told there
    grace = duration(settings.recovery.grace_ms)
    err().print(f"waits {grace} for the workers, then reads {found.outcomes:,} outcomes; Ctrl-C leaves it as it is")
    wanted = msgspec.structs.replace(settings.recovery, automatic=True)
    own = msgspec.structs.replace(settings, recovery=wanted)
    recovery = Recovery(
        RedisCell(at.connection),
        history,
        TopicProducer(own.kafka),
        own,
        Metrics(),
        secrets.token_hex(8),
        asyncio.Event(),
    )
    try:
        await recovery.step()
        while not recovery.is_begun:
            await asyncio.sleep(_STEP_S)
            await recovery.step()
    finally:
        await recovery.stop()


def _print(found: Prospect, settings: Settings) -> None:
    console = out()
    console.print(f"[bold]cell[/]       {escape(found.cell)}: {_state(found, settings)}")
    if found.marks:
        age = "as the cell began" if found.age_ms is None else f"of {duration(found.age_ms)} ago"
        console.print(f"[bold]watermark[/]  {age}: no unfinished task arrived earlier")
        would = "would be" if found.is_begun else "are"
        what = (
            f"{found.replay.records:,} records {would} read again, {found.outcomes:,} outcomes to know what has ended"
        )
        console.print(f"[bold]replay[/]     {what}", soft_wrap=True)
    else:
        console.print("[bold]watermark[/]  none is stored yet: a cell that is lost now is read from the beginning")
    rows = [
        tuple("-" if row[column] is None else escape(f"{row[column]:,}" if column != "topic" else row[column])
              for column in ("topic", "partition", "begin", "watermark", "applied", "end", "lag"))
        for row in found.as_json()["partitions"]
    ]  # fmt: skip
    console.print()
    console.print(table("topic", ">partition", ">begins", ">watermark", ">applied", ">end", ">lag", rows=rows))


def _state(found: Prospect, settings: Settings) -> str:
    if found.is_begun:
        return f"has its history, generation {found.generation}"
    if not found.marks:
        return "[yellow]is new; the next dispatcher begins it[/]"
    if settings.recovery.automatic:
        return "[red]has lost its history; a dispatcher recovers it[/]"
    return "[red]has lost its history; `taskyard recover --start` recovers it[/]"
