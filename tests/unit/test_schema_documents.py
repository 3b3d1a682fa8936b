"""The checked-in documents are what the structs say, are valid, and describe what is really written."""

import json
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from taskyard.schemas.codec import JSON
from taskyard.schemas.documents import FOLDER, documents
from taskyard.schemas.entry import Cause
from taskyard.schemas.errors import SchemaError
from taskyard.schemas.limits import check_task
from taskyard.schemas.outcome import DeadLetter, Outcome
from taskyard.schemas.task import AgentType, Task, TaskId
from taskyard.schemas.topics import topics

TASK = Task(
    id=TaskId("order-17:a"),
    type=AgentType("summarise"),
    priority="high",
    payload=JSON.encode_payload({"text": ["a", 1, None]}),
    requirements={"slots": 2, "cpu_milli": 500},
    constraints={"zone": "eu-1"},
    tenant="acme",
    session="s 1",
    deadline_ms=1_800_000_000_000,
    timeout_ms=5,
    max_attempts=1,
)
WRITTEN = {
    "task": [JSON.encode_task(TASK), JSON.encode_task(Task(type=AgentType("a")))],
    "outcome": [
        JSON.encode_outcome(Outcome(id="t", type="a", status="dead", attempt=1, cause="boom")),
        JSON.encode_outcome(Outcome(id="t", type="a", status="succeeded", attempt=1, result=TASK.payload)),
    ],
    "dead_letter": [
        JSON.encode_dead_letter(DeadLetter(reason="version", topic="tasks.low", partition=0, offset=7, record=b"\xff")),
        JSON.encode_dead_letter(DeadLetter(reason="attempts", id="t", causes=(Cause(1, "i", 5, "boom"),))),
    ],
}
COMPONENT = {"task": "Task", "outcome": "Outcome", "dead_letter": "DeadLetter"}


def faults(validator: Any, value: bytes) -> list[Any]:
    """What the schema finds wrong; jsonschema types itself only in part."""
    return list(validator.iter_errors(json.loads(value)))


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_the_checked_in_documents_are_current() -> None:
    made = documents()

    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}

    assert found == made, "run `python -m taskyard.schemas.documents`"


@pytest.mark.parametrize("record", WRITTEN)
def test_what_is_written_is_what_the_json_schema_describes(record: str) -> None:
    schema = load(f"{record}.json")

    Draft202012Validator.check_schema(schema)
    for value in WRITTEN[record]:
        assert not faults(Draft202012Validator(schema), value)


@pytest.mark.parametrize(
    "fault",
    [
        {"id": "a|b"},
        {"id": ""},
        {"type": ""},
        {"type": "a=b"},
        {"priority": "urgent"},
        {"requirements": {"cpu_milli": -1}},
        {"requirements": {"cpu_milli": 2**31}},
        {"requirements": {"a|b": 1}},
        {"constraints": {"zone": "a,b"}},
        {"tenant": "x" * 257},
        {"deadline_ms": -1},
        {"max_attempts": 0},
        {"max_attempts": 256},
        {"v": 2},
    ],
)
def test_what_the_schema_refuses_the_dispatcher_refuses_too(fault: dict[str, Any]) -> None:
    value = {**json.loads(JSON.encode_task(TASK)), **fault}

    assert faults(Draft202012Validator(load("task.json")), json.dumps(value).encode())
    with pytest.raises(SchemaError):
        check_task(JSON.decode_task(json.dumps(value).encode()))


def test_every_field_and_record_of_a_task_is_described() -> None:
    properties = load("task.json")["properties"]

    assert set(properties) == {"kind", *Task.__struct_fields__}
    assert all(load(f"{record}.json")["description"] for record in WRITTEN)
    assert {"id", "requirements", "deadline_ms"} <= {
        name for name, field in properties.items() if "description" in field
    }


def test_the_asyncapi_document_has_a_channel_for_each_topic() -> None:
    document, names = load("asyncapi.json"), topics("{prefix}")
    public = [name for name in names.names if name != names.carried]  # entries, which only dispatchers read

    assert document["asyncapi"] == "3.0.0"
    assert [channel["address"] for channel in document["channels"].values()] == public
    assert {operation["channel"]["$ref"].rsplit("/", 1)[1] for operation in document["operations"].values()} == set(
        document["channels"]
    )


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = load("asyncapi.json")
    references: list[str] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            references.extend(target for key, target in value.items() if key == "$ref")  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            collect(list(value.values()))  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(value, list):
            for item in value:  # pyright: ignore[reportUnknownVariableType]
                collect(item)

    collect(document)

    assert len(references) > 10
    for reference in references:
        at: Any = document
        for key in reference.removeprefix("#/").split("/"):
            at = at[key]


@pytest.mark.parametrize("record", WRITTEN)
def test_the_schemas_inside_the_asyncapi_document_describe_what_is_written(record: str) -> None:
    components = load("asyncapi.json")["components"]
    schema = {"$ref": f"#/components/schemas/{COMPONENT[record]}", "components": components}

    for each in components["schemas"].values():
        Draft7Validator.check_schema(each)
    for value in WRITTEN[record]:
        assert not faults(Draft7Validator(schema), value)
