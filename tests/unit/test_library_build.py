"""The library's text and its build number change together: of two builds a server keeps the newer one."""

import hashlib

from taskyard.dispatcher.cell.connection import library

PINNED = (17, "ba25fb53a966482a")


def test_a_changed_library_has_a_new_build_number() -> None:
    found = library()
    digest = hashlib.sha256(found.text.encode()).hexdigest()[:16]

    assert (found.build, digest) == PINNED, "raise _BUILD in connection.py, then pin both here"
