"""SIGTERM at any moment: the process leaves in time and in order, and nothing is lost or left behind.

TASKYARD_STOPS sets how many moments are tried (7; the eighth takes 20 s), TASKYARD_STOPS_SEED which ones.
"""

import asyncio
import os
import random
import select
import signal
import socket
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from taskyard.compose import embedded
from taskyard.compose.kafka import Kafka
from taskyard.compose.valkey import Valkey
from taskyard.dispatcher.kafka.waits import stopped
from tests.integration.stopping import DRAIN_S, Grounds, Process, open_grounds, silent, until

MOMENTS = int(os.environ.get("TASKYARD_STOPS", "7"))
SEED = int(os.environ.get("TASKYARD_STOPS_SEED", "1"))
# Beyond its drain: for the interpreter to start and end on a machine that is busy.
MARGIN_S = 6.0
# Each of a worker's rungs may take so long if the cell is away, and there are four that need it.
RUNG_S = 5.0
KINDS = ("dispatcher", "worker")
WHENS = ("starting", "loaded", "kafka away", "valkey away")


@pytest.fixture(scope="module")
def servers() -> Generator[tuple[Kafka, Valkey]]:
    """Of these tests alone: they are made silent."""
    with embedded.start_kafka() as kafka, embedded.start_valkey() as valkey:
        yield kafka, valkey


@pytest.fixture
async def grounds(tmp_path: Path, servers: tuple[Kafka, Valkey]) -> AsyncGenerator[Grounds]:
    async with open_grounds(tmp_path, *servers) as opened:
        yield opened


@pytest.mark.timeout(60 + 40 * MOMENTS)
async def test_a_process_that_is_told_to_stop_at_any_moment_leaves_in_time_and_loses_nothing(grounds: Grounds) -> None:
    rng = random.Random(SEED)
    moments = [(kind, when) for when in WHENS for kind in KINDS]
    staying = [await grounds.dispatcher(), await grounds.worker()]
    await staying[0].logged("partitions_positioned")
    await staying[1].logged("worker_running")

    for number in range(MOMENTS):
        kind, when = moments[number % len(moments)]
        await _stop_at(grounds, rng, number, kind, when)

    outcomes = await grounds.outcomes()
    assert {status for statuses in outcomes.values() for status in statuses} == {"succeeded"}
    assert grounds.published == outcomes.keys()
    await until(lambda: _has_instances(grounds, 1), "only the instance of the worker that stays is left")
    for view in await grounds.view.instances():
        await until(lambda name=view.id: _has_no_drift(grounds, name), "no capacity has leaked")
    for process in staying:
        process.signal(signal.SIGTERM)
    for process in staying:
        await process.ended(DRAIN_S + MARGIN_S)
    assert not await grounds.view.instances()
    assert staying[0].name not in await _owners(grounds)
    await until(lambda: _has_no_leases(grounds), "what could not be given back has run out")


async def _stop_at(grounds: Grounds, rng: random.Random, number: int, kind: str, when: str) -> None:
    """Start one more process, tell it to stop at a moment of the rng's choice, and wait until it has."""
    tasks = [(f"t{number}-{n}", rng.choice((0.0, 0.05, 0.5))) for n in range(60)]
    process = await (grounds.dispatcher() if kind == "dispatcher" else grounds.worker())
    if when == "starting":
        await grounds.publish(*tasks)
        await _moment(rng, 3.0)
        await _stopped(process, kind, when)
        return
    await process.logged("partitions_positioned" if kind == "dispatcher" else "worker_running")
    await grounds.publish(*tasks)
    away = {"kafka away": [grounds.kafka], "valkey away": [grounds.valkey]}.get(when, [])
    with silent(*away):
        await _moment(rng, 0.5)
        await _stopped(process, kind, when)
    if when != "valkey away" and kind == "dispatcher":
        assert process.name not in await _owners(grounds)


async def _moment(rng: random.Random, most_s: float) -> None:
    # Nothing is waited for here: a random moment is what is tested.
    await asyncio.sleep(rng.uniform(0, most_s))


async def _stopped(process: Process, kind: str, when: str) -> None:
    process.signal(signal.SIGTERM)
    is_cut_off = kind == "worker" and when == "valkey away"
    took_s = await process.ended(DRAIN_S + MARGIN_S + (4 * RUNG_S if is_cut_off else 0))
    print(f"{kind} {when}: {took_s:.1f} s")  # noqa: T201 - shown if the test fails


@pytest.mark.parametrize(("kind", "variable"), [("dispatcher", "KAFKA"), ("dispatcher", "REDIS"), ("worker", "REDIS")])
async def test_a_process_that_waits_at_its_start_for_a_server_that_does_not_answer_leaves_soon(
    grounds: Grounds, kind: str, variable: str
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        environment = {f"TASKYARD_{variable}": address if variable == "KAFKA" else f"redis://{address}/0"}
        process = await (grounds.dispatcher if kind == "dispatcher" else grounds.worker)(**environment)
        await until(lambda: _is_called(deaf), "it has called the server")

        process.signal(signal.SIGTERM)

        # A worker's registration may be on its way: it waits for the answer, in order to leave again.
        await process.ended(MARGIN_S + (RUNG_S if kind == "worker" else 0))


async def test_a_second_sigint_ends_the_wait_for_what_a_worker_runs(grounds: Grounds) -> None:
    await (await grounds.dispatcher()).logged("partitions_positioned")
    worker = await grounds.worker(TASKYARD_WORKER_DRAIN_MS="600000")
    await worker.logged("worker_running")
    await grounds.publish(("long", 3600.0))
    await until(lambda: _is_started(grounds, "long"), "the task runs")

    worker.signal(signal.SIGINT)
    await worker.logged("drain_waits")
    worker.signal(signal.SIGINT)

    await worker.ended(MARGIN_S)
    await until(lambda: _is_parked_again(grounds, "long"), "the task waits for another worker, its attempt counted")
    assert await grounds.view.instances() == []


async def test_the_stop_of_a_client_that_is_cut_off_leaves_no_task_behind() -> None:
    begun = asyncio.Event()

    async def stop() -> None:
        begun.set()
        await asyncio.Event().wait()

    stopping = asyncio.create_task(stopped(stop()))
    await begun.wait()
    stopping.cancel()

    with pytest.raises(asyncio.CancelledError):
        await stopping
    # And `no_task_is_left` looks whether the inner one has ended too.


async def _is_called(server: socket.socket) -> bool:
    return bool(select.select([server], [], [], 0)[0])


async def _is_started(grounds: Grounds, task_id: str) -> bool:
    place = await grounds.view.find(task_id)
    if place is None or place.state != "queued":
        return False
    (view,) = await grounds.view.instances()
    return view.reported.cursor >= place.at


async def _is_parked_again(grounds: Grounds, task_id: str) -> bool:
    place = await grounds.view.find(task_id)
    return place is not None and place.state == "parked" and place.attempt == 2


async def _has_instances(grounds: Grounds, count: int) -> bool:
    return len(await grounds.view.instances()) == count


async def _has_no_drift(grounds: Grounds, instance: str) -> bool:
    drift = await grounds.view.audit(instance)
    return not drift.misplaced and not any(drift.used.values())


async def _owners(grounds: Grounds) -> set[str]:
    """The names of the dispatchers that hold a lease."""
    command, root = grounds.connection.command, grounds.connection.root
    owners = [await command("GET", lock) for lock in await command("KEYS", f"{root}:lock:*")]
    return {owner.decode() for owner in owners if owner is not None}


async def _has_no_leases(grounds: Grounds) -> bool:
    return not await _owners(grounds)
