"""The wire for other languages: JSON Schema of each record and an AsyncAPI 3.0 document, made from the structs.

`python -m taskyard.schemas.documents` writes them to `schemas/generated/`; a test compares. The descriptions are the
structs' docstrings, the bounds those of `limits.DEFAULT`.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from taskyard.schemas.limits import DEFAULT
from taskyard.schemas.outcome import REASONS, DeadLetter, Outcome
from taskyard.schemas.priority import PRIORITIES
from taskyard.schemas.task import VERSION, Task
from taskyard.schemas.topics import topics

FOLDER = Path(__file__).parent / "generated"
RECORDS: tuple[type[msgspec.Struct], ...] = (Task, Outcome, DeadLetter)

Name = Annotated[str, Meta(min_length=1, max_length=DEFAULT.name_chars, pattern=r"^[^|=,\u0000-\u001f\u007f]+$")]
Text = Annotated[str, Meta(max_length=DEFAULT.text_chars)]
Time = Annotated[int, Meta(ge=0, le=DEFAULT.time_ms)]

_FIELDS_LINE = re.compile(r"    ([a-z_]+(?:, [a-z_]+)*): (.*)")

# What the structs leave to `limits.check_task`, because a decoder that checks it would not name the field as well.
FORMS: dict[tuple[type, str], Any] = {
    (Task, "id"): Annotated[str, Meta(max_length=DEFAULT.id_chars, pattern=r"^[A-Za-z0-9._:-]+$")],
    (Task, "type"): Name,
    (Task, "priority"): Literal[PRIORITIES],
    (Task, "requirements"): Annotated[
        dict[Name, Annotated[int, Meta(ge=0, le=DEFAULT.units)]], Meta(max_length=DEFAULT.resources)
    ],
    (Task, "constraints"): Annotated[dict[Name, Name], Meta(max_length=DEFAULT.constraints)],
    (Task, "tenant"): Text,
    (Task, "session"): Text,
    (Task, "deadline_ms"): Time,
    (Task, "timeout_ms"): Time,
    (Task, "max_attempts"): Annotated[int, Meta(ge=1, le=DEFAULT.attempts)],
    (Task, "v"): Literal[VERSION],
    (Outcome, "status"): Literal["succeeded", "dead"],
    (DeadLetter, "reason"): Literal[REASONS],
}


def documents() -> dict[str, str]:
    """Make every document: file name -> text."""
    files = {f"{_tag(record)}.json": _json_schema(record) for record in RECORDS}
    files["asyncapi.json"] = _asyncapi()
    return {name: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in files.items()}


def write() -> None:
    """Write every document to `FOLDER`."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def _tag(record: type[msgspec.Struct]) -> str:
    return str(record.__struct_config__.tag)


def _json_schema(record: type[msgspec.Struct]) -> dict[str, Any]:
    schema = _components("#/$defs/{name}", record)
    own = schema.pop(record.__name__)
    described = {"$schema": "https://json-schema.org/draft/2020-12/schema", **own}
    return {**described, "$defs": schema} if schema else described


def _components(ref_template: str, *records: type[msgspec.Struct]) -> dict[str, Any]:
    _, components = msgspec.json.schema_components(
        [_with_forms(record) for record in records], ref_template=ref_template
    )
    for record in records:
        _describe_fields(components[record.__name__], record.__doc__ or "")
    return components


def _with_forms(record: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """A copy of the struct with the forms of `FORMS`; a Raw, which msgspec has no schema for, may be anything.

    A task's id is required here: the default is for who makes a task, not for who reads one.
    """
    fields: list[Any] = []
    for field in msgspec.structs.fields(record):
        is_raw = field.type is msgspec.Raw
        as_type = Any if is_raw else FORMS.get((record, field.name), field.type)
        if field.required or (field.name == "id" and record is Task):
            fields.append((field.name, as_type))
        elif is_raw or field.default is not msgspec.NODEFAULT:
            fields.append((field.name, as_type, None if is_raw else field.default))
        else:
            fields.append((field.name, as_type, msgspec.field(default_factory=field.default_factory)))
    return msgspec.defstruct(
        record.__name__, fields, namespace={"__doc__": record.__doc__}, kw_only=True, tag=_tag(record), tag_field="kind"
    )


def _describe_fields(component: dict[str, Any], doc: str) -> None:
    """Move the docstring's `field, field: what it is.` lines to the fields; the first paragraph stays the record's."""
    summary, _, rest = doc.partition("\n\n")
    component["description"] = " ".join(summary.split())
    described: list[str] = []
    for line in rest.splitlines():
        if found := _FIELDS_LINE.match(line):
            described = found[1].split(", ")
        for name in described:
            field = component["properties"][name]
            field["description"] = f"{field.get('description', '')} {(found[2] if found else line).strip()}".strip()


def _asyncapi() -> dict[str, Any]:
    names = topics("{prefix}")
    carried = {**dict.fromkeys(names.tasks.values(), Task), names.results: Outcome, names.dead_letter: DeadLetter}
    channels = {address.removeprefix("{prefix}"): _channel(address, record) for address, record in carried.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Taskyard",
            "version": f"{VERSION}.0.0",
            "description": "The records that Taskyard reads from and writes to Kafka. The version is that of the wire.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": {
            _operation(name, record): {
                "action": "receive" if record is Task else "send",
                "channel": {"$ref": f"#/channels/{name}"},
            }
            for name, record in zip(channels, carried.values(), strict=True)
        },
        "components": {
            "messages": {record.__name__: _message(record) for record in RECORDS},
            "schemas": _draft_7(_components("#/components/schemas/{name}", *RECORDS)),
        },
    }


def _channel(address: str, record: type) -> dict[str, Any]:
    return {
        "address": address,
        "messages": {record.__name__: {"$ref": f"#/components/messages/{record.__name__}"}},
        "parameters": {"prefix": {"description": "The setting `prefix`.", "default": ""}},
    }


def _operation(channel: str, record: type) -> str:
    return f"{'receive' if record is Task else 'send'}.{channel}"


def _message(record: type) -> dict[str, Any]:
    return {
        "name": record.__name__,
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{record.__name__}"},
        "bindings": {"kafka": {"key": {"type": "string", "description": "The task's id; any partition will do."}}},
    }


def _draft_7(schema: Any) -> Any:
    """The same schema for AsyncAPI, whose own dialect is that of draft 7: tuples are written otherwise there."""
    if isinstance(schema, list):
        return [_draft_7(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    members = {key: _draft_7(value) for key, value in cast("dict[str, Any]", schema).items()}
    if "prefixItems" in members:
        members |= {"items": members.pop("prefixItems"), "additionalItems": members.get("items", True)}
    return members


if __name__ == "__main__":
    write()
