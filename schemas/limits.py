"""What a task may be: sizes, forms and ranges. The producer checks before it sends, the dispatcher at intake.

Ids are letters, digits and `._:-`. Names (agent types, resources, labels, instances) are any printable text without
`|`, `=` and `,`, which part the text of a shape and the place of a task in the cell.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import msgspec

from taskyard.schemas.errors import SchemaError
from taskyard.schemas.priority import PRIORITIES
from taskyard.schemas.task import Task


class Limits(msgspec.Struct, frozen=True):
    """Upper bounds. The defaults are those of the wire; a dispatcher may be set to take less.

    envelope_bytes: a record beyond its payload, fields that this version does not know included.
    units: the cell counts in 32 bits. attempts: it counts them in 8.
    time_ms: what a double holds exactly. resources: what an instance's vector has room for.
    depth: nesting of the payload; a decoder in any language takes as much.
    """

    payload_bytes: int = 256 << 10
    envelope_bytes: int = 64 << 10
    headers: int = 64
    header_bytes: int = 16 << 10
    depth: int = 64
    id_chars: int = 128
    name_chars: int = 128
    text_chars: int = 256
    resources: int = 16
    constraints: int = 16
    units: int = 2**31 - 1
    attempts: int = 255
    time_ms: int = 2**53 - 1


DEFAULT = Limits()

_ID = re.compile(r"[A-Za-z0-9._:-]+").fullmatch
_PARTING = re.compile(r"[|=,]").search
ID_FORM = "letters, digits and . _ : -"
NAME_FORM = "printable characters other than | = ,"


def check_task(task: Task, limits: Limits = DEFAULT) -> None:
    """Refuse a task that is beyond the limits.

    task: its fields are of the declared types, as `Codec.decode_task` makes sure.
    Raises SchemaError for the first fault, with the field and what would be right.
    Cost: 0.4 us, 0.85 us with two requirements; called for every record.
    """
    if len(task.payload) > limits.payload_bytes:
        raise SchemaError(
            f"{len(task.payload)} bytes, at most {limits.payload_bytes}; store it elsewhere and send a reference",
            field="payload",
            reason="oversize",
        )
    check_id(task.id, limits)
    check_name(task.type, field="type", limits=limits)
    if task.priority not in PRIORITIES:
        raise SchemaError(f"{task.priority[:32]!r} is none of {', '.join(PRIORITIES)}", field="priority")
    if task.requirements:
        check_units(task.requirements, field="requirements", limits=limits)
    if task.constraints:
        check_labels(task.constraints, field="constraints", limits=limits)
    if task.tenant:
        _check_text(task.tenant, "tenant", limits)
    if task.session:
        _check_text(task.session, "session", limits)
    if not 0 <= task.deadline_ms <= limits.time_ms:
        raise SchemaError("a Unix time in ms, or 0 for none", field="deadline_ms")
    if not 0 <= task.timeout_ms <= limits.time_ms:
        raise SchemaError("a duration in ms, or 0 for no limit", field="timeout_ms")
    if not 1 <= task.max_attempts <= limits.attempts:
        raise SchemaError(f"{task.max_attempts} is not from 1 to {limits.attempts}", field="max_attempts")


def check_id(task_id: str, limits: Limits = DEFAULT) -> None:
    """Refuse what is not a task id. Raises SchemaError."""
    # The usual id is hexadecimal: the pattern takes three times as long. str.isalnum asks a table of all of Unicode.
    if len(task_id) > limits.id_chars or not ((task_id.isascii() and task_id.encode().isalnum()) or _ID(task_id)):
        raise SchemaError(f"must be 1 to {limits.id_chars} characters: {ID_FORM}", field="id")


def check_name(name: str, *, field: str, limits: Limits = DEFAULT) -> None:
    """Refuse what is not the name of an agent type, a resource, a label or an instance. Raises SchemaError."""
    # The length first: long text must not come into the cache.
    if not 0 < len(name) <= limits.name_chars or not _is_name(name):
        raise SchemaError(f"must be 1 to {limits.name_chars} {NAME_FORM}", field=field)


def check_units(units: Mapping[str, int], *, field: str, limits: Limits = DEFAULT) -> None:
    """Refuse requirements or a capacity with a bad name or number of units. Raises SchemaError."""
    if len(units) > limits.resources:
        raise SchemaError(f"{len(units)} resources, at most {limits.resources}", field=field)
    for name, amount in units.items():
        if not 0 < len(name) <= limits.name_chars or not _is_name(name):
            raise SchemaError(f"a resource's name must be 1 to {limits.name_chars} {NAME_FORM}", field=field)
        least = 1 if name == "slots" else 0
        if not least <= amount <= limits.units:
            raise SchemaError(f"{amount} is not from {least} to {limits.units}", field=f"{field}.{name}")


def check_labels(labels: Mapping[str, str], *, field: str, limits: Limits = DEFAULT) -> None:
    """Refuse constraints or labels with a bad name or value. Raises SchemaError."""
    if len(labels) > limits.constraints:
        raise SchemaError(f"{len(labels)} labels, at most {limits.constraints}", field=field)
    for name, value in labels.items():
        if not 0 < len(name) <= limits.name_chars or not _is_name(name):
            raise SchemaError(f"a label's name must be 1 to {limits.name_chars} {NAME_FORM}", field=field)
        check_name(value, field=f"{field}.{name}", limits=limits)


def check_headers(headers: Iterable[tuple[str, bytes | None]], limits: Limits = DEFAULT) -> None:
    """Refuse record headers that are too many or too long. Raises SchemaError."""
    count = size = 0
    for name, value in headers:
        count += 1
        size += len(name) + len(value or b"")
    if count > limits.headers or size > limits.header_bytes:
        raise SchemaError(
            f"{count} headers of {size} bytes, at most {limits.headers} of {limits.header_bytes}",
            field="headers",
            reason="oversize",
        )


def _check_text(text: str, field: str, limits: Limits) -> None:
    if len(text) > limits.text_chars or not text.isprintable():
        raise SchemaError(f"must be at most {limits.text_chars} printable characters", field=field)


# A fleet knows dozens of agent types, resources and labels; each is seen a million times.
@lru_cache(maxsize=4096)
def _is_name(name: str) -> bool:
    return name.isprintable() and not _PARTING(name)
