"""A lease of the cell, and what its holder may believe between two asks: each ask is a round trip.

Two may believe that they have one lease. The cell is lost, goes back or is flushed, its clock is set forward, or this
machine is suspended (the monotonic clock stands still): another is given the lease, and the former holder hears of it
with its next ask, up to a third of the ttl later. Under any lease a second one is possible anyway, for a holder may be
stopped in the middle of a step. So each duty says why two at once do no harm.
"""

import time

from taskyard.dispatcher.cell.contract import DispatcherCell

# Shares of the ttl. After a third: an ask that fails may be repeated before the lease runs out.
_BELIEVED = 1 / 3
# So much later than its end does another have it; eight asks in the life of a lease cost next to nothing.
_REFUSED = 1 / 8


class Lease:
    """What one dispatcher of the cell has at a time. Used by one asyncio task. owner: the dispatcher's random name.

    Another has it an eighth of ttl_ms after it was given back, or after the holder's last ask has run out, at the
    latest (and what lies between two of its steps).
    """

    def __init__(self, cell: DispatcherCell, name: str, owner: str, ttl_ms: int) -> None:
        self._cell = cell
        self._name = name
        self._owner = owner
        self._ttl_ms = ttl_ms
        self._is_held = False
        # Monotonic; the cell is asked from then on. After an error as well: an ask that fails changes nothing here.
        self._ask_s = 0.0

    async def held(self) -> bool:
        """Whether the lease is ours. Takes or renews it when that is due, else answers at once.

        An answer that needed no ask is true for two thirds of ttl_ms more: the cell counts from when it was asked, and
        we from before that. Raises DependencyError, and then asks again next time.
        """
        now_s = time.monotonic()
        if now_s >= self._ask_s:
            self._is_held = await self._cell.lease(self._name, self._owner, ttl_ms=self._ttl_ms)
            self._ask_s = now_s + (_BELIEVED if self._is_held else _REFUSED) * self._ttl_ms / 1000
        return self._is_held

    async def give_back(self) -> None:
        """Let another have it at once; does nothing to another's. Raises DependencyError: then it runs out."""
        self._ask_s = 0.0
        await self._cell.lease(self._name, self._owner, ttl_ms=0)
