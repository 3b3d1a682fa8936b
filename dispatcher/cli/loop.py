"""The event loop of a command: uvloop's where it is installed."""

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

# How many new objects Python's garbage collector waits for. A batch makes thousands, which die by their reference
# counts; at 700, the default, looking through them again and again takes a twentieth of a dispatcher's time.
_YOUNG_OBJECTS = 10_000


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a loop of its own."""
    # What the imports made stays for good: looking through it with every full collection stops the loop for 30 ms.
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
