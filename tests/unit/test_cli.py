"""The command line without services: its pages, its errors, and what it reads from people."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from taskyard import __version__
from taskyard.dispatcher.cell.contract import Level
from taskyard.dispatcher.cli.app import COMMANDS, run
from taskyard.dispatcher.cli.handlers import load
from taskyard.dispatcher.cli.lines import Line, parse
from taskyard.dispatcher.cli.overview import paused
from taskyard.dispatcher.cli.pairs import pairs
from taskyard.dispatcher.cli.task import receipt_text
from taskyard.dispatcher.cli.terminal import duration, size
from taskyard.dispatcher.core.receipt import Receipt
from taskyard.schemas.errors import ConfigError

PROGRAM = Path(sys.executable).with_name("taskyard")
HEAVY = {"aiokafka", "msgspec", "redis", "structlog", "prometheus_client", "taskyard.dispatcher.settings", "uvloop"}
# Nothing listens on these ports.
NOWHERE = ("--kafka", "127.0.0.1:1", "--redis", "redis://user:secret@127.0.0.1:1/0")


def taskyard(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, its output piped."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("TASKYARD_")}
    return subprocess.run(
        [PROGRAM, *words], capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env=outside | environment
    )


def on_a_terminal(*words: str, **environment: str) -> str:
    """Run the command on a terminal and return all that it wrote there."""
    ours, its = pty.openpty()
    outside = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        [PROGRAM, *words], stdin=its, stdout=its, stderr=its, env={**outside, "TERM": "xterm-256color", **environment}
    ):
        os.close(its)
        written = b""
        try:
            while piece := os.read(ours, 65_536):
                written += piece
        except OSError:  # how Linux says that the other end has gone
            pass
    os.close(ours)
    return written.decode()


def test_the_first_page_loads_no_command_and_no_client() -> None:
    code = "import sys; from taskyard.dispatcher.cli.app import run; run(['--help']); print(*sys.modules, sep='\\n')"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert all(f"│ {name} " in done.stdout for name, _, _ in COMMANDS)
    loaded = set(done.stdout.split())
    assert not HEAVY & loaded
    assert not {f"taskyard.dispatcher.cli.{name}" for name, _, _ in COMMANDS} & loaded


@pytest.mark.parametrize("name", [name for name, _, _ in COMMANDS])
def test_each_command_has_a_page_with_the_common_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = run([name, "--help"])

    page = capsys.readouterr().out
    assert code == 0
    assert page.startswith(f"Usage: taskyard {name}")
    assert all(f" {flag} " in page for flag in ("--config", "--kafka", "--redis", "--cell", "--prefix", "--set"))


def test_the_version_is_the_packages() -> None:
    assert taskyard("--version").stdout == f"{__version__}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["statu"], "statu is no command; did you mean status?"),
        (["frobnicate"], "frobnicate is no command; see `taskyard -h`"),
        (["--cell", "main", "status"], "the command comes first"),
        (["status", "--jsn"], "--jsn. Did you mean --json? See `taskyard status --help`."),
        (["task"], "requires an argument"),
        (["config", "--set", "http.prt=1"], "did you mean http.port?"),
        (["worker", "agents"], "handlers are named module:name"),
        (["publish"], "--type says which agents can run it"),
        (["publish", "tasks.jsonl", "--type", "a"], "give the one or the others"),
        (["publish", "no-such-file"], "no-such-file cannot be opened: No such file or directory"),
        (["publish", "--no-such-flag"], "unknown option: --no-such-flag"),
        (["publish", "--type", "a", "--payload", "text"], "--payload is not JSON"),
        (["publish", "--type", "a", "--deadline", "nan"], "--deadline must be a number of seconds, not nan"),
        (["publish", "--type", "a", "--timeout", "inf"], "--timeout must be a number of seconds, not inf"),
        (["up", "--kafka", "127.0.0.1:1"], "starts servers of its own"),
    ],
)
def test_wrong_usage_is_one_clear_line_and_code_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(words)

    written = capsys.readouterr()
    assert code == 2
    assert told in written.err
    assert written.err.startswith("error: ")
    assert len(written.err.splitlines()) == 1
    assert written.out == ""


@pytest.mark.parametrize(
    "words", [["status"], ["queue"], ["task", "t"], ["publish", "--type", "a"], ["doctor"]], ids=lambda words: words[0]
)
def test_services_that_do_not_answer_are_told_without_traceback_or_password(words: list[str]) -> None:
    done = taskyard(*words, *NOWHERE)

    told = done.stdout + done.stderr
    assert done.returncode == 1
    assert "127.0.0.1:1" in told
    assert "Traceback" not in told
    assert "secret" not in told


def test_debug_shows_the_traceback() -> None:
    done = taskyard("task", "t", *NOWHERE, "--debug")

    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "DependencyError" in done.stderr


def test_a_misspelt_variable_is_seen() -> None:
    done = taskyard("config", TASKYARD_HTTP_PROT="1")

    assert done.returncode == 0
    assert done.stderr == (
        "warning: TASKYARD_HTTP_PROT is no setting and is ignored; did you mean TASKYARD_HTTP_PORT?\n"
    )


def test_a_reader_that_has_gone_is_no_error() -> None:
    ours, its = os.pipe()
    os.close(ours)

    done = subprocess.run([PROGRAM, "config"], stdout=its, stderr=subprocess.PIPE, text=True, check=False, timeout=60)

    os.close(its)
    assert done.returncode == 141
    assert done.stderr == ""


def test_colours_are_for_terminals_only_and_can_be_refused() -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7]")

    assert colour.search(on_a_terminal("doctor", *NOWHERE))
    assert not colour.search(on_a_terminal("doctor", *NOWHERE, NO_COLOR="1"))
    assert "\x1b" not in taskyard("doctor", *NOWHERE).stdout


def test_piped_lines_are_not_wrapped() -> None:
    done = taskyard("doctor", *NOWHERE)

    assert all(line.startswith(("fail  ", "      → ")) for line in done.stdout.splitlines()[:-2])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, as the working directory, with a module that has handlers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"agents_{time.monotonic_ns()}"
    path = tmp_path / f"{name}.py"
    path.write_text("def echo(x):\n    return x\n\nhandlers = {'echo': echo, 'other': echo}\nnumber = 3\n")
    return path


def test_handlers_are_found_in_the_working_directory(project: Path) -> None:
    assert set(load(f"{project.stem}:handlers")) == {"echo", "other"}
    assert set(load(f"{project.stem}:handlers", only=["echo"])) == {"echo"}


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("{0}", "handlers are named module:name, as in agents:handlers, not '{0}'"),
        ("{0}:", "handlers are named module:name"),
        ("{0}:handler", "the module {0} has no handler; did you mean {0}:handlers?"),
        ("{0}:number", "{0}:number is a int; it must be a mapping"),
        ("{0}:echo", "{0}:echo is a function; it must be a mapping"),
        ("no_such_module:handlers", "there is no module no_such_module in .* the folder that has no_such_module.py"),
    ],
)
def test_handlers_that_cannot_be_had_are_explained(reference: str, told: str, project: Path) -> None:
    with pytest.raises(ConfigError, match=told.format(project.stem)):
        load(reference.format(project.stem))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import no_such_module", "imports no_such_module, which is not installed"),
        ("1 / 0", "failed with ZeroDivisionError: division by zero; --debug shows where"),
        ("x =", "failed with SyntaxError: invalid syntax"),
        ("x = 1", 'has no handlers; write there: handlers = {"agent type": function}'),
    ],
)
def test_a_module_that_cannot_be_imported_is_explained(source: str, told: str, project: Path) -> None:
    (project.parent / f"bad_{project.stem}.py").write_text(source)

    with pytest.raises(ConfigError, match=re.escape(told)):
        load(f"bad_{project.stem}:handlers")


def test_a_type_without_a_handler_is_told_with_those_there_are(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"--type third: .* has no such agent type; it has echo, other"):
        load(f"{project.stem}:handlers", only=["echo", "third"])


def test_all_pairs_that_are_none_are_told_at_once() -> None:
    assert pairs("--capacity", ["gpu=1", "slots=4"], int, "") == {"gpu": 1, "slots": 4}

    with pytest.raises(ConfigError) as raised:
        pairs("--capacity", ["gpu=x", "slots", "=1", "cpu=2"], int, "as in gpu=1")

    assert [text in str(raised.value) for text in ("gpu=x", "slots", "=1", "cpu=2")] == [True, True, True, False]


def test_a_line_becomes_a_task_and_gets_an_id() -> None:
    line = parse(1, b'{"type": "echo", "payload": {"n": 1}, "priority": "high"}')

    assert line.task is not None
    assert (line.task.type, line.task.priority, bytes(line.task.payload)) == ("echo", "high", b'{"n": 1}')
    assert line.task.id


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", ""),
        (b"  \r", ""),
        (b"nonsense", "JSON is malformed"),
        (b'{"priority": "high"}', "missing required field `type`"),
        (b'{"type": 3}', "Expected `str`, got `int`"),
        (b'{"type": "a", "priorty": "high"}', "a task has no priorty; did you mean priority?"),
        (b'{"type": "\xff"}', "UTF-8|utf-8|invalid"),
        (b"[]", "Expected `object`, got `array`"),
    ],
)
def test_a_bad_line_says_why_and_a_blank_one_is_none(text: bytes, fault: str) -> None:
    line = parse(7, text)

    assert line == Line(7, None, line.fault)
    assert re.search(fault, line.fault) if fault else line.fault == ""


def logged(form: str, level: str = "info") -> list[str]:
    """What a process with such logs writes to standard error."""
    code = (
        "import logging, structlog\n"
        "from taskyard.dispatcher.cli import logs\n"
        "from taskyard.dispatcher.settings import LogSettings\n"
        f"logs.configure(LogSettings(level={level!r}, format={form!r}))\n"
        "structlog.get_logger('ours').info('ours_started', port=80, raw=b'x')\n"
        "structlog.get_logger('ours').debug('ours_detail')\n"
        "logging.getLogger('theirs').warning('theirs_%s', 'late', extra={'seconds': 3})\n"
        "secret = 'payload'\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    structlog.get_logger('ours').exception('ours_failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.mark.parametrize("form", ["json", "auto"])
def test_logs_of_both_libraries_are_json_lines_when_no_person_looks(form: str) -> None:
    first, second, third = (json.loads(line) for line in logged(form))

    assert (first["event"], first["level"], first["logger"], first["port"]) == ("ours_started", "info", "ours", 80)
    assert (second["event"], second["level"], second["logger"]) == ("theirs_late", "warning", "theirs")
    assert second["seconds"] == 3
    assert "ZeroDivisionError" in third["exception"]


def test_console_logs_are_plain_without_a_terminal_and_show_no_variables() -> None:
    text = "\n".join(logged("console"))

    assert "ours_started" in text
    assert "port=80" in text
    assert "ZeroDivisionError" in text
    assert "\x1b" not in text
    assert "payload" not in text


@pytest.mark.parametrize(("level", "count"), [("info", 2), ("debug", 6)])
def test_what_a_client_repeats_in_an_outage_is_told_once_unless_one_debugs(level: str, count: int) -> None:
    code = (
        "import logging\n"
        "from taskyard.dispatcher.cli import logs\n"
        "from taskyard.dispatcher.settings import LogSettings\n"
        f"logs.configure(LogSettings(level={level!r}, format='json'))\n"
        "for node in range(3):\n"
        "    logging.getLogger('aiokafka').error('no connection to %s', node)\n"
        "    logging.getLogger('aiokafka.consumer').error('no connection to %s', node)\n"
        "for node in range(3):\n    logging.getLogger('ours').error('no connection to %s', node)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    told = [json.loads(line)["logger"] for line in done.stderr.splitlines()]
    assert told.count("ours") == 3
    assert len(told) - 3 == count


def test_the_level_decides_what_is_logged() -> None:
    assert not any("detail" in line for line in logged("json", "info"))
    assert any("detail" in line for line in logged("json", "debug"))
    assert len(logged("json", "error")) == 1


def test_lengths_and_sizes_are_written_for_people() -> None:
    assert [duration(ms) for ms in (0, 999, 1_500, 61_000, 7_260_000, 200_000_000, -5)] == [
        "0 ms", "999 ms", "1.5 s", "1 min 1 s", "2 h 1 min", "2 d 7 h", "-5 ms",
    ]  # fmt: skip
    assert [size(count) for count in (0, 1023, 1536, 5 << 20, 3 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 TiB",
    ]  # fmt: skip


def test_a_receipt_says_how_a_place_was_chosen_or_why_there_was_none() -> None:
    chosen = Receipt("least", candidates=4, chosen="a", load=0.25, runner_up="b", runner_up_load=0.5, view_age_ms=9)
    none = Receipt("least", reason="all are full", seed=7)

    assert receipt_text(chosen).startswith("least chose a, load 0.250, of 4 candidates; next b, load 0.500 (view 9 ms")
    assert receipt_text(none) == "least found no instance: all are full (view 0 ms old, seed 7, index 0)"


@pytest.mark.parametrize(
    ("parked", "parked_bytes", "outbox", "waiting"),
    [
        (79, 0, 0, ()),
        (80, 0, 0, ("low",)),
        (0, 900, 0, ("normal", "low")),
        (100, 0, 0, ("critical", "high", "normal", "low")),
        (0, 0, 10, ("critical", "high", "normal", "low")),
    ],
)
def test_a_full_park_is_told_with_the_priorities_that_wait(
    parked: int, parked_bytes: int, outbox: int, waiting: tuple[str, ...]
) -> None:
    level = Level(parked, parked_bytes, 0, outbox, 0, 0)

    assert paused(level, (100, 1_000, 10)) == waiting
    assert paused(level, (0, 0, 0)) == (), "a cell that nobody has opened has no bounds"
