"""How busy the machine is, as a beat reports it."""

import contextlib
import os
import time
from pathlib import Path

_MEMORY = Path("/proc/meminfo")  # Linux only
_STALE_S = 1.0  # all instances of a process share one reading


class Load:
    """CPU and memory of the machine in permille; 0 where the system does not tell. Costs about 50 us a second."""

    def __init__(self) -> None:
        self._read_s = -_STALE_S
        self._cpu_permille = 0
        self._memory_permille = 0

    def read(self) -> tuple[int, int]:
        """Return (cpu_permille, memory_permille), each at most a second old and from 0 to 1000."""
        mono_s = time.monotonic()
        if mono_s - self._read_s >= _STALE_S:
            self._read_s = mono_s
            self._cpu_permille, self._memory_permille = _cpu_permille(), _memory_permille()
        return self._cpu_permille, self._memory_permille


def _cpu_permille() -> int:
    # The load of a minute over the cores: threads that want to run, beyond ours too.
    with contextlib.suppress(OSError, AttributeError):
        return min(1000, round(1000 * os.getloadavg()[0] / (os.cpu_count() or 1)))
    return 0


def _memory_permille() -> int:
    with contextlib.suppress(OSError, ValueError, KeyError, ZeroDivisionError):
        rows = (line.split(":", 1) for line in _MEMORY.read_text().splitlines())
        kib = {name: int(rest.split()[0]) for name, rest in rows if name in ("MemTotal", "MemAvailable")}
        return max(0, min(1000, 1000 - round(1000 * kib["MemAvailable"] / kib["MemTotal"])))
    return 0
