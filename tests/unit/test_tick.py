"""The tick over a cell in memory, whose clock is not this machine's."""

import random
import time

import pytest

from taskyard.dispatcher.cell.contract import Batch, Planned, Registration
from taskyard.dispatcher.cell.twin import TwinCell
from taskyard.dispatcher.core.fleet import Fleet
from taskyard.dispatcher.core.load import LeastAgentLoad
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.settings import Settings
from taskyard.dispatcher.tick import Tick
from taskyard.dispatcher.watch import Watch
from taskyard.schemas.entry import NO_HEADERS, encode_entry

SHAPE = "n|a|slots=2|"
HOUR_MS = 3_600_000


class ServerClock:
    """The cell's clock, in ms; a test moves it on."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


@pytest.mark.parametrize("off_ms", [-HOUR_MS, HOUR_MS])
async def test_a_task_gets_its_hold_by_the_cells_clock_however_wrong_the_dispatchers_is(off_ms: int) -> None:
    settings = Settings()
    clock = ServerClock(int(time.time() * 1000) - off_ms)
    twin, fleet, metrics = TwinCell(random.Random(1), clock), Fleet(LeastAgentLoad()), Metrics()
    tick = Tick(twin, twin, fleet, settings, metrics, "me")
    await twin.open(settings.cell_config())
    await twin.begin({})
    await twin.register("i", "epoch", Registration(("a",), {"slots": 2}, {}, HOUR_MS))
    await twin.apply(Batch((), (), ("n|a|slots=1|", SHAPE), [entry("small", 0, clock), entry("big", 1, clock)]))

    await Watch(twin, fleet, metrics).step()
    await tick.step()
    before = (await twin.vectors())["i"].state
    clock.now_ms += settings.order.hold_after_ms + 1
    await tick.step()

    assert before == "open"
    assert (await twin.vectors())["i"].state == "held"


def entry(name: str, shape: int, clock: ServerClock) -> Planned:
    """A task that has just arrived."""
    text = (b"n|a|slots=1|", SHAPE.encode())[shape]
    encoded = encode_entry(
        task_id=name.encode(), shape=text, max_attempts=3, key_ms=clock.now_ms, deadline_ms=0,
        arrived_ms=clock.now_ms, receipt=b"", headers=NO_HEADERS, wire=b"{}",
    )  # fmt: skip
    return Planned(shape, (), encoded)
