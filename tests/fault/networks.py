"""Faults of the network: slow, cut, half-open, silent, replies lost, reads lost."""

import contextlib
from collections.abc import Generator

from tests.fault.fleet import LEASE_MS, Fleet
from tests.fault.programs import Worker
from tests.fault.proxy import Proxy

_DELAY_S = 0.05
_SILENT_S = 4.0
# Why the cell has closed an instance that beats but does not read: the word of the library, `UNREAD`.
_UNREAD = b"not reading"
_STAYS_S = 2.0  # two beats


def valkey_network(system: Fleet) -> None:
    """Everything that a network does, between Valkey and all others."""
    _all_faults(system, system.proxies["valkey"], "valkey")


def kafka_network(system: Fleet) -> None:
    """The same between Kafka and all others."""
    _all_faults(system, system.proxies["kafka"], "kafka")


def _all_faults(system: Fleet, proxy: Proxy, name: str) -> None:
    with system.disturbance(f"{name} slow"):
        proxy.delay(_DELAY_S)
        system.flow(2.0)
        proxy.delay(0.0)
    for _ in range(3):
        with system.disturbance(f"{name} cut"):
            proxy.cut()
            system.flow(0.3)
    with system.disturbance(f"{name} loses replies"):
        proxy.lose_replies()
        system.flow(0.5)
        proxy.cut()
    with system.disturbance(f"{name} half-open"), _lost_by_all(system, name):
        proxy.half_open()
        system.flow(_SILENT_S)
    with system.disturbance(f"{name} silent"), _lost_by_all(system, name):
        proxy.swallow(is_on=True)
        system.flow(_SILENT_S)
        proxy.swallow(is_on=False)
    with system.disturbance(f"{name} refuses"):
        proxy.refuse()
        system.flow(1.0)
        proxy.accept()


@contextlib.contextmanager
def _lost_by_all(system: Fleet, name: str) -> Generator[None]:
    """Without Valkey for longer than their leases, all workers are as lost as one that is cut off alone."""
    with contextlib.ExitStack() as stack:
        for worker in system.workers if name == "valkey" else ():
            stack.enter_context(system.lost(worker, f"{name} away"))
        yield


def worker_cut_off(system: Fleet) -> None:
    """One worker alone does not reach the cell for longer than its lease, twice: silent, then half-open and refused."""
    worker, proxy = system.workers[-1], system.proxies[system.workers[-1].name]
    with system.disturbance("worker cut off"), system.lost(worker, "silent"):
        proxy.swallow(is_on=True)
        system.flow(LEASE_MS / 1000 + 2.0)
        proxy.swallow(is_on=False)
    system.flow(2.0)
    with system.disturbance("worker cut off"), system.lost(worker, "refused"):
        proxy.half_open()
        proxy.refuse()
        system.flow(LEASE_MS / 1000 + 2.0)
        proxy.accept()


def worker_deaf(system: Fleet) -> None:
    """One worker beats and tells its endings, but reads nothing until all that was placed on it has been taken back.

    It keeps its leases, so it is not excused as lost: what it had started must not be taken from it, and what was taken
    must not start there, not even late. When it hears again nothing of that is on its queues any more, and the answers
    to what it had asked for before are cut off.
    """
    worker, proxy = system.workers[-1], system.proxies[system.workers[-1].name]
    with system.disturbance("worker deaf"):
        proxy.lose_reads(is_on=True)
        try:
            system.until(lambda: _why_closed(system, worker) == {_UNREAD}, "all instances of the deaf one are cordoned")
            system.until(
                lambda: not _queued(system, worker), "what it did not read is taken back, what it ran has ended"
            )
            system.flow(_STAYS_S)
            if _why_closed(system, worker) != {_UNREAD}:
                system.unexpected.append(f"an instance of {worker.name} that reads nothing was opened again")
            runs = _runs_bytes(system, worker)
        finally:
            proxy.lose_reads(is_on=False)
    system.until(lambda: _why_closed(system, worker) == {None}, "all its instances are open again")
    system.until(lambda: _runs_bytes(system, worker) > runs, "it runs tasks again")


def _why_closed(system: Fleet, worker: Worker) -> set[bytes | None]:
    """Of each instance; None for one that is open."""
    return set(system.valkey.ask("HMGET", f"{_root(system)}:closed", *_instances(system, worker)))


def _queued(system: Fleet, worker: Worker) -> int:
    return sum(system.valkey.ask("XLEN", f"{_root(system)}:q:{name}") for name in _instances(system, worker))


def _runs_bytes(system: Fleet, worker: Worker) -> int:
    """How much the process has written down of what it ran."""
    return (system.directory / f"{worker.life}.runs").stat().st_size


def _root(system: Fleet) -> str:
    return f"ty:{{{system.settings.cell}}}"


def _instances(system: Fleet, worker: Worker) -> list[str]:
    host = system.layout.hosts[system.workers.index(worker)]
    return [f"{worker.name}-{n}" for n in range(1, host.instances + 1)]
