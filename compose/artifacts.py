"""The jars of Apache Kafka: fetched once with jgo, checked against their hashes, kept in a cache directory.

The list is fixed (`kafka_jars.txt`), so nothing is resolved at run time: 3 s instead of the resolver's 15 to 22 s on
the first start, and no import of jgo afterwards.
"""

import contextlib
import fcntl
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from taskyard.compose.process import ServiceError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

KAFKA_VERSION = "4.4.0"
OnProgress = Callable[[str], None]

_LIST = Path(__file__).with_name("kafka_jars.txt")
# The binding that lets Kafka's log lines out; not a dependency of Kafka's own artifacts.
_LOG_BINDING = "org.slf4j:slf4j-simple:1.7.36"
# More at once did not make it faster on a good line.
_DOWNLOADS_AT_ONCE = 6
_DOWNLOAD_TIMEOUT_S = 60
_ATTEMPTS = 3


class Jar(msgspec.Struct, frozen=True):
    """One line of the list."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """The name in the cache; the same as in Maven's."""
        return f"{self.artifact}-{self.version}.jar"


def cache_directory() -> Path:
    """A directory of ours that outlives the process: XDG's, else beside the environment, else in the temp directory.

    Created if missing. Raises ServiceError if none can be written.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    candidates = [Path(base) / "taskyard"] if base.startswith("/") else []
    with contextlib.suppress(RuntimeError):
        candidates.append(Path.home() / ".cache" / "taskyard")
    if sys.prefix != sys.base_prefix:
        candidates.append(Path(sys.prefix) / "cache" / "taskyard")
    candidates.append(Path(tempfile.gettempdir()) / f"taskyard-cache-{os.getuid()}")
    for candidate in candidates:
        with contextlib.suppress(OSError):
            candidate.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_ours(candidate):
                return candidate
    tried = ", ".join(map(str, candidates))
    raise ServiceError(f"no directory to keep Apache Kafka in; tried {tried}. Set XDG_CACHE_HOME to a writable one")


def _is_ours(directory: Path) -> bool:
    """Nobody else may put a jar there: it would be run."""
    state = directory.stat()
    others_write = stat.S_IMODE(state.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
    return state.st_uid == os.getuid() and not others_write and os.access(directory, os.W_OK | os.X_OK)


@contextlib.contextmanager
def locked(file: Path) -> Generator[None]:
    """Hold a lock that other processes of ours respect; waits for it. Freed by the kernel if we die."""
    with file.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def listed_jars() -> list[Jar]:
    """Read the list of jars and their hashes."""
    lines = [line for line in _LIST.read_text().splitlines() if line and not line.startswith("#")]
    return [_parsed(line) for line in lines]


def _parsed(line: str) -> Jar:
    name, _, digest = line.partition(" sha256:")
    group, artifact, version = name.split(":")
    return Jar(group, artifact, version, digest)


def kafka_jars(on_progress: OnProgress) -> list[Path]:
    """Return the paths of all jars, fetching the missing ones (43 MB the first time).

    A file in the cache was checked before it got its name. Several processes may call this at once.
    Raises ServiceError if one cannot be fetched. Cost: 1 ms if all are there.
    """
    directory = cache_directory() / "jars"
    jars = listed_jars()
    paths = [directory / jar.filename for jar in jars]
    if all(path.exists() for path in paths):
        return paths
    directory.mkdir(exist_ok=True)
    with locked(directory / ".lock"), tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as scratch:
        missing = [jar for jar in jars if not (directory / jar.filename).exists()]
        context = _maven(Path(scratch))
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="taskyard-fetch") as threads:
            done = len(jars) - len(missing)
            on_progress(f"fetching Apache Kafka {KAFKA_VERSION} ({done} of {len(jars)} jars)…")
            for _ in threads.map(_fetch, repeat(context), missing, repeat(directory)):
                done += 1
                on_progress(f"fetching Apache Kafka {KAFKA_VERSION} ({done} of {len(jars)} jars)…")
    return paths


def _maven(scratch: Path) -> "MavenContext":
    """Maven repositories as the user's jgo settings name them (a mirror, say), then the public one."""
    try:
        from jgo.config import GlobalSettings  # noqa: PLC0415 - needed on the first start only, 0.2 s
        from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
        from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415
    except ImportError as error:
        raise ServiceError("jgo is missing: pip install 'taskyard[embedded]', or use --kafka") from error
    remote = {**GlobalSettings.load().repositories, "central": MAVEN_CENTRAL_URL}
    return MavenContext(resolver=PythonResolver(), repo_cache=scratch, remote_repos=remote, timeout=_DOWNLOAD_TIMEOUT_S)


def _fetch(context: "MavenContext", jar: Jar, directory: Path) -> None:
    """Fetch one jar beside its place, check it, then move it there in one step."""
    reason = ""
    for _ in range(_ATTEMPTS):
        artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
        try:
            path = artifact.resolve()
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            reason = str(error)
            if artifact.cached_path is not None:
                artifact.cached_path.unlink(missing_ok=True)
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() == jar.sha256:
            path.replace(directory / jar.filename)
            return
        path.unlink()
        reason = "its content does not have the expected hash"
    raise ServiceError(
        f"cannot fetch {jar.group}:{jar.artifact}:{jar.version}: {reason}. Check the network; behind a mirror, name it "
        f"under [repositories] in jgo's settings file; or use a running Kafka with --kafka"
    )


def print_list(coordinate: str) -> None:
    """Resolve Kafka anew and print the list with hashes: a person's tool, for the next version."""
    import jgo  # noqa: PLC0415 - not needed to run

    lines: set[str] = set()
    for artifact in [*jgo.resolve(coordinate), *jgo.resolve(_LOG_BINDING)]:
        digest = hashlib.sha256(artifact.resolve().read_bytes()).hexdigest()
        lines.add(f"{artifact.groupId}:{artifact.artifactId}:{artifact.version} sha256:{digest}\n")
    sys.stdout.writelines(sorted(lines))


if __name__ == "__main__":
    print_list(sys.argv[1])
