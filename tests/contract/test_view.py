"""What the view tells of a cell."""

from taskyard.dispatcher.cell.contract import Level
from tests.contract.rig import Rig


async def test_an_empty_cell_is_empty(rig: Rig) -> None:
    level = await rig.view.level()

    assert level == Level(0, 0, 0, 0, 0, level.now_ms)
    assert await rig.view.resources() == ("slots",)
    assert (await rig.view.instances(), await rig.view.vectors(), await rig.view.shapes()) == ([], {}, [])
    assert await rig.view.find("t1") is None
    assert (await rig.view.queue("i1", count=9), await rig.view.parked("n|a|slots=1|", count=9)) == ([], [])
    assert await rig.view.audit("i1") == ("i1", {}, 0)


async def test_vectors_are_in_the_order_of_the_resources_and_only_grow(rig: Rig) -> None:
    await rig.register("i1", slots=2, memory_mib=10)
    await rig.register("i2", slots=3, cpu_milli=5, a_first=7)

    assert await rig.view.resources() == ("slots", "memory_mib", "a_first", "cpu_milli")
    vectors = await rig.view.vectors()
    assert (vectors["i1"].free, vectors["i2"].free) == ((2, 10), (3, 0, 7, 5))


async def test_the_audit_sums_up_what_is_on_the_queue(rig: Rig) -> None:
    await rig.register("i1", slots=3, memory_mib=10)
    await rig.apply(rig.entry("t1", "n|a|memory_mib=4,slots=2|"), to=["i1"])

    assert await rig.view.audit("i1") == ("i1", {"slots": 0, "memory_mib": 0}, 0)


async def test_a_limited_reading_starts_with_the_first(rig: Rig) -> None:
    await rig.register("i1", slots=2)
    await rig.apply(*[rig.entry(f"t{n}", key=n) for n in range(4)], to=["i1"])

    assert len(await rig.view.queue("i1", count=1)) == 1
    assert [entry.id for entry in await rig.view.parked("n|a|slots=1|", count=1)] == ["t2"]


async def test_shapes_are_told_with_their_number_and_the_key_and_arrival_of_their_first_task(rig: Rig) -> None:
    await rig.register("i1", "b", slots=1)
    await rig.apply(
        rig.entry("b1", "n|b|slots=2|", key=5.5, arrived_ms=2),
        rig.entry("a1", key=3, arrived_ms=8),
        rig.entry("a2", key=4, arrived_ms=1),
    )

    assert sorted(await rig.view.shapes()) == [("n|a|slots=1|", 2, 3.0, 8.0, 0), ("n|b|slots=2|", 1, 5.5, 2.0, 1)]
