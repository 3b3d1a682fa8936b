"""Publish tasks.

async with Producer("127.0.0.1:9092") as producer:
    await producer.publish(type="summarise", payload={"text": "…"}, priority="high")
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from taskyard.producers.kafka import TURN, Acknowledgement, KafkaLink, Record
from taskyard.schemas.codec import CONTENT_TYPE, JSON, Codec, codec_for, content_headers
from taskyard.schemas.errors import SchemaError
from taskyard.schemas.limits import DEFAULT, Limits, check_headers, check_task
from taskyard.schemas.task import Task, TaskId
from taskyard.schemas.topics import topics

Headers = Sequence[tuple[str, bytes]]


class TaskFields(TypedDict, total=False):
    """The fields of a task, as `Task` documents them; `payload` is any value that the codec can encode."""

    type: str
    payload: object
    id: str
    priority: str
    requirements: Mapping[str, int]
    constraints: Mapping[str, str]
    tenant: str
    session: str
    deadline_ms: int
    timeout_ms: int
    max_attempts: int


class Producer:
    """Publishes tasks to one cell; for one event loop, any number of asyncio tasks.

    kafka: bootstrap servers, host:port,host:port. prefix: the cell's, put in front of the topics' names.
    timeout_s: of every wait for Kafka. max_wait_s: how long a task waits for room in the buffer.
    options: for aiokafka's producer, such as `security_protocol`, `ssl_context`, `sasl_mechanism`.

    A task is checked before it is sent, as the dispatcher will: SchemaError names the field. What Kafka does not do in
    time raises DependencyError. Nothing that is cancelled or has timed out is known not to have been sent; publishing
    it again with the same id is harmless.
    """

    def __init__(
        self,
        kafka: str = "127.0.0.1:9092",
        *,
        prefix: str = "",
        codec: Codec = JSON,
        limits: Limits = DEFAULT,
        timeout_s: float = 30.0,
        max_wait_s: float = 5.0,
        **options: Any,
    ) -> None:
        self._link = KafkaLink(kafka, timeout_s=timeout_s, max_wait_s=max_wait_s, options=options)
        self._topics = topics(prefix).tasks
        self._codec = codec
        self._limits = limits
        self._own_headers = content_headers(codec)

    async def __aenter__(self) -> Self:
        await self._link.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._link.stop()

    async def publish(
        self, task: Task | None = None, /, *, headers: Headers = (), **fields: Unpack[TaskFields]
    ) -> TaskId:
        """Publish a task, given whole or by its fields, and return its id when the broker has acknowledged it.

        headers: passed on untouched, such as `traceparent` and `ce_*`.
        Raises SchemaError before anything is sent, Backpressure, DependencyError.
        """
        if task is None:
            task = self._task(fields)
        elif fields:
            raise TypeError(f"a task and its fields {', '.join(fields)}; give the one or the others")
        await (await self.send(task, headers=headers))
        return task.id

    async def send(self, task: Task, *, headers: Headers = ()) -> Acknowledgement:
        """Put a task into the buffer; await what this returns to know that the broker has it.

        Raises SchemaError before anything is sent; Backpressure if the buffer stays full; DependencyError.
        """
        return await self._link.send(self._record(task, headers))

    async def publish_many(self, tasks: Iterable[Task]) -> int:
        """Publish tasks, many on the way at once, and return how many the broker has acknowledged: all of them.

        Raises as `publish` does at the first that fails; those before it have been sent, those behind it have not.
        """
        waiting: deque[Acknowledgement] = deque()
        count = 0
        for sent, task in enumerate(tasks, 1):
            waiting.append(await self.send(task))
            if sent % TURN == 0:
                await asyncio.sleep(0)
            while waiting and waiting[0].is_done():
                await waiting.popleft()
                count += 1
        for acknowledgement in waiting:
            await acknowledgement
            count += 1
        return count

    async def flush(self) -> None:
        """Wait until everything sent so far is acknowledged or refused; the acknowledgements say which."""
        await self._link.flush()

    def _task(self, fields: TaskFields) -> Task:
        if "type" not in fields:
            raise SchemaError("is required", field="type")
        values: dict[str, Any] = dict(fields)
        if "payload" in values:
            values["payload"] = self._codec.encode_payload(values["payload"])
        return Task(**values)

    def _record(self, task: Task, headers: Headers) -> Record:
        value = self._codec.encode_task(task)
        # Read back: a Task made in Python may hold anything, and its Raw may not be of this encoding.
        read = self._codec.decode_task(value, self._limits)
        check_task(read, self._limits)
        own = [*headers, *self._own_headers] if headers else self._own_headers
        if headers:
            self._check(headers, own)
        return Record(self._topics[read.priority], read.id.encode(), value, own)

    def _check(self, headers: Headers, own: Headers) -> None:
        # A caller without a type checker may hand over anything, and aiokafka would only fail at it.
        for name, value in headers:
            if not isinstance(name, str) or not isinstance(value, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise SchemaError(f"{name!r} must be text with bytes as its value", field="headers")
        check_headers(own, self._limits)
        if codec_for(own) is not self._codec:
            raise SchemaError(f"the payload is {self._codec.content_type}", field=CONTENT_TYPE)
