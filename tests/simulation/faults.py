"""What befalls a world: drawn from the seed before the run, so that a fault can be left out and the rest stays."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.simulation.network import Fate, Service, Trap, Trouble
from tests.simulation.process import NOWHERE, Process
from tests.simulation.workload import BUSY_S, Scene
from tests.simulation.world import World


class Fault(NamedTuple):
    """One thing that happens. target: a process, a topic, a call, or nothing. for_s: how long. amount: how much."""

    at_s: float
    kind: str
    target: str = ""
    for_s: float = 0.0
    amount: float = 0.0


def faults(scene: Scene, kinds: Sequence[str] = ()) -> list[Fault]:
    """Draw the faults of a scene. kinds: only of these; otherwise there are none in one seed of twelve."""
    chance = random.Random(f"{scene.seed}/faults")
    if scene.seed % 12 == 0 and not kinds:
        return []
    # A few kinds a seed, each more than once: what meets itself is found as well as what meets another.
    chosen = kinds or chance.sample(list(KINDS), chance.choice((1, 2, 3, 5)))
    found = [_drawn(chance.choice(chosen), chance, scene) for _ in range(chance.randrange(2, 9))]
    return sorted(found)


def _drawn(kind: str, chance: random.Random, scene: Scene) -> Fault:
    names = [*scene.dispatchers, *(crew.name for crew in scene.crews)]
    workers = [crew.name for crew in scene.crews]
    target = chance.choice(workers if kind in _OF_WORKERS else names)
    if kind in _OF_DISPATCHERS:
        target = chance.choice(scene.dispatchers)
    elif kind == "crash_at":
        target = chance.choice(_CALLS)
    elif kind in ("recreate", "partition"):
        target = f"tasks.{chance.choice(('critical', 'high', 'normal', 'low'))}"
    elif kind in ("lossy_cell", "lossy_kafka", "cut_cell", "cut_kafka"):
        target = chance.choice(("", target))
    # Around a lease and a session, of 1.5 s, there is most to go wrong.
    for_s = chance.choice((0.05, 0.3, 1.0, 1.7, 2.1, 2.5, 4.0))
    return Fault(round(chance.uniform(0.0, BUSY_S * 0.95), 3), kind, target, for_s, round(chance.random(), 3))


def befall(world: World, fault: Fault) -> None:
    """Make it happen."""
    world.trace.note("world", f"fault {fault.kind}", fault)
    world.befallen[fault.kind] += 1
    KINDS[fault.kind](world, fault)


def _later(world: World, for_s: float, then: Callable[[], None]) -> None:
    world.loop.call_later(for_s, then, context=NOWHERE)


def _crash(world: World, fault: Fault) -> None:
    world.crash(fault.target)
    _later(world, fault.for_s, lambda: world.start(fault.target))


def _stop(world: World, fault: Fault) -> None:
    world.stop(fault.target)
    world.restart_when_gone(fault.target, fault.for_s)


def _pause(world: World, fault: Fault) -> None:
    world.pause(fault.target, fault.for_s)


def _zombie(world: World, fault: Fault) -> None:
    """Stand still while another takes the place, then go on beside it."""
    world.double(fault.target, 0.5 + fault.for_s)


def _crash_at(world: World, fault: Fault) -> None:
    """Kill whoever makes that call next, before or after the server did it."""
    call, kind = fault.target.split("/")

    def spring(process: Process) -> None:
        name = process.name.partition("#")[0]
        world.crash(name)
        _later(world, fault.for_s, lambda: world.start(name))

    world.network.traps.append(Trap(call, kind, spring, is_before=fault.amount < 0.5))


def _trouble(service: Service, *fates: Fate, calls: frozenset[str] = frozenset()) -> Callable[[World, Fault], None]:
    def begin(world: World, fault: Fault) -> None:
        share = 1.0 if fates else 0.05 + 0.4 * fault.amount
        until_s = world.loop.time() + fault.for_s
        lives = world.living.get(fault.target)
        name = lives.process.name if lives else fault.target
        more = {"fates": fates} if fates else {}
        world.network.troubles.append(Trouble(service, name, until_s, share, calls=calls, **more))

    return begin


def _cell_down(world: World, fault: Fault) -> None:
    if world.server.is_down:
        return
    world.server.stop()
    _later(world, fault.for_s, world.cell_up)


def _rollback(world: World, fault: Fault) -> None:
    """The cell comes back older by up to 3 s, after a while."""
    if world.server.is_down or world.is_rolling_back:
        return
    world.is_rolling_back = True
    world.server.snapshot("rollback")

    def fall() -> None:
        world.server.stop()
        _later(world, fault.for_s / 4, lambda: world.roll_back("rollback"))

    _later(world, 0.3 + 2.7 * fault.amount, fall)


def _lost(world: World, fault: Fault) -> None:
    """The cell comes back empty, after a while."""
    if world.server.is_down or world.is_rolling_back:
        return
    world.is_rolling_back = True
    world.server.stop()
    _later(world, fault.for_s / 4, world.lose_cell)


def _kafka_down(world: World, fault: Fault) -> None:
    world.broker.is_down = True
    _later(world, fault.for_s, world.kafka_up)


def _clock(world: World, fault: Fault) -> None:
    running = world.living.get(fault.target)
    if running is not None:
        running.process.offset_ms += round((fault.amount - 0.5) * 600_000)


def _slow(world: World, fault: Fault) -> None:
    world.set_slowness(fault.target, 1 + 4 * fault.amount)
    _later(world, fault.for_s, lambda: world.set_slowness(fault.target, 1.0))


def _memory(world: World, fault: Fault) -> None:
    world.server.is_full = True
    _later(world, fault.for_s, world.cell_roomy)


def _partition(world: World, fault: Fault) -> None:
    world.broker.add_partition(fault.target)


def _recreate(world: World, fault: Fault) -> None:
    world.recreate(fault.target)


_CALLS = (
    "apply/dispatcher", "publish/dispatcher", "trim/dispatcher", "evict/dispatcher", "settle/dispatcher",
    "due/dispatcher", "open/dispatcher", "finish/worker", "read/worker", "register/worker", "resync/worker",
    "leave/worker", "close_instance/worker", "beat/worker",
)  # fmt: skip
_OF_WORKERS = frozenset({"zombie", "deaf", "mute", "slow"})
_OF_DISPATCHERS = frozenset({"heartbeats", "blind"})
KINDS: dict[str, Callable[[World, Fault], None]] = {
    "crash": _crash,
    "crash_at": _crash_at,
    "stop": _stop,
    "pause": _pause,
    "zombie": _zombie,
    "cut_cell": _trouble("cell", "lost_request", "lost_request", "lost_reply"),
    "lossy_cell": _trouble("cell"),
    "cut_kafka": _trouble("kafka", "lost_request", "lost_request", "lost_reply"),
    "lossy_kafka": _trouble("kafka"),
    # The old owner goes on: it hears of no rebalance.
    "heartbeats": _trouble("kafka", "lost_request", calls=frozenset({"heartbeat"})),
    # A worker that beats and does not read; one that reads and does not beat; a dispatcher that sees nothing.
    "deaf": _trouble("cell", "lost_request", calls=frozenset({"read"})),
    "mute": _trouble("cell", "lost_request", "lost_reply", calls=frozenset({"beat"})),
    "blind": _trouble("cell", "error", calls=frozenset({"vectors", "instances", "shapes"})),
    "cell_down": _cell_down,
    "rollback": _rollback,
    "lost": _lost,
    "kafka_down": _kafka_down,
    "clock": _clock,
    "slow": _slow,
    "memory": _memory,
    "partition": _partition,
    "recreate": _recreate,
}
