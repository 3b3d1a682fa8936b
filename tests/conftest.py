"""Where the tests' Kafka and Valkey come from, and the guards that every test runs under.

TASKYARD_TEST_SERVICES chooses the source: `embedded` (default) starts real servers from the embedded package;
`containers` starts pinned images and needs a Docker engine; `given` uses TASKYARD_KAFKA and TASKYARD_REDIS.
One server of each kind serves the whole session, and only if a test asks for it; tests stay apart by the names that
`cell` and `prefix` give them.
"""

import asyncio
import contextlib
import dataclasses
import inspect
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest
import redis

from taskyard.compose import embedded
from taskyard.compose.kafka import answers
from taskyard.compose.process import free_port

KAFKA_IMAGE = "apache/kafka:4.4.0"
VALKEY_IMAGE = "valkey/valkey:9.1.2-alpine"
_CONTAINER_READY_S = 90


@dataclasses.dataclass(frozen=True)
class TestServices:
    """The addresses of both services, whatever their source."""

    __test__ = False

    kafka: str
    redis: str


def _given(name: str) -> Generator[str]:
    address = os.environ.get(name)
    if not address:
        pytest.fail(f"TASKYARD_TEST_SERVICES=given needs {name}", pytrace=False)
    yield address


def _embedded_kafka() -> Generator[str]:
    with embedded.start_kafka() as kafka:
        yield kafka.address


def _embedded_valkey() -> Generator[str]:
    with embedded.start_valkey() as valkey:
        yield valkey.url


# The two container sources have been type-checked but not run where they were written: no Docker engine was there.
def _kafka_container() -> Generator[str]:
    # Not testcontainers' KafkaContainer: that one is made for another vendor's images. The port is chosen before the
    # start because the broker must advertise it.
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - needs the engine's client

    port = free_port()
    settings = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_LISTENERS": f"PLAINTEXT://0.0.0.0:{port},CONTROLLER://localhost:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    }
    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(port, port)
    for name, value in settings.items():
        container.with_env(name, value)
    with container:
        _wait_for(lambda: answers(port), f"{KAFKA_IMAGE} on port {port}")
        yield f"127.0.0.1:{port}"


def _valkey_container() -> Generator[str]:
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - needs the engine's client

    port = free_port()
    command = ["valkey-server", "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
    url = f"redis://127.0.0.1:{port}/0"
    with DockerContainer(VALKEY_IMAGE).with_bind_ports(6379, port).with_command(command):
        _wait_for(lambda: _pings(url), f"{VALKEY_IMAGE} on port {port}")
        yield url


def _pings(url: str) -> bool:
    with _client(url) as client, contextlib.suppress(redis.RedisError):
        return client.ping() is True
    return False


@contextlib.contextmanager
def _client(url: str) -> Generator[Any]:
    """A client for the fixtures; redis-py types itself only in part."""
    with contextlib.closing(redis.Redis.from_url(url)) as client:  # pyright: ignore[reportUnknownMemberType]
        yield client


def _wait_for(is_ready: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + _CONTAINER_READY_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError):
            if is_ready():
                return
        time.sleep(0.1)
    pytest.fail(f"{what} did not answer within {_CONTAINER_READY_S} s", pytrace=False)


_KAFKA_SOURCES = {
    "embedded": _embedded_kafka,
    "containers": _kafka_container,
    "given": lambda: _given("TASKYARD_KAFKA"),
}
_REDIS_SOURCES = {
    "embedded": _embedded_valkey,
    "containers": _valkey_container,
    "given": lambda: _given("TASKYARD_REDIS"),
}


def _source(sources: dict[str, Callable[[], Generator[str]]]) -> Generator[str]:
    name = os.environ.get("TASKYARD_TEST_SERVICES", "embedded")
    if name not in sources:
        pytest.fail(f"TASKYARD_TEST_SERVICES={name} is none of {', '.join(sources)}", pytrace=False)
    return sources[name]()


@pytest.fixture(scope="session")
def kafka_address() -> Generator[str]:
    """The bootstrap server of a Kafka that all tests share."""
    yield from _source(_KAFKA_SOURCES)


@pytest.fixture(scope="session")
def redis_url() -> Generator[str]:
    """The address of a Valkey that all tests share."""
    yield from _source(_REDIS_SOURCES)


@pytest.fixture(scope="session")
def services(kafka_address: str, redis_url: str) -> TestServices:
    """Both of them."""
    return TestServices(kafka_address, redis_url)


@pytest.fixture
def prefix() -> str:
    """A topic prefix that no other test has."""
    return f"test-{uuid.uuid4().hex[:12]}."


@pytest.fixture
def cell(redis_url: str) -> Generator[str]:
    """A cell name that no other test has; its keys, known by the hash tag, are removed afterwards."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    with _client(redis_url) as client:
        for key in client.scan_iter(match=f"*{{{name}}}*", count=10_000):
            client.unlink(key)


@pytest.fixture(autouse=True)
def no_task_is_left(request: pytest.FixtureRequest) -> None:
    """Fail an async test that leaves an asyncio task behind: it has stopped something without waiting for it."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("_no_task_is_left")


@pytest.fixture
async def _no_task_is_left() -> AsyncGenerator[None]:
    before = asyncio.all_tasks()
    yield
    # A task that was cancelled or has just got its result needs a turn of the loop to end.
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() - before - {asyncio.current_task()} if not task.done()]
    assert not left, f"left running: {', '.join(task.get_name() for task in left)}"
