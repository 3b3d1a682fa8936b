"""Headroom in whole slots, as `library/headroom.lua` rounds it; the surplus is added up when it is asked for."""

import hashlib

from taskyard.dispatcher.cell.twin_state import SLOTS, Live, TwinState

_LARGEST = 0xFFFF


def _share(state: TwinState, slots: int) -> int:
    """The share of so many slots, in thousandths; one slot is always left to the lower priorities."""
    return max(0, min(slots * state.config.headroom_permille, 1000 * min(slots - 1, _LARGEST)))


def _beyond(state: TwinState, live: Live) -> int:
    return 1000 * live.headroom - _share(state, live.capacity[SLOTS])


def _round(state: TwinState, instance: str, slots: int, surplus: int) -> int:
    whole, rest = divmod(_share(state, slots), 1000)
    digest = hashlib.sha1(instance.encode(), usedforsecurity=False).hexdigest()
    chance = int(digest[:6], 16) / (1 << 24)
    return whole + (rest > 0 and rest - surplus >= 250 + 500 * chance)


def of(state: TwinState, instance: str, slots: int) -> int:
    """Headroom of an instance that is about to be registered."""
    return _round(state, instance, slots, sum(_beyond(state, live) for live in state.instances.values()))


def is_rounded(state: TwinState, live: Live) -> bool:
    """Whether it is the share of the slots, rounded down or up."""
    return abs(_beyond(state, live)) < 1000


def share_out(state: TwinState) -> None:
    """Give every instance its headroom anew, in the order of the names."""
    surplus = 0
    for name, live in sorted(state.instances.items(), key=lambda row: row[0].encode()):
        live.headroom = _round(state, name, live.capacity[SLOTS], surplus)
        surplus += _beyond(state, live)
