"""Processes that are told to stop: real dispatchers and workers, on a Kafka and a Valkey that can be made silent."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from taskyard.compose.kafka import Kafka
from taskyard.compose.process import Server
from taskyard.compose.valkey import Valkey
from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cell.view import RedisView
from taskyard.schemas.codec import JSON
from taskyard.schemas.task import AgentType, Task, TaskId
from taskyard.schemas.topics import topics

PROGRAM = Path(sys.executable).with_name("taskyard")
DRAIN_S = 2.0
LEASE_S = 2.0
WITHIN_S = 60.0
_SETTINGS = f"""
drain_ms = {DRAIN_S * 1000:.0f}
[topics]
partitions = 2
[http]
port = 0
[intake]
session_timeout_ms = 2000
[worker]
lease_ms = {LEASE_S * 1000:.0f}
drain_ms = {DRAIN_S * 1000:.0f}
[log]
format = "json"
"""
_AGENTS = """
import asyncio

async def work(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds

handlers = {"work": work}
"""


class Process:
    """One `taskyard dispatcher` or `taskyard worker`, and the events that it has logged."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.events: list[dict[str, Any]] = []
        self.odd: list[str] = []
        self._reading = asyncio.create_task(self._read(), name="read a log")

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            try:
                self.events.append(json.loads(line))
            except ValueError:
                self.odd.append(line.decode(errors="replace").rstrip())

    @property
    def name(self) -> str:
        """Under which a dispatcher holds its leases; empty if it has not come so far."""
        return next((row["name"] for row in self.events if row["event"] == "dispatcher_started"), "")

    @property
    def code(self) -> int | None:
        """Its exit code; None as long as it runs."""
        return self._process.returncode

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    async def logged(self, event: str) -> dict[str, Any]:
        """Wait until it has logged the event."""

        async def find() -> dict[str, Any] | None:
            assert self._process.returncode is None, self.told()
            return next((row for row in self.events if row["event"] == event), None)

        found = await until(find, f"{event} is logged")
        assert found is not None
        return found

    async def ended(self, within_s: float) -> float:
        """Wait for its end, which must come in time, with code 0 and nothing on standard error but log lines.

        Before it has begun anything, and taken the signals, it may simply be ended by one.
        """
        began_s = time.monotonic()
        try:
            await asyncio.wait_for(self._process.wait(), within_s)
        except TimeoutError:
            raise AssertionError(f"not ended within {within_s} s:\n{self.told()}") from None
        await self._reading
        code = self._process.returncode
        has_begun = any(row["event"] != "dispatcher_started" for row in self.events)
        assert code in ((0,) if has_begun else (0, -signal.SIGTERM)), f"code {code}:\n{self.told()}"
        assert not self.odd, self.told()
        return time.monotonic() - began_s

    async def kill(self) -> None:
        """End it if it still runs."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading

    def told(self) -> str:
        """What it has said, for whoever looks into a failure."""
        return "\n".join([*map(json.dumps, self.events[-30:]), *self.odd[-30:]])


class Grounds:
    """A cell on servers of its own. Published tasks are known, so that none can be lost unseen."""

    def __init__(self, folder: Path, kafka: Kafka, valkey: Valkey) -> None:
        name = f"stops-{uuid.uuid4().hex[:8]}"
        self.kafka = kafka
        self.valkey = valkey
        self.topics = topics(f"{name}.")
        self.connection = Connection(valkey.url, name)
        self.view = RedisView(self.connection)
        self.published: set[str] = set()
        self._folder = folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TASKYARD_")},
            "TASKYARD_KAFKA": kafka.address, "TASKYARD_REDIS": valkey.url, "TASKYARD_CELL": name,
            "TASKYARD_PREFIX": f"{name}.",
        }  # fmt: skip
        self._processes: list[Process] = []
        self.producer: Any = AIOKafkaProducer(bootstrap_servers=kafka.address)
        (folder / "taskyard.toml").write_text(_SETTINGS)
        (folder / "agents.py").write_text(_AGENTS)

    async def dispatcher(self, **environment: str) -> Process:
        """Start a dispatcher; it is not waited for."""
        return await self._start("dispatcher", environment)

    async def worker(self, **environment: str) -> Process:
        """Start a worker; it is not waited for."""
        return await self._start("worker", environment, "agents:handlers", "--slots", "20")

    async def _start(self, command: str, environment: dict[str, str], *words: str) -> Process:
        made = await asyncio.create_subprocess_exec(
            PROGRAM, command, *words, cwd=self._folder, env={**self._environment, **environment},
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        process = Process(made)
        self._processes.append(process)
        return process

    async def publish(self, *tasks: tuple[str, float]) -> None:
        """Publish tasks that take so many seconds."""
        sent: list[Any] = []
        for n, (task_id, takes_s) in enumerate(tasks):
            priority = ("critical", "normal", "low")[n % 3]
            task = Task(id=TaskId(task_id), type=AgentType("work"), priority=priority, max_attempts=50,
                        payload=JSON.encode_payload(takes_s))  # fmt: skip
            sent.append(await self.producer.send(self.topics.tasks[priority], JSON.encode_task(task)))
            self.published.add(task_id)
        await asyncio.gather(*sent)

    async def outcomes(self, *, within_s: float = WITHIN_S) -> dict[str, list[str]]:
        """Wait until every published task has an outcome; all there are, by task: their statuses."""
        consumer: Any = AIOKafkaConsumer(
            self.topics.results, bootstrap_servers=self.kafka.address, auto_offset_reset="earliest"
        )
        found: dict[str, list[str]] = {}

        async def all_told() -> bool:
            for rows in (await consumer.getmany(timeout_ms=100)).values():
                for outcome in map(JSON.decode_outcome, [row.value for row in rows]):
                    found.setdefault(outcome.id, []).append(outcome.status)
            return self.published <= found.keys()

        async with consumer:
            try:
                await until(all_told, "every task has an outcome", within_s=within_s)
            except AssertionError as error:
                missing = sorted(self.published - found.keys())
                places = [await self.view.find(task_id) for task_id in missing[:3]]
                told = "\n".join(process.told() for process in self._processes if process.code != 0)
                why = f"{error}; {len(missing)} are missing, as {missing[:3]}: {places}\n{told}"
                raise AssertionError(why) from None
        return found

    async def close(self) -> None:
        """End all that is left."""
        for process in self._processes:
            await process.kill()
        await self.producer.stop()
        await self.connection.close()


@contextlib.asynccontextmanager
async def open_grounds(folder: Path, kafka: Kafka, valkey: Valkey) -> AsyncGenerator[Grounds]:
    """Open a cell and topics of its own on these servers; all processes end with the block."""
    grounds = Grounds(folder, kafka, valkey)
    await grounds.producer.start()
    try:
        yield grounds
    finally:
        await grounds.close()


@contextlib.contextmanager
def silent(*servers: Server) -> Generator[None]:
    """Let the servers answer nobody; connections stay as they are."""
    for server in servers:
        server.pause()
    try:
        yield
    finally:
        for server in servers:
            server.resume()


async def until(probe: Callable[[], Awaitable[Any]], what: str, *, within_s: float = WITHIN_S) -> Any:
    """Ask again and again until the answer is true; returns it."""
    deadline_s = time.monotonic() + within_s
    while not (answer := await probe()):
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.02)
    return answer
