"""Becomes another program that dies with its parent, even when the parent is killed with SIGKILL.

Run as `python -I -S leash.py <pid of the parent> <program> <argument>…`. A small program of its own instead of a
`preexec_fn`: that one runs between fork and exec, where a process with threads can deadlock.
Linux only; elsewhere it just becomes the program, which then outlives a killed parent.
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask the kernel for the signal, then exec: the request survives exec."""
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - not needed elsewhere

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            # The parent died before the request was made: no signal will come.
            sys.exit(1)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
