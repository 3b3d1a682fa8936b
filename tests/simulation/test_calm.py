"""What the judge excuses: it knows of everything that was wrong, and until when."""

import asyncio
import contextlib
from collections.abc import Callable, Generator

import pytest

from taskyard.schemas.errors import DependencyError
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import TIMEOUT_S, Fate, Trouble
from tests.simulation.process import NOWHERE, Process
from tests.simulation.trace import Trace
from tests.simulation.workload import scene
from tests.simulation.world import World


@pytest.fixture
def world() -> Generator[World]:
    """A world in which nobody lives, so that nothing is wrong unless the test lets it be."""
    loop = VirtualLoop()
    empty = scene(1)._replace(dispatchers=(), crews=(), publications=())
    yield NOWHERE.copy().run(World, loop, empty, Trace(loop.time))
    loop.close()


def play(world: World, seconds: float, *events: tuple[float, Callable[[], object]]) -> None:
    """Let so much virtual time go by, and do something at some moments."""
    for at_s, event in events:
        world.loop.call_at(at_s, event, context=NOWHERE)
    world.loop.run_until_complete(world.loop.create_task(asyncio.sleep(seconds), context=NOWHERE))


def test_an_outage_between_two_looks_of_the_judge_is_known(world: World) -> None:
    play(world, 3.5, (3.01, world.server.stop), (3.06, world.cell_up))

    assert world.is_calm
    assert world.disturbed_s == pytest.approx(3.06)


def test_of_outages_that_overlap_the_last_one_counts(world: World) -> None:
    def kafka_down() -> None:
        world.broker.is_down = True

    play(world, 3.5, (3.0, world.server.stop), (3.1, kafka_down), (3.2, world.cell_up), (3.3, world.kafka_up))

    assert world.disturbed_s == pytest.approx(3.3)


@pytest.mark.parametrize("fate", ["lost_request", "lost_reply", "late", "twice"])
def test_a_call_that_fared_badly_is_over_once_it_is_given_up_and_has_come(world: World, fate: Fate) -> None:
    came_s: list[float] = []

    async def ask() -> None:
        with contextlib.suppress(DependencyError):
            await world.network.ask(
                Process("d0", "dispatcher", "1"), "cell", "open", lambda: came_s.append(world.loop.time())
            )

    world.network.troubles.append(Trouble("cell", "", until_s=0.01, share=1.0, fates=(fate,)))
    asking = world.loop.create_task(ask(), context=NOWHERE)
    play(world, 4.0, (0.01, world.network.heal))

    assert asking.done()
    assert world.is_calm
    assert world.disturbed_s >= max(TIMEOUT_S["cell"], *came_s, 0.0)
