"""The exception tree.

TaskyardError
├── ConfigError          the caller's: settings that do not hold together; lists every fault
├── SchemaError          the caller's: a record or an argument that is not of the wire's form; names the field
├── DependencyError      the world's: Kafka or the cell did not answer; may be tried again
│   └── Backpressure     the producer's buffer is full for longer than the caller would wait
└── InvariantViolated    ours: the process stops
"""


class TaskyardError(Exception):
    """The root of all errors that Taskyard raises."""


class ConfigError(TaskyardError):
    """Settings that do not hold together. The message lists every fault and what to do about it."""


class SchemaError(TaskyardError):
    """A value that is not of the wire's form.

    field: the path of the field, such as `requirements.slots`; empty if the record could not be decoded at all.
    reason: why a record is poison, one of the first four of `outcome.REASONS`: `undecodable` (not of the encoding at
    all), `version` (of a version that this reader does not know), `oversize`, `invalid` (a field says which).
    """

    def __init__(self, message: str, *, field: str = "", reason: str = "invalid") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.reason = reason


class DependencyError(TaskyardError):
    """Kafka or the cell did not answer as it should. Trying again may help."""


class Backpressure(DependencyError):
    """The producer's buffer stayed full for longer than the caller would wait. Publish slower, or wait longer."""


class InvariantViolated(TaskyardError):
    """A promise of the design does not hold: a bug. The process stops rather than go on."""
