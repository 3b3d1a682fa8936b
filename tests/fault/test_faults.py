"""A short form of `python -m tests.fault`: one system under load takes several faults in a row, and is judged once.

The judgement is `check`, which is tested by itself; here it has to find nothing to say.
"""

import pytest

from tests.fault.check import Verdict, Violation, check
from tests.fault.fleet import Fleet, Host, Layout, fleet
from tests.fault.history import NEVER_S
from tests.fault.processes import pause_worker
from tests.fault.publisher import Plan
from tests.fault.states import aof_cut

_RATE = 1_000
_CALM_S = 2.0


@pytest.mark.timeout(240)
def test_no_task_is_lost_or_done_twice_while_processes_and_services_are_killed() -> None:
    """Dispatcher, worker and Kafka killed, Valkey back a second older, and a worker stopped until it is a zombie."""
    layout = Layout(hosts=(Host(instances=2), Host(instances=2)), plan=Plan(rate=_RATE))

    with fleet(layout) as system:
        for fault in (_kill_dispatcher, _kill_worker, aof_cut, _kill_kafka, pause_worker):
            system.flow(_CALM_S)
            fault(system)
        system.flow(_CALM_S)
        history = system.finish()

    verdict = check(history)
    assert not verdict.violations, _listed(verdict)
    assert verdict.tasks > _RATE * len(history.disturbances)
    # The faults were felt: something had to be started more than once.
    assert len(history.runs) > len({run.task_id for run in history.runs})
    assert all(task.appended_s < NEVER_S for task in history.published)


def _kill_dispatcher(system: Fleet) -> None:
    with system.disturbance("kill -9 dispatcher"):
        system.kill(system.dispatchers[0])
        system.revive(system.dispatchers[0])


def _kill_worker(system: Fleet) -> None:
    with system.disturbance("kill -9 worker"):
        system.kill(system.workers[0])
        system.revive(system.workers[0])


def _kill_kafka(system: Fleet) -> None:
    with system.disturbance("kill -9 kafka"):
        system.kafka.kill()
        system.kafka.start()


def _listed(verdict: Verdict) -> str:
    found: list[Violation] = verdict.violations[:20]
    return f"{verdict.by_rule()}\n" + "\n".join(f"{one.rule} {one.task_id}: {one.what}" for one in found)
