"""Two faults at once, drawn at random: one is made, the other on top of it, then both are mended in reverse."""

import random
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

from taskyard.compose.process import Server
from tests.fault.fleet import Fleet
from tests.fault.processes import AOF_BACK_S

_ROUNDS = 6
_BOTH_S = (0.3, 4.0)  # shorter and longer than leases and sessions
_BETWEEN_S = (0.5, 2.0)


def two_at_once(system: Fleet) -> None:
    """Each round says in its disturbances which two they were."""
    for _ in range(_ROUNDS):
        first, second = random.sample(FAULTS, 2)
        with first(system), second(system):
            system.flow(random.uniform(*_BOTH_S))
        for program in (*system.dispatchers, *system.workers):
            program.wait_ready()
        system.flow(random.uniform(*_BETWEEN_S))


@contextmanager
def _dead_dispatcher(system: Fleet) -> Generator[None]:
    dispatcher = random.choice(system.dispatchers)
    with system.disturbance(f"kill -9 {dispatcher.name}"):
        system.kill(dispatcher)
        yield
        system.revive(dispatcher, is_awaited=False)


@contextmanager
def _dead_worker(system: Fleet) -> Generator[None]:
    worker = random.choice(system.workers[1:])
    with system.disturbance(f"kill -9 {worker.name}"):
        system.kill(worker)
        yield
        system.revive(worker, is_awaited=False)


@contextmanager
def _paused_worker(system: Fleet) -> Generator[None]:
    # Never one that is killed: it would be started again beside itself.
    worker = system.workers[0]
    with system.lost(worker, "stop"), _paused(system, worker):
        yield


@contextmanager
def _paused_kafka(system: Fleet) -> Generator[None]:
    with _paused(system, system.kafka):
        yield


@contextmanager
def _paused(system: Fleet, server: Server) -> Generator[None]:
    with system.disturbance(f"stop {server.name}"):
        server.pause()
        yield
        server.resume()


@contextmanager
def _dead_valkey(system: Fleet) -> Generator[None]:
    with system.disturbance("kill -9 valkey", "rollback", back_s=AOF_BACK_S):
        system.valkey.kill()
        yield
        system.valkey.start()


@contextmanager
def _lost_replies(system: Fleet) -> Generator[None]:
    with system.disturbance("valkey loses replies"):
        system.proxies["valkey"].lose_replies()
        yield
        system.proxies["valkey"].cut()


@contextmanager
def _silent_valkey(system: Fleet) -> Generator[None]:
    with system.disturbance("valkey silent"):
        system.proxies["valkey"].swallow(is_on=True)
        yield
        system.proxies["valkey"].swallow(is_on=False)


FAULTS: tuple[Callable[[Fleet], AbstractContextManager[None]], ...] = (
    _dead_dispatcher,
    _dead_worker,
    _paused_worker,
    _paused_kafka,
    _dead_valkey,
    _lost_replies,
    _silent_valkey,
)
