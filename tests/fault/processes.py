"""Faults of processes: killed, paused, started again."""

import random

from taskyard.compose.process import Server
from tests.fault.fleet import LEASE_MS, SESSION_MS, Fleet
from tests.fault.programs import Program

# Longer than any lease or session.
_PAUSED_S = 2.0 + max(LEASE_MS, SESSION_MS) / 1000
_ALL_KILLED = 5
# What `everysec` may lose: the file is written to at most 2 s late while it is being forced to disk.
AOF_BACK_S = 2.0


def kill_dispatcher(system: Fleet) -> None:
    """The others take over its partitions; then the same again with the other one."""
    for dispatcher in system.dispatchers:
        with system.disturbance(f"kill -9 {dispatcher.name}"):
            system.kill(dispatcher)
            system.flow(SESSION_MS / 1000 + 1.0)
            system.revive(dispatcher)
        system.flow(1.0)


def kill_all_dispatchers(system: Fleet) -> None:
    """None is left to take over, again and again: whatever the relay and the intake were doing is cut off there."""
    for _ in range(_ALL_KILLED):
        with system.disturbance("kill -9 all dispatchers"):
            for dispatcher in system.dispatchers:
                system.kill(dispatcher)
            for dispatcher in system.dispatchers:
                dispatcher.spawn()
            for dispatcher in system.dispatchers:
                system.revive(dispatcher)
        # Until the relay's lease (3 s) is free again, and outcomes are on their way to Kafka.
        system.flow(random.uniform(2.5, 4.5))


def kill_worker(system: Fleet) -> None:
    """One stays away for longer than its lease, one comes back at once under the same names."""
    for worker, away_s in zip(system.workers, (LEASE_MS / 1000 + 1.0, 0.0), strict=False):
        with system.disturbance(f"kill -9 {worker.name}"):
            system.kill(worker)
            system.flow(away_s)
            system.revive(worker)
        system.flow(1.0)


def kill_valkey(system: Fleet) -> None:
    """It comes back on what its append-only file holds."""
    with system.disturbance("kill -9 valkey", "rollback", back_s=AOF_BACK_S):
        system.valkey.kill()
        system.flow(1.0)
        system.valkey.start()


def kill_kafka(system: Fleet) -> None:
    """Placing stops, running goes on."""
    with system.disturbance("kill -9 kafka"):
        system.kafka.kill()
        system.flow(1.0)
        system.kafka.start()


def restart_kafka(system: Fleet) -> None:
    """An orderly restart of the broker."""
    with system.disturbance("restart kafka"):
        system.kafka.restart()


def pause_dispatcher(system: Fleet) -> None:
    """It wakes up and believes that it still has its partitions."""
    _pause(system, system.dispatchers[0])


def pause_worker(system: Fleet) -> None:
    """It wakes up as a zombie."""
    worker: Program = system.workers[0]
    with system.lost(worker, f"stop {worker.name}"):
        _pause(system, worker)


def pause_valkey(system: Fleet) -> None:
    """Every call hangs."""
    _pause(system, system.valkey)


def pause_kafka(system: Fleet) -> None:
    """Connections stay open and nobody answers."""
    _pause(system, system.kafka)


def _pause(system: Fleet, server: Server) -> None:
    with system.disturbance(f"stop {server.name}"):
        server.pause()
        system.flow(_PAUSED_S)
        server.resume()
