"""Ctrl-C and SIGTERM during a run: the first stops the load, the second skips the wait for what is open."""

import asyncio
import contextlib
import signal
from collections.abc import Generator


class Interrupts:
    """Both events are set on the loop, by the signals."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.hurry = asyncio.Event()

    def tell(self) -> None:
        """Take one interrupt."""
        if self.stopping.is_set():
            self.hurry.set()
        self.stopping.set()

    @contextlib.contextmanager
    def taken(self) -> Generator[None]:
        """Take the signals while the block runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.tell)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
