"""A lease over a cell in memory: how seldom it is asked for, and what may be believed in between, on one clock."""

import random
from collections.abc import Sequence

import pytest

from taskyard.dispatcher.cell.contract import Batch
from taskyard.dispatcher.cell.twin import TwinCell
from taskyard.dispatcher.core.fleet import Fleet
from taskyard.dispatcher.core.load import LeastAgentLoad
from taskyard.dispatcher.kafka.producer import OutgoingRecord
from taskyard.dispatcher.lease import Lease
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.relay import Relay
from taskyard.dispatcher.settings import Settings
from taskyard.dispatcher.tick import Tick
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.topics import topics

TTL_MS = 2_400
# A third and an eighth of it.
BELIEVED_S = 0.8
REFUSED_S = 0.3


class Clock:
    """Stands for the module `time`, and is the cell's. Written by the test and by the way to the cell."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


class FarCell(TwinCell):
    """A cell that counts who asks for a lease; the way there and back takes time, and may be cut."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(random.Random(1), lambda: round(clock.now_s * 1000))
        self._time = clock
        self.asked: list[str] = []
        self.is_cut = False
        self.there_s = 0.0
        self.back_s = 0.0

    async def lease(self, name: str, owner: str, *, ttl_ms: int) -> bool:
        """Take, renew or give back a lease."""
        self.asked.append(owner)
        self._time.now_s += self.there_s
        if self.is_cut:
            raise DependencyError("no answer")
        answer = await super().lease(name, owner, ttl_ms=ttl_ms)
        self._time.now_s += self.back_s
        return answer

    def holder(self, name: str) -> str:
        """Who has the lease by the cell's clock."""
        owner, until_ms = self._state.locks.get(name, ("", 0))
        return owner if self._time.now_s * 1000 <= until_ms else ""

    def lose(self) -> None:
        """Forget all leases, as a server does that is flushed."""
        self._state.locks.clear()


class Published:
    """Where a relay's records go."""

    def __init__(self) -> None:
        self.count = 0

    async def publish(self, records: Sequence[OutgoingRecord]) -> list[int]:
        """Take them all."""
        self.count += len(records)
        return []

    async def stop(self) -> None:
        """Nothing is open."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("taskyard.dispatcher.lease.time", made)
    return made


@pytest.fixture
def cell(clock: Clock) -> FarCell:
    return FarCell(clock)


def lease(cell: FarCell, owner: str) -> Lease:
    return Lease(cell, "duty", owner, TTL_MS)


async def waited_s(clock: Clock, one: Lease) -> float:
    """How long it takes until a lease is had by somebody who looks all the time."""
    began_s = clock.now_s
    while not await one.held():
        clock.now_s += 0.001
    return clock.now_s - began_s


async def test_a_busy_relay_asks_for_its_lease_once_in_a_second(clock: Clock, cell: FarCell) -> None:
    published = Published()
    relay, idle = (Relay(cell, to, topics(), Metrics(), owner) for to, owner in ((published, "me"), (Published(), "x")))
    await cell.begin({})
    ends_s = clock.now_s + 9.99

    while clock.now_s < ends_s:
        await cell.apply(Batch((), (), (), (), refused=[b"a letter"]))
        await relay.step()
        await idle.step()
        clock.now_s += 0.02

    assert published.count == 500
    assert cell.asked.count("me") <= 10
    assert cell.asked.count("x") <= 27


async def test_a_tick_asks_for_its_lease_every_two_thirds_of_a_second(clock: Clock, cell: FarCell) -> None:
    settings, metrics = Settings(), Metrics()
    ticks = [Tick(cell, cell, Fleet(LeastAgentLoad()), settings, metrics, owner) for owner in ("me", "other")]
    await cell.open(settings.cell_config())
    ends_s = clock.now_s + 9.99

    while clock.now_s < ends_s:
        for tick in ticks:
            await tick.step()
        clock.now_s += 0.1

    assert cell.asked.count("me") <= 15
    assert cell.asked.count("other") <= 40


async def test_another_takes_over_soon_after_a_lease_was_given_back(clock: Clock, cell: FarCell) -> None:
    mine, other = lease(cell, "me"), lease(cell, "other")
    assert await mine.held()
    assert not await other.held()

    await mine.give_back()

    assert await waited_s(clock, other) <= REFUSED_S + 0.001
    assert not await mine.held(), "nothing is believed of what was given back"


async def test_another_takes_over_soon_after_the_lease_of_a_dead_one_has_run_out(clock: Clock, cell: FarCell) -> None:
    dead, other = lease(cell, "dead"), lease(cell, "other")
    assert await dead.held()
    clock.now_s += BELIEVED_S + 0.001
    assert await dead.held(), "and that was the last time"

    waited = await waited_s(clock, other)

    assert TTL_MS / 1000 <= waited <= TTL_MS / 1000 + REFUSED_S + 0.002


@pytest.mark.parametrize("seed", range(20))
async def test_nobody_believes_what_the_cell_does_not_know_however_late_its_answers_come(
    clock: Clock, cell: FarCell, seed: int
) -> None:
    chance, leases = random.Random(seed), {owner: lease(cell, owner) for owner in ("a", "b", "c")}
    held: list[str] = []

    for _ in range(2_000):
        # Mostly as loops do; now and then one stands still.
        clock.now_s += chance.choice((0.0, 0.02, 0.1, chance.uniform(0, 0.5), chance.uniform(0, TTL_MS / 500)))
        cell.there_s, cell.back_s = chance.uniform(0, 1.1), chance.uniform(0, 1.1)
        owner = chance.choice(list(leases))
        if await leases[owner].held():
            assert cell.holder("duty") == owner
            held.append(owner)
        if chance.random() < 0.02:
            await leases[owner].give_back()

    assert set(held) == set(leases), "each has had it"
    assert len(cell.asked) < 2_000, "it was believed without asking"


async def test_an_error_forgets_what_was_believed(clock: Clock, cell: FarCell) -> None:
    mine, other = lease(cell, "me"), lease(cell, "other")
    assert await mine.held()
    assert not await other.held()

    clock.now_s += BELIEVED_S
    cell.is_cut = True
    for _ in range(2):
        for one in (mine, other):
            with pytest.raises(DependencyError):
                await one.held()
    cell.is_cut = False

    assert [await mine.held(), await other.held()] == [True, False], "both ask again at once"
    assert cell.asked == ["me", "other"] * 4


async def test_a_holder_that_stood_still_for_longer_than_its_lease_asks_before_it_goes_on(
    clock: Clock, cell: FarCell
) -> None:
    mine, other = lease(cell, "me"), lease(cell, "other")
    assert await mine.held()

    clock.now_s += TTL_MS / 1000 + 0.001

    assert await other.held()
    assert not await mine.held()


async def test_of_a_lease_that_the_cell_has_lost_its_holder_hears_within_a_third_of_the_ttl(
    clock: Clock, cell: FarCell
) -> None:
    mine, other = lease(cell, "me"), lease(cell, "other")
    assert await mine.held()
    cell.lose()
    assert await other.held()

    clock.now_s += BELIEVED_S

    assert not await mine.held()
    assert await other.held()
