"""Which functions may be handlers, and what is found out about them."""

import functools
from typing import Any

import msgspec

from taskyard.workers.context import Context
from taskyard.workers.handler import Handler, inspect_handlers


def checked(functions: dict[str, Any]) -> dict[str, Handler]:
    handlers, faults = inspect_handlers(functions)
    assert not faults
    return handlers


class Work(msgspec.Struct):
    text: str = ""


class Opaque:
    """Something that msgspec cannot make."""


async def awaits(work: Work, *, about: Context) -> str:
    return f"{work.text} {about.attempt}"


def blocks(work: Work, scale: int = 2) -> int:
    return len(work.text) * scale


class Callable:
    async def __call__(self, work: "Work") -> Work:
        return work


def test_a_handler_gets_its_payload_in_the_annotated_type_and_the_context_by_name() -> None:
    handler = checked({"a": awaits})["a"]

    assert handler.payload_type is Work
    assert handler.context_name == "about"
    assert handler.is_async


def test_a_sync_function_is_a_handler_and_keeps_its_defaults() -> None:
    handler = checked({"a": blocks})["a"]

    assert not handler.is_async
    assert handler.call(Work("four"), None) == 8


def test_a_payload_without_annotation_or_of_any_object_is_decoded_to_whatever_it_is() -> None:
    async def takes_objects(work: object) -> None: ...

    handlers = checked({"a": lambda work: work, "b": takes_objects})  # pyright: ignore[reportUnknownLambdaType]

    assert handlers["a"].payload_type is Any
    assert handlers["b"].payload_type is Any


def test_a_partial_a_method_and_a_callable_object_are_handlers() -> None:
    handlers = checked({"p": functools.partial(blocks, scale=3), "o": Callable(), "m": Callable().__call__})

    assert handlers["p"].call(Work("abc"), None) == 9
    assert [handlers[name].is_async for name in ("p", "o", "m")] == [False, True, True]
    assert handlers["o"].payload_type is Work


def test_all_faults_of_all_functions_are_listed_at_once() -> None:
    def nothing() -> None: ...
    def context_first(context: Context) -> None: ...
    def unknown(work: Work, extra: int) -> None: ...
    def twice(work: Work, a: Context, b: Context) -> None: ...
    def generates(work: Work) -> Any:
        yield work

    def opaque(work: Opaque) -> None: ...
    def dangling(work: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    functions: dict[str, Any] = {
        "nothing": nothing,
        "context_first": context_first,
        "unknown": unknown,
        "twice": twice,
        "generates": generates,
        "opaque": opaque,
        "dangling": dangling,
        "number": 7,
        "bad|name": blocks,
    }

    _, faults = inspect_handlers(functions)

    assert len(faults) == len(functions)
    for name, fault in zip(functions, faults, strict=True):
        assert fault.startswith(f"{name}: ")
    assert "'extra'" in faults[2]
    assert "Missing" in faults[6]


def test_no_handlers_at_all_is_a_fault() -> None:
    _, faults = inspect_handlers({})

    assert faults == ["no handlers: a worker needs one function for each agent type"]
