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

__all__ = ["__version__"]

# Public name -> the module that defines it.
_HOME: dict[str, str] = {}

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
