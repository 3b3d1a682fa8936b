"""Taskyard places agent tasks: the import namespace and public face, nothing else.

The packages stand at the top level of the repository and are imported from here (`taskyard.schemas`,
`taskyard.workers`, …), so that a user's own `schemas` or `workers` neither shadows ours nor is shadowed.

`import taskyard` is light: a public name is loaded from its module when it is first used.
"""

from importlib import import_module

__version__ = "0.1.0"

# Public name -> the module it is defined in. The only place where a name is made public.
_HOME: dict[str, str] = {}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use; AttributeError if there is none of that name."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'taskyard' has no attribute {name!r}; public names: {', '.join(sorted(__all__))}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
