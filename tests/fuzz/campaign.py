"""Feeding targets with bad input: what they must not do, the smallest input that shows it, and how fast they are."""

import resource
import time
import traceback
from collections.abc import Callable
from random import Random
from typing import NamedTuple

Parts = tuple[bytes, ...]
"""One input: as many pieces as the target takes."""

# A record of 320 KB may take a tenth of a second; what grows with the square of its size takes far longer.
_BOUND_S = 0.05
_BOUND_S_PER_BYTE = 4e-7
_CUTS = 3_000
_FINDINGS = 20


class Target(NamedTuple):
    """What is fed. make: an input. feed: keeps the promise and returns, or raises whatever it should not.

    share: how many inputs of a thousand it gets when all are fed. reset: brings it to where `feed` starts from.
    """

    name: str
    make: Callable[[Random], Parts]
    feed: Callable[[Parts], None]
    share: int = 10
    reset: Callable[[], None] = lambda: None


class Finding(NamedTuple):
    """A promise that was not kept. where: the error and the line that raised it; parts: the smallest input so far."""

    target: str
    where: str
    error: str
    parts: Parts


class Tally(NamedTuple):
    """What feeding one target came to. slowest_bytes: the size of the input that took slowest_s."""

    target: str
    inputs: int
    took_s: float
    slowest_s: float
    slowest_bytes: int
    findings: tuple[Finding, ...]


class TooSlow(AssertionError):
    """An input took longer than any of its size may."""


def hunt(target: Target, *, seed: int, inputs: int) -> Tally:
    """Feed so many inputs; the same seed makes the same ones. Each kind of finding is kept once, cut down."""
    rng = Random(f"{seed} {target.name}")
    found: dict[str, Finding] = {}
    slowest_s, slowest_bytes = 0.0, 0
    began_s = time.monotonic()
    for _ in range(inputs):
        parts = target.make(rng)
        error, spent_s = _fed(target, parts)
        if spent_s > slowest_s:
            slowest_s, slowest_bytes = spent_s, _size(parts)
        if error is not None and len(found) < _FINDINGS:
            where = _where(error)
            if where not in found:
                found[where] = Finding(target.name, where, f"{error}"[:500], _smallest(target, parts, where))
            target.reset()
    took_s = time.monotonic() - began_s
    return Tally(target.name, inputs, took_s, slowest_s, slowest_bytes, tuple(found.values()))


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _fed(target: Target, parts: Parts) -> tuple[BaseException | None, float]:
    """Feed one input: what it raised, and the processor's time. Slow once may be the machine's fault: asked again."""
    spent_s, bound_s = 0.0, _BOUND_S + _BOUND_S_PER_BYTE * _size(parts)
    for _ in range(3):
        began_s = time.process_time()
        try:
            target.feed(parts)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is a finding
            return error, time.process_time() - began_s
        spent_s = time.process_time() - began_s
        if spent_s < bound_s:
            return None, spent_s
    return TooSlow(f"{spent_s:.2f} s for {_size(parts)} bytes"), spent_s


def _where(error: BaseException) -> str:
    """Name the lines, of a target and of what it feeds, from which the error came."""
    rows = traceback.extract_tb(error.__traceback__)[1:]
    fed = [row for row in rows if "/tests/fuzz/" in row.filename]
    ours = [row for row in rows if "site-packages" not in row.filename]
    lines = [f"{row.filename.rpartition('/')[2]}:{row.lineno} {row.name}" for row in (*fed[-1:], *ours[-1:])]
    return f"{type(error).__name__} in {', '.join(lines)}"


def _smallest(target: Target, parts: Parts, where: str) -> Parts:
    """Cut pieces out for as long as the same thing happens. If it happens only after others, nothing can be cut."""
    left = _CUTS

    def still(candidate: Parts) -> bool:
        nonlocal left
        left -= 1
        target.reset()
        error, _ = _fed(target, candidate)
        return error is not None and _where(error) == where

    for at in reversed(range(len(parts))):
        shorter = parts[:at] + parts[at + 1 :]
        if left > 0 and still(shorter):
            parts = shorter
    for at in range(len(parts)):
        step = max(1, len(parts[at]) // 2)
        while step and left > 0:
            first = 0
            while first < len(parts[at]) and left > 0:
                cut = parts[at][:first] + parts[at][first + step :]
                candidate = (*parts[:at], cut, *parts[at + 1 :])
                if still(candidate):
                    parts = candidate
                else:
                    first += step
            step //= 2
    return parts


def _size(parts: Parts) -> int:
    return sum(map(len, parts))
