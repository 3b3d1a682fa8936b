"""Watching the fleet, on a clock that the test moves."""

import random

import pytest

from taskyard.dispatcher.cell.contract import Registration
from taskyard.dispatcher.cell.twin import TwinCell
from taskyard.dispatcher.core.fleet import Fleet
from taskyard.dispatcher.core.load import LeastAgentLoad
from taskyard.dispatcher.core.snapshot import InstanceView
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.settings import Settings
from taskyard.dispatcher.watch import Watch


class Clock:
    """Stands for the module `time`. Written by the test and by the slow cell."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


class SlowCell(TwinCell):
    """A cell that takes so many seconds to tell its instances."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(random.Random(1), lambda: int(clock.now_s * 1000))
        self._time = clock
        self.takes_s = 0.0

    async def instances(self) -> list[InstanceView]:
        """Read all instances, late."""
        self._time.now_s += self.takes_s
        return await super().instances()


@pytest.mark.parametrize(("takes_s", "pause_s"), [(0.02, 0.2), (0.1, 1.0), (0.75, 2.1), (3.0, 2.1)])
async def test_after_a_slow_reading_the_fleet_is_read_again_in_ten_times_as_long_but_soon(
    monkeypatch: pytest.MonkeyPatch, takes_s: float, pause_s: float
) -> None:
    clock, fleet = Clock(), Fleet(LeastAgentLoad())
    monkeypatch.setattr("taskyard.dispatcher.watch.time", clock)
    cell = SlowCell(clock)
    await cell.open(Settings().cell_config())
    await cell.register("i", "epoch", Registration(("a",), {"slots": 2}, {}, 3_600_000))
    watch = Watch(cell, fleet, Metrics())
    cell.takes_s = takes_s
    await watch.step()
    await cell.cordon("i", "quiet")

    clock.now_s += 0.1
    await watch.step()
    before = fleet.instances["i"].is_open
    clock.now_s += pause_s
    await watch.step()

    assert before
    assert not fleet.instances["i"].is_open


async def test_the_age_of_an_instance_is_told_by_the_cells_clock_whatever_ours_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, fleet = Clock(), Fleet(LeastAgentLoad())
    monkeypatch.setattr("taskyard.dispatcher.watch.time", clock)
    cells_ms = 10_000_000_000
    cell = TwinCell(random.Random(1), lambda: cells_ms)
    await cell.open(Settings().cell_config())
    await cell.register("i", "epoch", Registration(("a",), {"slots": 2}, {}, 3_600_000))

    await Watch(cell, fleet, Metrics()).step()

    assert fleet.time_ms(clock.now_s + 7) - fleet.instances["i"].registered_ms == 7_000
    assert fleet.seen_ms == cells_ms
