"""What a cell does that is new or has lost everything, and for tasks that a topic carries."""

from operator import attrgetter

from taskyard.dispatcher.cell.contract import Running
from tests.contract.rig import PARTITION, UNENDING_MS, Rig
from tests.contract.torn_cases import BIG, CONFIG, FAR_MS, Call, Case

OLD_MS = 50_000


async def an_opening_of_a_new_cell(rig: Rig) -> Call:
    return Call(lambda: rig.cell.open(CONFIG), reply=False, of=attrgetter("is_begun"))


async def ids_to_remember(rig: Rig) -> Call:
    """By a cell that has not begun: one is remembered already, one an instance has."""
    await rig.cell.open(CONFIG)
    assert await rig.cell.remember(["t1", "t2"]) == 2
    await rig.register("i1")
    held = Running("held", "5-5", 1, rig.entry("held"))
    await rig.cell.resync("i1", rig.epochs["i1"], [held])
    return Call(lambda: rig.cell.remember(["t2", "t3", "held", "t4", "t3"]), 3, steps=2)


async def a_beginning(rig: Rig) -> Call:
    await rig.cell.open(CONFIG)
    return Call(lambda: rig.cell.begin({"topic:0": 7, "topic:1": 0}), reply=True)


async def a_beginning_with_a_replay(rig: Rig) -> Call:
    generation = (await rig.cell.open(CONFIG)).generation
    until = {"topic:0": 9, "topic:1": 3}
    return Call(lambda: rig.cell.begin({"topic:0": 7, "topic:1": 0}, until=until, generation=generation), reply=True)


async def an_expiry_once_the_replay_is_over(rig: Rig) -> Call:
    """It forgets the replay, not yet what was remembered for it, and ends a task."""
    await rig.cell.open(CONFIG)
    await rig.cell.remember(["t1"])
    await rig.cell.begin({PARTITION: 0, "topic:1": 5}, until={PARTITION: 1, "topic:1": 5})
    await rig.register("i1", slots=1)
    await rig.apply(rig.entry("old", BIG, arrived_ms=1))
    return Call(lambda: rig.cell.expire(limit=9), 1)


async def tasks_to_restore(rig: Rig) -> Call:
    """By a cell that has not begun: placed, parked, dead, known to an instance, ended, named twice."""
    await rig.cell.open(CONFIG)
    await rig.cell.remember(["ended"])
    await rig.register("i1", slots=2)
    old = {name: rig.entry(name, arrived_ms=OLD_MS) for name in ("held", "placed", "ended", "twice")}
    await rig.cell.resync("i1", rig.epochs["i1"], [Running("held", "5-5", 1, old["held"])])
    dead = rig.entry("dead", arrived_ms=OLD_MS, deadline_ms=1)
    parked = rig.entry("parked", BIG, arrived_ms=OLD_MS, deadline_ms=FAR_MS)
    entries = [old["held"], old["placed"], old["ended"], parked, dead, old["twice"], old["twice"]]
    return Call(lambda: rig.cell.restore(entries), 4)


async def old(rig: Rig, *names: str) -> None:
    """Register an instance, and fill it with tasks that came long ago."""
    await rig.register("i1", slots=len(names))
    entries = [rig.entry(name, arrived_ms=OLD_MS, attempts=2) for name in names]
    assert await rig.apply(*entries, to=["i1"]) == "1" * len(names)


async def tasks_to_carry(rig: Rig) -> Call:
    await old(rig, "queued", "carried")
    await rig.apply(rig.entry("parked", arrived_ms=OLD_MS), rig.entry("young"))
    assert await rig.cell.carry(["carried"]) == (True,)
    ids = ["queued", "parked", "carried", "young", "unknown", "queued"]
    return Call(lambda: rig.cell.carry(ids), (True, True, True, False, False, True))


async def endings_of_carried_tasks(rig: Rig) -> Call:
    await old(rig, "ok", "gives-up", "again", "late")
    assert await rig.cell.carry(["ok", "gives-up", "again", "late"]) == (True,) * 4
    kinds = [("ok", "succeeded", 0), ("gives-up", "gave_up", 0), ("again", "retry", UNENDING_MS)]
    endings = [await rig.ending(name, how, b"detail", delay) for name, how, delay in kinds]
    late = (await rig.ending("late"))._replace(stream_id="5-5")
    said = [*endings, late]
    return Call(lambda: rig.cell.finish("i1", rig.epochs["i1"], said), ((True,) * 4, 0), steps=1)


OPEN: tuple[Case, ...] = (an_opening_of_a_new_cell,)
REMEMBER: tuple[Case, ...] = (ids_to_remember,)
RESTORE: tuple[Case, ...] = (tasks_to_restore,)
BEGIN: tuple[Case, ...] = (a_beginning, a_beginning_with_a_replay)
EXPIRE: tuple[Case, ...] = (an_expiry_once_the_replay_is_over,)
CARRY: tuple[Case, ...] = (tasks_to_carry,)
FINISH: tuple[Case, ...] = (endings_of_carried_tasks,)
