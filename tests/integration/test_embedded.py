"""The embedded services are real, keep what they were given, and never outlive their owner."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from taskyard.compose import embedded
from taskyard.compose.embedded import Services
from taskyard.compose.process import ServiceError, free_port
from taskyard.compose.valkey import Valkey

# A process that owns services and says where they are, then waits to be ended from outside.
OWNER = """
import sys, threading
from taskyard.compose import embedded
with embedded.start() as services:
    print(services.kafka_pid, services.redis_pid, services.directory, flush=True)
    threading.Event().wait()
"""


@pytest.fixture(scope="module")
def own() -> Generator[Services]:
    """Services of this module's own, which its tests may kill."""
    with embedded.start() as services:
        yield services


@contextlib.contextmanager
def _client(url: str) -> Generator[Any]:
    """A client for what is tested here; redis-py types itself only in part."""
    client: Any = redis.Redis.from_url(url, decode_responses=True)  # pyright: ignore[reportUnknownMemberType]
    with contextlib.closing(client):
        yield client


def _wait_until(condition: Callable[[], bool], *, within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not true within {within_s} s"
        time.sleep(0.02)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    # A zombie that nobody has waited for yet is dead.
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


async def _publish(address: str, topic: str, value: bytes) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()
    producer: Any = AIOKafkaProducer(bootstrap_servers=address)
    async with producer:
        await producer.send_and_wait(topic, value)


async def _first_value(address: str, topic: str) -> bytes | None:
    consumer: Any = AIOKafkaConsumer(
        topic, bootstrap_servers=address, auto_offset_reset="earliest", group_id=f"of-{topic}"
    )
    await consumer.start()
    try:
        return (await consumer.getone()).value
    finally:
        await consumer.stop()


async def test_a_record_survives_the_kill_of_kafka(own: Services) -> None:
    await _publish(own.kafka, "survives", b"kept")
    pid, address = own.kafka_pid, own.kafka

    own.kafka_server.kill()
    own.kafka_server.start()

    assert own.kafka == address
    assert own.kafka_pid != pid
    assert await _first_value(own.kafka, "survives") == b"kept"


def test_a_paused_server_stands_still_with_all_its_threads(own: Services) -> None:
    for _ in range(10):
        own.kafka_server.pause()
        threads = list(Path(f"/proc/{own.kafka_pid}/task").glob("*/stat"))
        states = {stat.read_text().rpartition(")")[2].split()[0] for stat in threads}
        own.kafka_server.resume()

        assert states == {"T"}


async def test_kafka_does_not_make_a_topic_that_nobody_created(own: Services) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=own.kafka)
    await admin.start()
    try:
        await admin.describe_topics(["nobody-made-me"])
        topics = await admin.list_topics()
    finally:
        await admin.close()

    assert "nobody-made-me" not in topics


def test_a_key_survives_the_kill_of_valkey_once_it_was_written_to_disk(own: Services) -> None:
    with _client(own.redis) as client:
        client.set("survives", "kept")
        client.execute_command("WAITAOF", 1, 0, 5000)
        own.redis_server.kill()
        own.redis_server.start()

        assert client.get("survives") == "kept"


def test_valkey_runs_functions_and_takes_no_snapshots(own: Services) -> None:
    library = "#!lua name=probe\nredis.register_function('probe', function() return 42 end)"
    with _client(own.redis) as client:
        client.function_load(library, replace=True)

        assert client.fcall("probe", 0) == 42
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}


def test_valkey_runs_with_another_allocator(tmp_path: Path) -> None:
    library = "libanl.so.1"  # no allocator, but on every machine with this C library, and not loaded otherwise
    server = Valkey(tmp_path, allocator=library)
    server.start()
    try:
        assert library in Path(f"/proc/{server.pid}/maps").read_text()
    finally:
        server.stop()


def test_both_listen_on_this_machine_only(own: Services) -> None:
    # A server on all addresses would answer here too: the whole of 127.0.0.0/8 is this machine.
    for port in (own.kafka_server.port, own.redis_server.port):
        with pytest.raises(OSError, match=r"."), socket.create_connection(("127.0.0.2", port), 1):
            pass


def test_a_named_directory_is_kept_and_used_again(tmp_path: Path) -> None:
    with embedded.start_valkey(tmp_path) as valkey, _client(valkey.url) as client:
        client.set("survives", "kept")

    with embedded.start_valkey(tmp_path) as valkey, _client(valkey.url) as client:
        assert client.get("survives") == "kept"


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    with embedded.start_valkey(tmp_path), pytest.raises(ServiceError, match="in use by another process"):
        embedded.start_valkey(tmp_path).__enter__()


def test_a_temporary_directory_is_removed() -> None:
    with embedded.start_valkey() as valkey:
        directory = valkey.directory
        assert directory.is_dir()

    assert not directory.exists()
    assert not valkey.is_running


def test_a_server_that_cannot_start_quotes_its_log_and_says_what_to_do(tmp_path: Path) -> None:
    port = free_port()
    with embedded.start_valkey(port=port):
        second = Valkey(tmp_path, port)

        with pytest.raises(ServiceError, match=r"Address already in use[\s\S]*name another one"):
            second.start()


# The parent-death signal is Linux's; elsewhere a killed owner leaves its children behind.
ENDINGS = [signal.SIGTERM, signal.SIGINT, *([signal.SIGKILL] if sys.platform == "linux" else [])]


@pytest.mark.parametrize("how", ENDINGS)
def test_the_children_end_with_their_owner_however_it_ends(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as owner:
        assert owner.stdout is not None
        kafka_pid, redis_pid, directory = owner.stdout.readline().decode().split()

        owner.send_signal(how)
        owner.wait(30)

    _wait_until(lambda: _is_gone(int(kafka_pid)) and _is_gone(int(redis_pid)), within_s=10)
    with embedded.start_valkey():
        # What a killed owner leaves behind is swept by the next start; the others have tidied up themselves.
        assert not Path(directory).exists()
