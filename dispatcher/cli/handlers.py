"""The user's handlers, named on the command line as `module:name`."""

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from taskyard.schemas.errors import ConfigError

Handlers = Mapping[str, Callable[..., Any]]


def load(reference: str, *, only: Sequence[str] = ()) -> Handlers:
    """Import the mapping of agent types to functions; `only` these types, if any are named.

    The working directory is searched first, as with `python -m`. Raises ConfigError that says what would be right.
    """
    module_name, colon, name = reference.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"handlers are named module:name, as in agents:handlers, not {reference!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _imported(module_name)
    found = getattr(module, name, None)
    if found is None:
        raise ConfigError(f"the module {module_name} has no {name}{_others(module, name)}")
    if not isinstance(found, Mapping):
        form = '{"agent type": function, …}'
        raise ConfigError(f"{reference} is a {type(found).__name__}; it must be a mapping {form}")
    handlers = cast("Handlers", found)
    unknown = [agent_type for agent_type in only if agent_type not in handlers]
    if unknown:
        known = ", ".join(map(str, handlers)) or "none"
        raise ConfigError(f"--type {', '.join(unknown)}: {reference} has no such agent type; it has {known}")
    return {agent_type: handlers[agent_type] for agent_type in only} if only else handlers


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigError(
                f"there is no module {missing} in {Path.cwd()} or the environment: "
                f"run this in the folder that has {missing.split('.', maxsplit=1)[0]}.py, or install it"
            ) from error
        raise ConfigError(f"the module {name} imports {missing}, which is not installed") from error
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise ConfigError(f"importing {name} failed with {text}; --debug shows where") from error


def _others(module: ModuleType, name: str) -> str:
    """Name what could have been meant: the mappings in the module."""
    mappings = [other for other, value in vars(module).items() if _is_handlers(value)]
    near = difflib.get_close_matches(name, mappings, n=1) or mappings[:1]
    if near:
        return f"; did you mean {module.__name__}:{near[0]}?"
    return f'; write there: {name} = {{"agent type": function}}'


def _is_handlers(value: object) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    items = cast("dict[object, object]", value).items()
    return all(isinstance(agent_type, str) and callable(function) for agent_type, function in items)
