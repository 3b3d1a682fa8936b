"""Old unfinished tasks that a topic keeps: they no longer hold back from where Kafka would be read again."""

import time

import pytest

from taskyard.dispatcher.cell.contract import CellConfig
from taskyard.dispatcher.cell.recovery import BUCKET_MS
from taskyard.schemas.entry import decode_entry
from taskyard.schemas.errors import DependencyError
from tests.contract.rig import Rig
from tests.contract.test_begin import new

__all__ = ["new"]
OLD_MS = BUCKET_MS * 5


async def told(rig: Rig) -> list[tuple[str, bytes]]:
    """What the outbox says of carried tasks that have ended."""
    return [(row.kind, row.body) for row in await rig.cell.outbox(count=99) if row.kind == "uncarried"]


async def old_ids(rig: Rig, before_ms: int) -> set[str]:
    """Scan to the end."""
    page = await rig.cell.old("", before_ms=before_ms)
    found = set(page.task_ids)
    while page.cursor:
        page = await rig.cell.old(page.cursor, before_ms=before_ms)
        found |= set(page.task_ids)
    return found


async def three(rig: Rig) -> None:
    """One old task queued, one parked, and a young one parked."""
    await rig.register("i1", slots=1)
    await rig.apply(*[rig.entry(name, arrived_ms=OLD_MS) for name in ("queued", "parked")], to=["i1"])
    await rig.apply(rig.entry("young"))


async def test_old_unfinished_tasks_are_found_until_they_are_carried(rig: Rig) -> None:
    await three(rig)
    assert await old_ids(rig, OLD_MS + BUCKET_MS) == {"queued", "parked"}
    assert await old_ids(rig, OLD_MS) == set()

    assert await rig.cell.carry(["queued", "parked", "unknown", "young"]) == (True, True, False, False)

    assert await old_ids(rig, OLD_MS + BUCKET_MS) == set()
    assert [count for at, count in (await rig.view.unfinished()).items() if at <= time.time() * 1000] == [1]


async def test_the_copies_of_tasks_are_their_entries_wherever_they_are(rig: Rig) -> None:
    await three(rig)
    await rig.finish("i1", await rig.ending("queued", "retry", delay_ms=60_000))

    later, queued, ended = await rig.cell.copies(["queued", "parked", "unknown"])

    assert (decode_entry(later).id, decode_entry(later).attempt) == ("queued", 2)
    assert decode_entry(queued).id == "parked"
    assert ended == b""
    assert decode_entry((await rig.cell.copies(["young"]))[0]).id == "young"


async def test_to_carry_a_task_again_changes_nothing(rig: Rig) -> None:
    await three(rig)

    assert await rig.cell.carry(["queued"]) == (True,)
    assert await rig.cell.carry(["queued", "queued"]) == (True, True)

    assert (await rig.view.unfinished())[OLD_MS] == 1


async def test_a_cell_that_has_not_begun_does_not_say_that_a_task_has_ended(new: Rig) -> None:
    await new.cell.open(CellConfig())

    with pytest.raises(DependencyError, match="not begun"):
        await new.cell.carry(["queued"])


@pytest.mark.parametrize("how", ["succeeded", "gave_up"])
async def test_the_end_of_a_carried_task_is_told_so_that_its_copy_goes(rig: Rig, how: str) -> None:
    await three(rig)
    await rig.cell.carry(["queued"])

    await rig.finish("i1", await rig.ending("queued", how))

    assert await told(rig) == [("uncarried", b"queued")]
    await rig.finish("i1", await rig.ending("parked"))
    assert len(await told(rig)) == 1
    assert list((await rig.view.unfinished()).values()) == [1]


async def test_carried_tasks_are_restored_to_a_cell_that_has_not_begun(new: Rig) -> None:
    await new.cell.open(CellConfig(headroom_permille=0))
    await new.register("i1", slots=1)
    entries = [new.entry(name, arrived_ms=OLD_MS) for name in ("a", "b", "ended")]
    await new.cell.remember(["ended"])

    assert await new.cell.restore(entries) == 2
    assert await new.cell.restore(entries[:2]) == 0
    await new.cell.begin({})
    assert await new.cell.restore([new.entry("c")]) == 0
    new.task_ids.remove("c")

    assert await new.queued("i1") == ["a"]
    assert await new.parked() == ["b"]
    assert await new.view.unfinished() == {}
    await new.finish("i1", await new.ending("a"))
    await new.finish("i1", await new.ending("b"))
    assert await told(new) == [("uncarried", name) for name in (b"ended", b"a", b"b")]
    await new.check()
