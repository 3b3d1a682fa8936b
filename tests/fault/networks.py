"""Faults of the network: slow, cut, half-open, silent, replies lost."""

import contextlib
from collections.abc import Generator

from tests.fault.fleet import LEASE_MS, Fleet
from tests.fault.proxy import Proxy

_DELAY_S = 0.05
_SILENT_S = 4.0


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
