"""The table of commands, and what becomes of their errors.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted.
"""

import difflib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import cast

from cyclopts import App, CycloptsError, Group, Parameter

from taskyard import __version__
from taskyard.schemas.errors import ConfigError, TaskyardError

_RUN = Group("Run", sort_key=1)
_PUBLISH = Group("Publish", sort_key=2)
_LOOK = Group("Look", sort_key=3)

# Name, group, what it does. Each is a function of the same name in the module of the same name, imported when it runs.
COMMANDS = (
    ("demo", _RUN, "Show the main job live: real Kafka and Valkey, a dispatcher, a fleet, tasks."),
    ("replay", _RUN, "Run a recorded workload through the real system, and report."),
    ("up", _RUN, "Run Kafka and Valkey for development."),
    ("dispatcher", _RUN, "Run a dispatcher."),
    ("worker", _RUN, "Run instances with your handlers."),
    ("publish", _PUBLISH, "Publish one task, or tasks from JSON lines."),
    ("status", _LOOK, "Show the fleet, what waits, and the lag."),
    ("queue", _LOOK, "Show the queues and what is parked, and why."),
    ("task", _LOOK, "Show where a task is, how it came there and what happened to it."),
    ("doctor", _LOOK, "Check Kafka, Redis and the cell, and say what to do."),
    ("recover", _LOOK, "Show from where a lost cell would be read again, and start that."),
    ("audit", _LOOK, "Compare used capacity, queues, places and indexes; mend what differs."),
    ("config", _LOOK, "Show the settings in force and where each comes from."),
)

_PAGES = ("--help", "-h", "--version")


def app(command: str = "") -> App:
    """Make the command line. Cheap: no command is imported. The page of `command` is its function's docstring."""
    made = App(
        name="taskyard",
        help="Places agent tasks on the least-loaded instance that can run them.",
        version=__version__,
        version_flags=["--version"],
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        exit_on_error=False,
        print_error=False,
        default_parameter=Parameter(negative=(), show_default=False),
    )
    for place, (name, group, text) in enumerate(COMMANDS):
        own = None if name == command else text
        made.command(f"taskyard.dispatcher.cli.{name}:{name}", name=name, group=group, help=own, sort_key=place)
    made["--help"].group = made["--version"].group = Group("Options", sort_key=9)
    return made


def main() -> None:
    """Run the command line of this process and end it."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run one command line. Returns its exit code."""
    if "--debug" not in words:
        # A command says itself what went wrong; what its clients log on the way is noise until a service sets up logs.
        logging.getLogger().addHandler(logging.NullHandler())
    try:
        code = _dispatched(list(words))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        causes = list(_causes(error))
        if all(isinstance(cause, BrokenPipeError) for cause in causes):
            return _unread()
        if "--debug" in words:
            raise
        return _failed(error, causes, words)
    return code if isinstance(code, int) else 0


def _dispatched(words: list[str]) -> object:
    command = words[0] if words else ""
    names = [name for name, _, _ in COMMANDS]
    if command and command not in (*names, *_PAGES):
        # Not left to cyclopts: it would import every command to find the nearest name.
        near = difflib.get_close_matches(command, names, n=1)
        if command.startswith("-"):
            raise ConfigError(f"the command comes first, then its flags: taskyard COMMAND {command} …")
        raise ConfigError(
            f"{command} is no command" + (f"; did you mean {near[0]}?" if near else "; see `taskyard -h`")
        )
    return app(command)(words)


def _failed(error: Exception, causes: Sequence[BaseException], words: Sequence[str]) -> int:
    from taskyard.dispatcher.cli.terminal import fail

    if isinstance(error, CycloptsError):
        fail(f"{error} See `taskyard {words[0]} --help`.")
        return 2
    if not all(isinstance(cause, TaskyardError) for cause in causes):
        raise error  # a bug of ours: the traceback is what we want to be sent
    for text in dict.fromkeys(map(str, causes)):
        fail(text)
    return 2 if any(isinstance(cause, ConfigError) for cause in causes) else 1


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what a task group has gathered."""
    if isinstance(error, BaseExceptionGroup):
        for cause in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _causes(cause)
    else:
        yield error


def _unread() -> int:
    """Whoever read our output has gone: be quiet, also when Python flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141  # as a shell says of a process that SIGPIPE ended
