"""Taskyard places agent tasks: the import namespace and public face, nothing else.

The packages stand at the top level of the repository and are imported from here (`taskyard.schemas`,
`taskyard.workers`, …), so that a user's own `schemas` or `workers` neither shadows ours nor is shadowed.

`import taskyard` is light: a public name is loaded from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# A public name stands in three places, which a test compares: here and in `__all__` for type checkers and editors,
# and in `_HOME` for the interpreter. `if TYPE_CHECKING: from taskyard.x.y import Name as Name`.

if TYPE_CHECKING:
    from taskyard.producers.producer import Producer as Producer
    from taskyard.schemas.errors import Backpressure as Backpressure
    from taskyard.schemas.errors import ConfigError as ConfigError
    from taskyard.schemas.errors import DependencyError as DependencyError
    from taskyard.schemas.errors import InvariantViolated as InvariantViolated
    from taskyard.schemas.errors import SchemaError as SchemaError
    from taskyard.schemas.errors import TaskyardError as TaskyardError
    from taskyard.schemas.outcome import DeadLetter as DeadLetter
    from taskyard.schemas.outcome import Outcome as Outcome
    from taskyard.schemas.task import Task as Task
    from taskyard.schemas.task import TaskId as TaskId
    from taskyard.workers.context import Context as Context
    from taskyard.workers.errors import GiveUp as GiveUp
    from taskyard.workers.errors import Retry as Retry
    from taskyard.workers.instance import InstanceSpec as InstanceSpec
    from taskyard.workers.worker import Worker as Worker

__all__ = [
    "Backpressure",
    "ConfigError",
    "Context",
    "DeadLetter",
    "DependencyError",
    "GiveUp",
    "InstanceSpec",
    "InvariantViolated",
    "Outcome",
    "Producer",
    "Retry",
    "SchemaError",
    "Task",
    "TaskId",
    "TaskyardError",
    "Worker",
    "__version__",
]

# Public name -> the module that defines it.
_HOME: dict[str, str] = {
    "Backpressure": "taskyard.schemas.errors",
    "ConfigError": "taskyard.schemas.errors",
    "Context": "taskyard.workers.context",
    "DeadLetter": "taskyard.schemas.outcome",
    "DependencyError": "taskyard.schemas.errors",
    "GiveUp": "taskyard.workers.errors",
    "InstanceSpec": "taskyard.workers.instance",
    "InvariantViolated": "taskyard.schemas.errors",
    "Outcome": "taskyard.schemas.outcome",
    "Producer": "taskyard.producers.producer",
    "Retry": "taskyard.workers.errors",
    "SchemaError": "taskyard.schemas.errors",
    "Task": "taskyard.schemas.task",
    "TaskId": "taskyard.schemas.task",
    "TaskyardError": "taskyard.schemas.errors",
    "Worker": "taskyard.workers.worker",
}

# Hidden from type checkers: they would take any misspelt name for a public one.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Load a public name from its module on first use; AttributeError if there is none of that name."""
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module 'taskyard' has no attribute {name!r}; public names: {', '.join(__all__)}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted(__all__)
