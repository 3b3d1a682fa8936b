"""Handlers: the functions that run tasks, checked once at start."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from taskyard.schemas.errors import SchemaError
from taskyard.schemas.limits import check_name
from taskyard.workers.context import Context

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Handler(NamedTuple):
    """A checked function. context_name: the parameter that wants the context; empty if none does."""

    function: Callable[..., Any]
    payload_type: Any
    context_name: str
    is_async: bool

    def call(self, payload: object, context: Context | None) -> Any:
        """Call the function: the result, or of an async one its coroutine."""
        if self.context_name:
            return self.function(payload, **{self.context_name: context})
        return self.function(payload)


def inspect_handlers(functions: Mapping[str, Callable[..., Any]]) -> tuple[dict[str, Handler], list[str]]:
    """Find out about the functions of all agent types: those that can be used, and every fault of the others."""
    handlers: dict[str, Handler] = {}
    faults: list[str] = [] if functions else ["no handlers: a worker needs one function for each agent type"]
    for agent_type, function in functions.items():
        found = [*_faults_of_name(agent_type)]
        handler = _inspected(function, found)
        faults += [f"{agent_type}: {fault}" for fault in found]
        if handler is not None:
            handlers[agent_type] = handler
    return handlers, faults


def _faults_of_name(agent_type: str) -> list[str]:
    try:
        check_name(agent_type, field="agent type")
    except SchemaError as error:
        return [str(error)]
    return []


def _inspected(function: Callable[..., Any], faults: list[str]) -> Handler | None:
    if not callable(function):
        faults.append(f"{function!r} is not a function")
        return None
    if _is(function, inspect.isgeneratorfunction) or _is(function, inspect.isasyncgenfunction):
        faults.append("it is a generator; return one value")
    try:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    except (NameError, TypeError, ValueError, SyntaxError, AttributeError) as error:
        faults.append(f"its annotations cannot be read: {error}")
        return None
    faults += _faults_of_parameters(parameters)
    if faults:
        return None
    payload_type = _annotated(parameters[0])
    faults += _faults_of_type(payload_type)
    wanted = [parameter.name for parameter in parameters[1:] if parameter.annotation is Context]
    return Handler(function, payload_type, wanted[0] if wanted else "", _is(function, inspect.iscoroutinefunction))


def _is(function: Callable[..., Any], kind: Callable[[Any], bool]) -> bool:
    # An object with a __call__ is a function too.
    return kind(function) or kind(getattr(function, "__call__", None))  # noqa: B004 - its kind is wanted, not whether it is there


def _annotated(parameter: inspect.Parameter) -> Any:
    return Any if parameter.annotation in (inspect.Parameter.empty, object) else parameter.annotation


def _faults_of_parameters(parameters: list[inspect.Parameter]) -> list[str]:
    if not parameters or parameters[0].kind not in _BY_POSITION or parameters[0].annotation is Context:
        return ["its first parameter must be the payload"]
    faults: list[str] = []
    contexts = [parameter for parameter in parameters[1:] if parameter.annotation is Context]
    if len(contexts) > 1:
        faults.append("more than one parameter is annotated Context")
    for parameter in parameters[1:]:
        if parameter.annotation is Context:
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                faults.append(f"parameter {parameter.name!r} is given by name and must not be positional-only")
        elif parameter.kind not in _VARIADIC and parameter.default is inspect.Parameter.empty:
            faults.append(
                f"nothing is known for parameter {parameter.name!r}: annotate it Context or give it a default"
            )
    return faults


def _faults_of_type(payload_type: Any) -> list[str]:
    try:
        msgspec.json.Decoder(payload_type)
        if isinstance(msgspec.inspect.type_info(payload_type), msgspec.inspect.CustomType):
            raise TypeError("msgspec does not know how to make one")
    except (TypeError, NameError) as error:
        return [f"a payload cannot be decoded to {payload_type!r}: {error}"]
    return []
