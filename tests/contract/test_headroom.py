"""Headroom in whole slots: an instance has its share rounded down or up, the fleet has its share within one slot."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.contract import CellConfig, Evicting
from tests.contract.rig import Rig, redis_rig, twin_rig

SHARE_PERMILLE = 50
SMALL = 6
"""Slots of one instance: 0.3 of one is its headroom."""
SMALL_FLEET = 24
EXPECTED = 7
"""Of 144 slots: 7.2."""


async def headroom_of(rig: Rig) -> dict[str, int]:
    """Read the headroom of all instances."""
    return {name: vector.headroom for name, vector in (await rig.view.vectors()).items()}


async def total(rig: Rig) -> int:
    """Add it up."""
    return sum((await headroom_of(rig)).values())


async def register_small(rig: Rig, numbers: Sequence[int], *, lease_ms: int = 3_600_000) -> None:
    """Register small instances."""
    for n in numbers:
        await rig.register(f"i{n}", slots=SMALL, lease_ms=lease_ms)


@pytest.fixture
async def fleet(rig: Rig) -> Rig:
    """A fleet of small instances."""
    await rig.cell.open(CellConfig(headroom_permille=SHARE_PERMILLE))
    await register_small(rig, range(SMALL_FLEET))
    return rig


async def test_a_fleet_of_small_instances_keeps_the_share_to_the_slot(fleet: Rig) -> None:
    assert await total(fleet) == EXPECTED
    assert set((await headroom_of(fleet)).values()) == {0, 1}


@pytest.mark.parametrize("leaving", [range(12), range(12, 24), range(0, 24, 2)], ids=["first", "last", "every_second"])
async def test_what_leaves_takes_its_part_along_and_those_that_come_make_up_for_it(fleet: Rig, leaving: range) -> None:
    for n in leaving:
        assert await fleet.cell.leave(f"i{n}", fleet.epochs[f"i{n}"]) == Evicting(0)

    await register_small(fleet, range(100, 112))

    assert await total(fleet) == EXPECTED


async def test_what_is_evicted_takes_its_part_along(fleet: Rig) -> None:
    await register_small(fleet, range(100, 112), lease_ms=0)
    await fleet.let_pass(0)

    for _ in range(12):
        evicted = await fleet.cell.evict(limit=9)
        assert evicted is not None
        assert evicted[1] == 0

    await register_small(fleet, range(200, 212))
    assert abs(await total(fleet) - 1.5 * SMALL_FLEET * SMALL * SHARE_PERMILLE / 1000) < 1


async def test_one_that_registers_anew_replaces_its_part(fleet: Rig) -> None:
    for _ in range(2):
        await register_small(fleet, range(SMALL_FLEET))
        assert await total(fleet) == EXPECTED
        await register_small(fleet, [0, 0, 0])
        assert await total(fleet) == EXPECTED


async def test_one_that_renews_its_registration_keeps_its_part(fleet: Rig) -> None:
    before = await headroom_of(fleet)

    for name in before:
        await fleet.register(name, slots=SMALL, epoch=fleet.epochs[name])

    assert await headroom_of(fleet) == before


@pytest.mark.parametrize("permille", [0, 20, 300, 1000])
async def test_another_share_is_given_out_anew(fleet: Rig, permille: int) -> None:
    await fleet.cell.open(CellConfig(headroom_permille=permille))

    wanted = SMALL_FLEET * min(SMALL * permille / 1000, SMALL - 1)
    assert abs(await total(fleet) - wanted) < 1
    await register_small(fleet, range(100, 112))
    assert abs(await total(fleet) - wanted * 1.5) < 1

    await fleet.cell.open(CellConfig(headroom_permille=SHARE_PERMILLE))
    await register_small(fleet, range(100, 112))
    assert abs(await total(fleet) - 36 * SMALL * SHARE_PERMILLE / 1000) < 1


async def test_instances_that_cannot_spare_a_slot_leave_the_others_no_more_to_spare(rig: Rig) -> None:
    await rig.cell.open(CellConfig(headroom_permille=SHARE_PERMILLE))
    for n in range(100):
        await rig.register(f"one{n}", slots=1)

    await register_small(rig, range(SMALL_FLEET))

    assert await total(rig) == EXPECTED


async def test_of_types_whose_instances_register_in_turns_neither_gets_all_of_it(rig: Rig) -> None:
    await rig.cell.open(CellConfig(headroom_permille=SHARE_PERMILLE))
    for n in range(40):
        await rig.register(f"i{n}", "ab"[n % 2], slots=10)

    found = await headroom_of(rig)
    assert abs(sum(found.values()) - 20) < 1
    assert 5 <= sum(found[f"i{n}"] for n in range(0, 40, 2)) <= 15


capacities = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(slots=capacities, permille=st.integers(0, 1000), is_changed=st.booleans())
@settings(max_examples=300, deadline=None)
async def test_whatever_the_capacities_the_fleet_has_its_share_within_one_slot(
    slots: list[int], permille: int, is_changed: bool
) -> None:
    rig, wanted = twin_rig(), 0.0
    await rig.cell.open(CellConfig(headroom_permille=500 if is_changed else permille))

    for n, units in enumerate(slots):
        await rig.register(f"i{n}", slots=units)
        wanted += min(units * permille / 1000, units - 1)
        if not is_changed:
            assert abs(await total(rig) - wanted) < 1
    await rig.cell.open(CellConfig(headroom_permille=permille))

    assert abs(await total(rig) - wanted) < 1
    for name, headroom in (await headroom_of(rig)).items():
        units = slots[int(name[1:])]
        assert 0 <= headroom < units
        assert abs(headroom - min(units * permille / 1000, units - 1)) < 1


@given(slots=capacities, permille=st.integers(0, 1000), again=st.lists(st.integers(0, 29), max_size=9))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_twin_gives_each_instance_the_same(
    connection: Connection, slots: list[int], permille: int, again: list[int]
) -> None:
    names = await connection.command("KEYS", f"{connection.root}:*")
    if names:
        await connection.command("UNLINK", *names)
    rigs = redis_rig(connection), twin_rig()

    for rig in rigs:
        await rig.cell.open(CellConfig(headroom_permille=permille))
        for n, units in enumerate(slots):
            await rig.register(f"i{n}", slots=units)
        for n in again:
            if n < len(slots):
                await rig.cell.leave(f"i{n}", rig.epochs[f"i{n}"])
                await rig.register(f"i{n}", slots=slots[-n])
    assert await headroom_of(rigs[0]) == await headroom_of(rigs[1])

    for rig in rigs:
        await rig.cell.open(CellConfig(headroom_permille=1000 - permille))
        await rig.register("last", slots=7)
    assert await headroom_of(rigs[0]) == await headroom_of(rigs[1])


class TestOfAnOlderBuild:
    """A cell whose instances registered before their surplus was kept."""

    @pytest.fixture
    async def older(self, connection: Connection) -> Rig:
        """Four slots too many are kept free."""
        rig = redis_rig(connection)
        await rig.cell.open(CellConfig(headroom_permille=SHARE_PERMILLE))
        await register_small(rig, range(SMALL_FLEET))
        for name, headroom in list((await headroom_of(rig)).items()):
            if not headroom and await total(rig) < EXPECTED + 4:
                packed = bytearray(await connection.command("HGET", f"{connection.root}:free", name))
                packed[5] = 1
                await connection.command("HSET", f"{connection.root}:free", name, bytes(packed))
        await connection.command("HDEL", f"{connection.root}:meta", "headroom_surplus")
        return rig

    async def test_it_is_counted_once_and_made_up_for(self, older: Rig) -> None:
        assert await total(older) == EXPECTED + 4

        await register_small(older, range(100, 124))

        assert abs(await total(older) - 2 * SMALL_FLEET * SMALL * SHARE_PERMILLE / 1000) < 1

    async def test_one_that_leaves_first_changes_nothing_of_that(self, older: Rig) -> None:
        assert await older.cell.leave("i0", older.epochs["i0"]) == Evicting(0)

        await register_small(older, range(100, 125))

        assert abs(await total(older) - 2 * SMALL_FLEET * SMALL * SHARE_PERMILLE / 1000) < 1

    async def test_what_nobody_can_read_keeps_nobody_from_registering(self, older: Rig, connection: Connection) -> None:
        await connection.command("HSET", f"{connection.root}:inst", "odd", "x" * 12)
        await connection.command("HSET", f"{connection.root}:free", "odd", bytes(11), "nobody", bytes(11))

        await register_small(older, range(100, 103))
        await older.cell.open(CellConfig(headroom_permille=300))

        assert (await headroom_of(older))["i100"] in {1, 2}
