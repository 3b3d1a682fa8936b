"""A call of the library that fails half-way has changed nothing, wherever it fails, and can be repeated."""

import random
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from taskyard.schemas.errors import DependencyError
from tests.contract import torn_fleet, torn_recovery, torn_tasks, torn_tick
from tests.contract.faulty import FaultyConnection, TornConnection, is_fault
from tests.contract.raw import Raw, changed, timeless
from tests.contract.rig import Rig, redis_rig
from tests.contract.test_same_commands import SameCommands, explored
from tests.contract.torn_cases import CONFIG, Call, Case, FaultyRig

CASES: dict[str, tuple[Case, ...]] = {
    "apply": torn_tasks.APPLY,
    "finish": (*torn_tasks.FINISH, *torn_recovery.FINISH),
    "resync": torn_tasks.RESYNC,
    "register": torn_fleet.REGISTER,
    "beat": torn_fleet.BEAT,
    "cordon": torn_fleet.CORDON,
    "leave": torn_fleet.LEAVE,
    "evict": torn_fleet.EVICT,
    "recall": torn_fleet.RECALL,
    "settle": torn_tick.SETTLE,
    "due": torn_tick.DUE,
    "expire": (*torn_tick.EXPIRE, *torn_recovery.EXPIRE),
    "hold": torn_tick.HOLD,
    "lease": torn_tick.LEASE,
    "open": (*torn_tick.OPEN, *torn_recovery.OPEN),
    "remember": torn_recovery.REMEMBER,
    "restore": torn_recovery.RESTORE,
    "begin": torn_recovery.BEGIN,
    "carry": torn_recovery.CARRY,
}
NOT_BEGUN = (
    *torn_recovery.OPEN,
    *torn_recovery.REMEMBER,
    *torn_recovery.RESTORE,
    *torn_recovery.BEGIN,
    *torn_recovery.EXPIRE,
)
"""Cases whose cell nobody has opened yet."""


@pytest.fixture
async def faulty(redis_url: str, cell: str) -> AsyncGenerator[FaultyConnection]:
    """A cell of the debug build, whose pages are small."""
    connection = FaultyConnection(redis_url, cell, has_small_pages=True)
    await connection.load()
    yield connection
    await connection.close()


def all_cases() -> list[Any]:
    """Every case, under the name of its function."""
    named = [(function, case) for function, cases in CASES.items() for case in cases]
    return [pytest.param(case, id=f"{function}-{case.__name__}") for function, case in named]


async def built(faulty: FaultyConnection, case: Case) -> tuple[Rig, Call]:
    """Build a case's state."""
    rig = FaultyRig(faulty)
    if case not in NOT_BEGUN:
        await rig.cell.open(CONFIG)
        await rig.cell.begin({})
    return rig, await case(rig)


async def run_clean(faulty: FaultyConnection, call: Call) -> tuple[int, Raw]:
    """Run the call as it should be. Returns how many calls it makes and the state afterwards."""
    await faulty.arm(0)
    reply = await call.run()
    calls = await faulty.arm(0)
    assert call.of(reply) == call.reply, reply
    return calls, timeless(await faulty.raw())


async def run_torn(faulty: FaultyConnection, call: Call, k: int) -> bool:
    """Run the call so that it fails at its k-th; False if it is over by then."""
    await faulty.arm(k)
    try:
        await call.run()
    except DependencyError as error:
        if not is_fault(error):
            raise
        return True
    finally:
        await faulty.arm(0)
    return False


@pytest.mark.parametrize("case", all_cases())
async def test_a_call_that_fails_anywhere_has_changed_nothing_and_may_be_repeated(
    faulty: FaultyConnection, case: Case
) -> None:
    rig, call = await built(faulty, case)
    before = await faulty.raw()
    await faulty.keep()
    calls, expected = await run_clean(faulty, call)
    stops: list[Raw] = []

    for k in range(1, calls + 1):
        await faulty.restore()
        assert await run_torn(faulty, call, k), f"call {k} of {calls} does not come to pass"

        after = await faulty.raw()
        difference = changed(before, after)
        assert not difference or call.steps, f"failing at call {k} of {calls} has changed {difference}"
        if difference and timeless(after) not in stops:
            await rig.check()
            stops.append(timeless(after))
        reply = await call.run()
        # A step that was done does not count again, and the reply may say so.
        assert difference or call.of(reply) == call.reply, reply
        assert changed(expected, timeless(await faulty.raw())) == {}, f"repeated after failing at {k} of {calls}"

    assert len(stops) <= call.steps
    await rig.check()


async def test_there_is_a_case_for_each_function_that_writes(faulty: FaultyConnection) -> None:
    assert await faulty.writing() - {"mend"} == set(CASES)  # mending is made to fail in test_audit.py


class TornCommands(SameCommands):
    """The same commands, each of which fails on the library's side and is repeated."""

    def __init__(self) -> None:
        super().__init__()
        self._runner.run(self._connection.close())
        self._torn = TornConnection(*self.address)
        self._connection = self._torn
        self._rigs = (redis_rig(self._torn), self._rigs[1])

    @initialize(seed=st.integers(0, 2**32))
    def choose(self, seed: int) -> None:
        """Say where calls fail."""
        chance = random.Random(seed)
        self._torn.choose = lambda calls: chance.randint(1, calls)
        self._torn.on_stop = self._rigs[0].check


def test_commands_that_fail_and_are_repeated_do_what_the_twin_does(redis_url: str, cell: str) -> None:
    class Here(TornCommands):
        address = redis_url, cell

    run_state_machine_as_test(Here, settings=explored(10))
