"""Flags of the form NAME=VALUE that may be repeated."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from taskyard.schemas.errors import ConfigError

V = TypeVar("V")


def pairs(flag: str, texts: Sequence[str], convert: Callable[[str], V], form: str) -> dict[str, V]:
    """Part NAME=VALUE texts. Raises ConfigError that lists all that are not of the form."""
    found: dict[str, V] = {}
    faults: list[str] = []
    for text in texts:
        name, _, value = text.partition("=")
        try:
            if not (name and value):
                raise ValueError
            found[name] = convert(value)
        except ValueError:
            faults.append(f"{flag} {text}: must be NAME=VALUE, {form}")
    if faults:
        raise ConfigError("\n  ".join(["wrong flags:", *faults] if len(faults) > 1 else faults))
    return found
