"""A server that comes back a moment older, as a replica that lagged or from a file that was cut, is of one moment.

State and offset are those after some call of the library, never between; what the cell has not, the log and the
workers still have.
"""

import asyncio
import contextlib
import copy
import itertools
import os
import random
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from taskyard.compose.valkey import Valkey
from taskyard.dispatcher.cell.connection import Connection, OnSent, Word, library
from tests.contract.cut import Link, appended, copy_cut
from tests.contract.faulty import FaultyConnection
from tests.contract.raw import Raw
from tests.contract.rig import redis_rig
from tests.contract.story import Story

EXPLORE = int(os.environ.get("TASKYARD_EXPLORE", "0"))
SEEDS = [random.randrange(2**32) for _ in range(EXPLORE)] or [7]
"""One in the gate; with TASKYARD_EXPLORE=<stories>, that many others."""
REPLICAS = 4
FILE_CUTS = 20
STEPS = 60
BATCHES = 10
MAX_LAG_BYTES = 1_500
CELL = "story"
_WAIT_S = 10.0


class Noted(Connection):
    """A connection that notes the exact state of the cell after each call of the library."""

    def __init__(self, url: str) -> None:
        super().__init__(url, CELL)
        self._raw = FaultyConnection(url, CELL)
        self.states: list[Raw] = [{}]

    async def call(self, function: str, *arguments: Word, on_sent: OnSent | None = None) -> Any:
        """Call it."""
        reply = await super().call(function, *arguments, on_sent=on_sent)
        self.states.append(await self._raw.raw())
        return reply

    async def close(self) -> None:
        """Close both."""
        await self._raw.close()
        await super().close()


class Told(NamedTuple):
    """What there is when a server is lost: the log and the workers, the states it went through, its generation."""

    story: Story
    states: list[Raw]
    generation: str


@contextlib.contextmanager
def servers(home: Path, count: int) -> Generator[list[Valkey]]:
    """Valkeys that note each write in their file before they reply."""
    made = [Valkey(home / str(n), appendonly="always") for n in range(count)]
    try:
        for server in made:
            server.spawn()
        for server in made:
            server.wait_ready()
        yield made
    finally:
        for server in made:
            server.kill()


async def tell(url: str, seed: int, on_begun: Callable[[], object], on_step: Callable[[], object]) -> Told:
    """Let a story happen on an empty server."""
    connection = Noted(url)
    rig = redis_rig(connection)
    story = Story(rig, seed, batches=BATCHES)
    generation = await story.begin(rig)
    on_begun()
    await story.live(rig, steps=STEPS, on_step=on_step)
    await connection.close()
    return Told(story, connection.states, generation)


async def check_goes_on(url: str, told: Told) -> tuple[int, int]:
    """Check that the cell is as it was after some call, and that all ends well.

    Returns how many calls were lost, and how many running tasks were adopted.
    """
    story = copy.deepcopy(told.story)
    raw, connection = FaultyConnection(url, CELL), Connection(url, CELL)
    state = await raw.raw()
    assert state in told.states, "a state that never was"
    if state:
        assert await connection.command("FUNCTION", "LIST", "LIBRARYNAME", library().name), "the functions are there"
    rig = redis_rig(connection)
    rig.task_ids = story.task_ids
    await rig.check()
    await story.check_applied(rig)

    assert await story.begin(rig, is_resuming=True) != told.generation
    adopted = await story.resume(rig)
    assert await story.end(rig) == story.all_is_well()
    await rig.check()
    await raw.close()
    await connection.close()
    lost = len(told.states) - 1 - max(n for n, noted in enumerate(told.states) if noted == state)
    return lost, adopted


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_story_without_a_failure_ends_well(tmp_path: Path, seed: int) -> None:
    with servers(tmp_path, 1) as [server]:
        told = await tell(server.url, seed, lambda: None, lambda: None)
        story, connection = told.story, Connection(server.url, CELL)

        left = await story.end(redis_rig(connection))

        assert left == story.all_is_well()
        await connection.close()


async def follow(server: Valkey, primary: Valkey) -> Link:
    """Make the server a replica, and return once it has what the primary has."""
    link = Link(primary.port)
    await link.start()
    await command(server, "REPLICAOF", "127.0.0.1", link.port)
    await until_link(server, "up")
    return link


async def command(server: Valkey, *words: Word) -> Any:
    """Run one command on a server."""
    connection = Connection(server.url, CELL)
    reply = await connection.command(*words)
    await connection.close()
    return reply


async def until_link(server: Valkey, status: str) -> None:
    """Wait until a replica says this of its link."""
    deadline_s = time.monotonic() + _WAIT_S
    while f"master_link_status:{status}".encode() not in await command(server, "INFO", "replication"):
        assert time.monotonic() < deadline_s, f"the link of the replica is never {status}"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_replica_that_lagged_is_of_one_moment_and_goes_on(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    cut_at = dict(zip(sorted(chance.sample(range(STEPS), REPLICAS)), range(REPLICAS), strict=True))
    with servers(tmp_path, 1 + REPLICAS) as [primary, *replicas]:
        await command(primary, "CONFIG", "SET", "repl-diskless-sync-delay", 0)
        links = await asyncio.gather(*[follow(replica, primary) for replica in replicas])
        steps = itertools.count()

        def cut() -> None:
            step = next(steps)
            if step in cut_at:
                links[cut_at[step]].cut_after(chance.randrange(MAX_LAG_BYTES))

        told = await tell(primary.url, seed, lambda: None, cut)
        primary.kill()
        for replica in replicas:
            await until_link(replica, "down")
            await command(replica, "REPLICAOF", "NO", "ONE")

        lost, adopted = zip(*[await check_goes_on(replica.url, told) for replica in replicas], strict=True)
        for link in links:
            await link.stop()

    assert EXPLORE or (max(lost) > 0 and sum(adopted) > 0), "something was lost, and found again"


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_server_whose_file_ends_early_is_of_one_moment_and_goes_on(tmp_path: Path, seed: int) -> None:
    chance, begun = random.Random(seed), list[int]()
    with servers(tmp_path, 1) as [server]:
        file = appended(server.directory)
        told = await tell(server.url, seed, lambda: begun.append(file.stat().st_size), lambda: None)
    size = file.stat().st_size
    # The library is most of the file.
    cuts = [chance.randrange(size) for _ in range(FILE_CUTS // 6)]
    cuts += [chance.randrange(begun[0], size) for _ in range(FILE_CUTS - len(cuts))]

    other = Valkey(tmp_path / "again", appendonly="always")
    seen: list[tuple[int, int]] = []
    for cut in cuts:
        copy_cut(server.directory, other.directory, cut)
        try:
            other.start()
            seen.append(await check_goes_on(other.url, told))
        finally:
            other.kill()

    lost, adopted = zip(*seen, strict=True)
    assert EXPLORE or (len(set(lost)) > FILE_CUTS // 3 and sum(adopted) > 0), "the cuts are all over the story"
