"""The audit finds each kind of damage, mends what can be mended, whole or not at all, and sees nothing else."""

from collections.abc import AsyncGenerator

import pytest

from taskyard.dispatcher.cell.audit import RedisAudit
from taskyard.dispatcher.cell.audit_contract import KINDS, Finding
from taskyard.dispatcher.cell.audit_contract import REPORTED as REPORTED_KINDS
from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.inspection import Found, Inspection
from taskyard.schemas.errors import DependencyError
from tests.contract.damage import MENDABLE, REPORTED, Damage, Keys, lived_in
from tests.contract.faulty import FaultyConnection, is_fault
from tests.contract.raw import changed
from tests.contract.rig import Rig


@pytest.fixture
async def connection(redis_url: str, cell: str) -> AsyncGenerator[FaultyConnection]:
    """A cell of the debug build, so that mending can be made to fail."""
    connection = FaultyConnection(redis_url, cell)
    await connection.load()
    yield connection
    await connection.close()


@pytest.fixture
async def rig(connection: FaultyConnection) -> Rig:
    """A cell that has everything in it."""
    return await lived_in(connection)


async def audited(connection: Connection, *, is_mending: bool = False, instance: str | None = None) -> list[Found]:
    """Do one whole round."""
    inspection = Inspection(RedisAudit(connection), is_mending=is_mending, instance=instance)
    while await inspection.step():
        pass
    return inspection.found


def kinds(found: list[Found]) -> set[str]:
    """The kinds of what was found."""
    return {row.finding.kind for row in found}


async def test_a_cell_that_was_not_damaged_has_no_findings(rig: Rig, connection: FaultyConnection) -> None:
    assert await audited(connection) == []

    await rig.check()


async def test_a_surplus_of_headroom_that_nobody_has_counted_yet_is_no_finding(
    rig: Rig, connection: FaultyConnection
) -> None:
    assert await Keys(connection)("HDEL", "meta", "headroom_surplus") == 1

    assert await audited(connection) == []


@pytest.mark.parametrize("damage", MENDABLE, ids=lambda damage: damage.name)
async def test_damage_is_found_and_mended(rig: Rig, connection: FaultyConnection, damage: Damage) -> None:
    await damage.do(Keys(connection))
    assert kinds(await audited(connection)) == damage.kinds

    mended = await audited(connection, is_mending=True)

    assert kinds(mended) <= damage.kinds
    assert any(row.is_mended for row in mended)
    assert await audited(connection) == []
    await rig.check()


@pytest.mark.parametrize("damage", REPORTED, ids=lambda damage: damage.name)
async def test_damage_that_cannot_be_mended_is_told_and_left(
    rig: Rig, connection: FaultyConnection, damage: Damage
) -> None:
    await damage.do(Keys(connection))
    assert kinds(await audited(connection)) == damage.kinds

    await audited(connection, is_mending=True)

    left = await audited(connection)
    assert kinds(left) == damage.kinds & REPORTED_KINDS
    assert kinds(await audited(connection, is_mending=True)) == kinds(left)
    assert len(await rig.view.instances()) >= 2


def test_there_is_damage_of_every_kind() -> None:
    assert {kind for damage in (*MENDABLE, *REPORTED) for kind in damage.kinds} == set(KINDS)


@pytest.mark.parametrize("damage", [*MENDABLE, *REPORTED], ids=lambda damage: damage.name)
async def test_mending_that_fails_anywhere_has_changed_nothing(
    rig: Rig, connection: FaultyConnection, damage: Damage
) -> None:
    await damage.do(Keys(connection))
    audit = RedisAudit(connection)

    for finding in [row.finding for row in await audited(connection)]:
        before = await connection.raw()
        for k in range(1, await calls_of(connection, audit, finding) + 1):
            await connection.restore()
            await connection.arm(k)
            with pytest.raises(DependencyError) as failure:
                await audit.mend(finding)

            assert is_fault(failure.value)
            assert changed(before, await connection.raw()) == {}, f"{finding} failing at {k}"
        await connection.restore()
    assert kinds(await audited(connection)) == damage.kinds


async def calls_of(connection: FaultyConnection, audit: RedisAudit, finding: Finding) -> int:
    """Mend once, as a trial: the state is put aside first and left changed. Returns how many calls that took."""
    await connection.keep()
    await connection.arm(0)
    await audit.mend(finding)
    return await connection.arm(0)


async def test_a_page_that_fails_is_looked_at_again(rig: Rig, connection: FaultyConnection) -> None:
    await Keys(connection)("ZREM", "lease", "i2")
    inspection, failures = Inspection(RedisAudit(connection), is_mending=True), list[DependencyError]()

    is_more = True
    while is_more:
        await connection.arm(0 if len(failures) > inspection.pages else 3)
        try:
            is_more = await inspection.step()
        except DependencyError as error:
            failures.append(error)
    await connection.arm(0)

    assert all(map(is_fault, failures))
    assert len(failures) > 10
    assert kinds(inspection.found) == {"lease"}
    assert await audited(connection) == []
