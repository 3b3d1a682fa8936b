"""The task: one unit of agent work, as services publish it.

A reader accepts fields that it does not know, so a newer producer may add optional ones; a change that an old
reader would misunderstand raises `VERSION`, and an unknown version is refused. Priorities and limits live in files of
their own, because the producer and the dispatcher both enforce them.
"""

import uuid
from typing import NewType

import msgspec

TaskId = NewType("TaskId", str)
InstanceId = NewType("InstanceId", str)
AgentType = NewType("AgentType", str)

VERSION = 1

NULL_PAYLOAD = msgspec.Raw(b"null")


def new_task_id() -> TaskId:
    """Make a random task id: 32 hexadecimal characters."""
    return TaskId(uuid.uuid4().hex)


class Task(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="task", tag_field="kind"):
    """One unit of agent work.

    id: unique among the tasks that the cell remembers; publishing it again is a no-op. Letters, digits and . _ : -
    type: the agent type that an instance must serve.
    payload: one encoded value, never looked into; the handler's typed argument is decoded from it.
    requirements: resource name -> whole units (slots, cpu_milli, memory_mib, any declared name); slots is 1 if absent.
    constraints: labels that the instance must carry, with these values.
    deadline_ms: Unix time; a task not started by then goes to the dead letter. 0: none.
    timeout_ms: how long one attempt may run. 0: no limit.
    max_attempts: attempts before the dead letter, 1 to 255.
    """

    id: TaskId = msgspec.field(default_factory=new_task_id)
    type: AgentType
    priority: str = "normal"
    payload: msgspec.Raw = NULL_PAYLOAD
    requirements: dict[str, int] = {}
    constraints: dict[str, str] = {}
    tenant: str = ""
    session: str = ""
    deadline_ms: int = 0
    timeout_ms: int = 0
    max_attempts: int = 3
    v: int = VERSION
