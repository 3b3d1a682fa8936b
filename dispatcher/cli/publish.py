"""`taskyard publish`: one task from flags, or many from JSON lines."""

import time
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from taskyard.dispatcher.cli.flags import NONE, Common, settings_of
from taskyard.dispatcher.cli.loop import run
from taskyard.dispatcher.cli.many import publish_file
from taskyard.dispatcher.cli.pairs import pairs
from taskyard.dispatcher.settings import Settings
from taskyard.producers.producer import Producer
from taskyard.schemas.errors import ConfigError
from taskyard.schemas.limits import Limits
from taskyard.schemas.priority import PRIORITIES
from taskyard.schemas.task import Task


@Parameter(name="*")
@dataclass(frozen=True)
class TaskFlags:
    """The fields of one task, as flags."""

    type: Annotated[str | None, Parameter(name="--type", help="agent type that the task wants")] = None
    payload: Annotated[str | None, Parameter(metavar="JSON", help="what the handler is given (default: null)")] = None
    priority: Annotated[
        str | None, Parameter(metavar="|".join(PRIORITIES), help="which topic it goes to (default: normal)")
    ] = None
    id: Annotated[
        str | None, Parameter(name="--id", help="published again, it is placed once (default: a random one)")
    ] = None
    tenant: Annotated[str | None, Parameter(help="whose task it is")] = None
    session: Annotated[str | None, Parameter(help="session it belongs to")] = None
    require: Annotated[
        tuple[str, ...],
        Parameter(name="--require", metavar="NAME=UNITS", help="capacity it holds, as in gpu=1; may be repeated"),
    ] = ()
    constraint: Annotated[
        tuple[str, ...],
        Parameter(name="--constraint", metavar="NAME=VALUE", help="label its instance must have; may be repeated"),
    ] = ()
    deadline: Annotated[
        float | None, Parameter(metavar="SECONDS", help="from now; not started by then, it goes to the dead letter")
    ] = None
    timeout: Annotated[float | None, Parameter(metavar="SECONDS", help="how long one attempt may run")] = None
    max_attempts: Annotated[
        int | None, Parameter(name="--max-attempts", help="attempts before the dead letter (default: 3)")
    ] = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of the task that were given. Raises ConfigError."""
        found = {
            "type": self.type,
            "payload": None if self.payload is None else _json(self.payload),
            "priority": self.priority,
            "id": self.id,
            "tenant": self.tenant,
            "session": self.session,
            "requirements": pairs("--require", self.require, int, "as in gpu=1, with a whole number") or None,
            "constraints": pairs("--constraint", self.constraint, str, "as in region=eu") or None,
            "deadline_ms": None if self.deadline is None else _ms("--deadline", time.time(), self.deadline),
            "timeout_ms": None if self.timeout is None else _ms("--timeout", 0.0, self.timeout),
            "max_attempts": self.max_attempts,
        }
        return {name: value for name, value in found.items() if value is not None}


_NO_TASK = TaskFlags()


def publish(
    file: Annotated[
        str | None,
        Parameter(allow_leading_hyphen=True, help="file of JSON lines, one task each; - reads standard input"),
    ] = None,
    /,
    *,
    task: TaskFlags = _NO_TASK,
    common: Common = NONE,
) -> int:
    """Publish one task, or with FILE one for each line. Prints the id of each that Kafka has acknowledged.

    A line is a JSON object with the fields of a task, such as {"type": "summarise", "payload": {"text": "…"}}. A bad
    line is told with its number and skipped; then the exit code is 1.
    """
    if file is not None and file.startswith("--"):
        raise ConfigError(f"unknown option: {file}; see `taskyard publish --help`")
    settings = settings_of(common)
    fields = task.fields()
    if file is not None and fields:
        raise ConfigError("a file of tasks and flags of one task: give the one or the others")
    if file is not None:
        return run(publish_file(settings, file))
    if task.type is None:
        raise ConfigError("--type says which agents can run it; or name a file of JSON lines, - for standard input")
    run(_one(settings, Task(**fields)))
    return 0


async def _one(settings: Settings, task: Task) -> None:
    limits = Limits(payload_bytes=settings.intake.payload_bytes)
    async with Producer(settings.kafka, prefix=settings.prefix, limits=limits) as producer:
        print(await producer.publish(task))


def _ms(flag: str, from_s: float, after_s: float) -> int:
    """Return the time in ms. Raises ConfigError if it is no number; whether it is a sound one is the producer's."""
    if not isfinite(after_s):
        raise ConfigError(f"{flag} must be a number of seconds, not {after_s}")
    return int((from_s + after_s) * 1000)


def _json(text: str) -> msgspec.Raw:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"--payload is not JSON: {error}; a text needs its quotes: --payload '\"text\"'") from error
    return msgspec.Raw(text.encode())
