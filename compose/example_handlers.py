"""Handlers for a first look: two agent types whose tasks take as long as they say.

taskyard worker taskyard.compose.example_handlers:handlers
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

# A task must not hold a slot for longer than a person would look at the dashboard.
_LONGEST_S = 60.0


class Work(msgspec.Struct, frozen=True):
    """The payload of both agent types; `{}` is valid."""

    text: str = ""
    seconds: float = 0.05


class Answer(msgspec.Struct, frozen=True):
    """What a handler returns, and what the results topic carries."""

    words: int


async def summarise(work: Work) -> Answer:
    """Wait as an agent waits for a model; other tasks of the instance run meanwhile."""
    await asyncio.sleep(min(work.seconds, _LONGEST_S))
    return Answer(len(work.text.split()))


def count(work: Work) -> Answer:
    """Do the same in a thread of the worker's pool: a sync handler may block."""
    time.sleep(min(work.seconds, _LONGEST_S))
    return Answer(len(work.text.split()))


handlers: dict[str, Callable[[Work], Awaitable[Answer] | Answer]] = {"summarise": summarise, "count": count}
