"""One run: a seed's scene and faults, played until everything has drained, and judged."""

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import Coroutine, Generator, Sequence
from typing import Any, NamedTuple

from tests.simulation.faults import Fault, befall, faults
from tests.simulation.loop import Stuck, VirtualLoop
from tests.simulation.process import NOWHERE, changed, simulated_modules
from tests.simulation.trace import Trace, trace_logs
from tests.simulation.verdict import Watcher, judge
from tests.simulation.workload import BUSY_S, Scene, scene
from tests.simulation.world import Violation, World

_DRAIN_S = 60.0
"""Without faults everything is done by then."""
_STOP_S = 30.0
_LOOK_S = 0.25
# Slower than in a real dispatcher: the world is small and each step costs real time.
_CHANGES: dict[str, object] = {
    "taskyard.dispatcher.service:_RELAY_IDLE_S": 0.1,
    "taskyard.dispatcher.lane:_POLL_MS": 400,
    # Sooner, or a task would not be carried, nor an outcome be too old to be read again, in a life of half a minute.
    "taskyard.dispatcher.service:_CARRY_S": 0.7,
    "taskyard.dispatcher.recovery:_MARGIN_MS": 5_000,
    "taskyard.dispatcher.cell.twin_recovery:CARRIED_AGE_MS": 2_000,
    "taskyard.dispatcher.cell.twin_view:BUCKET_MS": 1_000,
    "taskyard.workers.load:_cpu_permille": lambda: 0,
    "taskyard.workers.load:_memory_permille": lambda: 0,
}
# A cell that looks around less: more is left to the settle, and to eviction in pages.
_HASTY: dict[str, object] = {
    "taskyard.dispatcher.cell.twin_state:OPEN_TRIES": 1,
    "taskyard.dispatcher.cell.twin:PULL_MARGIN": 0,
    "taskyard.dispatcher.cell.twin:PAGE": 1,
}


class Case(NamedTuple):
    """What is run: all that a seed gives, or what shrinking has left of it."""

    scene: Scene
    faults: tuple[Fault, ...]


class Result(NamedTuple):
    """How a run went.

    violation: None if all promises held. calls: of the cell. end_s: virtual time. fates: of calls that fared badly.
    befallen: faults by kind.
    """

    seed: int
    violation: Violation | None
    trace: Trace
    calls: int
    end_s: float
    fates: Counter[str]
    befallen: Counter[str]


def case(seed: int, *, kinds: Sequence[str] = ()) -> Case:
    """Draw a case. kinds: only faults of these kinds."""
    drawn = scene(seed)
    return Case(drawn, tuple(faults(drawn, kinds)))


@contextlib.contextmanager
def simulation() -> Generator[None]:
    """Make this interpreter fit for `play`: our modules' clocks and chance, and where logs go."""
    trace_logs()
    with simulated_modules(), changed(_CHANGES):
        yield


def play(what: Case, *, is_hashed: bool = False, is_whole: bool = False) -> Result:
    """Run a case. Must be called within `simulation()`. Same case, same trace."""
    loop = VirtualLoop()
    trace = Trace(loop.time, is_hashed=is_hashed, is_whole=is_whole)
    asyncio.set_event_loop(loop)
    world = NOWHERE.copy().run(World, loop, what.scene, trace)
    watcher = Watcher(world)
    try:
        with changed(_HASTY if what.scene.is_hasty else {}):
            violation = _played(loop, world, watcher, what)
    finally:
        loop.close()
        asyncio.set_event_loop(None)
        gc.collect()
    return Result(
        what.scene.seed, violation, trace, world.server.calls, loop.time(), world.network.fates, world.befallen
    )


def _played(loop: VirtualLoop, world: World, watcher: Watcher, what: Case) -> Violation | None:
    violation: Violation | None = None
    main = loop.create_task(_live(world, watcher, what), name="world", context=NOWHERE.copy())
    try:
        loop.run_until_complete(main)
    except Violation as found:
        violation = found
    except Stuck as error:
        violation = Violation("progress", str(error))
    except Exception as error:  # noqa: BLE001 - a fault of the simulation, told with its seed like any other
        world.trace.error(error)
        violation = Violation("the simulation itself", repr(error))
    world.broken.cancel()
    world.close()
    with contextlib.suppress(Stuck):
        loop.run_until_complete(loop.create_task(world.gone_for_good(), name="end", context=NOWHERE.copy()))
    return violation


async def _live(world: World, watcher: Watcher, what: Case) -> None:
    for publication in what.scene.publications:
        world.loop.call_at(publication.at_s, world.publish, publication)
    for fault in what.faults:
        world.loop.call_at(fault.at_s, befall, world, fault)
    for name in (*what.scene.dispatchers, *world.crews):
        world.loop.call_later(0.0, world.start, name)
    while world.loop.time() < BUSY_S:
        watcher.look()
        await _until(world, asyncio.sleep(_LOOK_S))
    while world.is_rolling_back:
        await _until(world, asyncio.sleep(_LOOK_S))
    world.heal()
    await _drained(world, watcher)
    world.stop_all()
    try:
        await _until(world, asyncio.wait_for(world.gone(), _STOP_S))
    except TimeoutError:
        names = [running.process.name for running in world.living.values()]
        raise Violation("a clean stop ends", f"{names} still run {_STOP_S:.0f} s after they were stopped") from None
    judge(world)


async def _drained(world: World, watcher: Watcher) -> None:
    give_up_s = world.loop.time() + _DRAIN_S
    while not world.is_done:
        if world.loop.time() > give_up_s:
            raise Violation("progress", f"after {_DRAIN_S:.0f} s without faults: {world.left()}")
        watcher.look()
        await _until(world, asyncio.sleep(_LOOK_S))


async def _until(world: World, wait: Coroutine[Any, Any, None]) -> None:
    """Wait for it, or for the first broken promise, which is raised."""
    task = asyncio.create_task(wait, name="wait")
    await asyncio.wait((task, world.broken), return_when=asyncio.FIRST_COMPLETED)
    if world.broken.done():
        task.cancel()
        world.broken.result()
    task.result()
