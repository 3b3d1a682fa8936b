"""A dispatcher process of a run, of this build of the function library or of a newer one.

Run as `python -m tests.fault.dispatcher SETTINGS PORT NEWER`: a settings file, the HTTP port, and by how many builds
its library is newer than the tree's.
"""

import sys
from pathlib import Path

import msgspec

from taskyard.dispatcher import service
from taskyard.dispatcher.cell import connection
from taskyard.dispatcher.cli import logs
from taskyard.dispatcher.cli.configure import configure
from taskyard.dispatcher.cli.loop import run


def newer(by: int) -> connection.Library:
    """A later build of the library: the same functions in another text."""
    ours = connection.library()
    return ours._replace(build=ours.build + by, text=f"{ours.text}\n-- {by} builds later\n") if by else ours


def main(settings_file: Path, port: int, by: int) -> None:
    """Dispatch until SIGTERM."""
    settings = configure(file=settings_file, environment={}).settings
    settings = msgspec.structs.replace(settings, http=msgspec.structs.replace(settings.http, port=port))
    logs.configure(settings.log)
    library = newer(by)
    # What an upgraded package would have on disk.
    connection.library = lambda: library
    run(service.run(settings))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
