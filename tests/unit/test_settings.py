"""Where settings come from, which source wins, and that every fault is told at once."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from taskyard.dispatcher.cli.config import toml
from taskyard.dispatcher.cli.configure import LEAVES, Configured, Given, configure, shown
from taskyard.dispatcher.cli.flags import Common, configured
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.errors import ConfigError


def settings_from(
    directory: Path, *, file: str = "", environment: Mapping[str, str] | None = None, flags: tuple[Given, ...] = ()
) -> Configured:
    """Gather the settings of a directory with such a taskyard.toml."""
    if file:
        (directory / "taskyard.toml").write_text(file)
    return configure(environment=environment or {}, flags=flags, directory=directory)


def faults_of(error: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    """The listed faults, one a line."""
    first, *rest = str(error.value).splitlines()
    return [line.strip() for line in rest] or [first.removeprefix("wrong settings: ")]


def test_without_any_source_the_defaults_hold(tmp_path: Path) -> None:
    found = settings_from(tmp_path)

    assert found.settings == Settings()
    assert set(found.origins.values()) == {"default"}
    assert not found.warnings


def test_a_later_source_wins_over_an_earlier_one(tmp_path: Path) -> None:
    file = "cell = 'file'\n[http]\nport = 1\nhost = 'file'\n[worker]\nslots = 1\n"
    environment = {"TASKYARD_HTTP_PORT": "2", "TASKYARD_WORKER_SLOTS": "2"}
    flags = (Given("worker.slots", "3", "--slots"),)

    found = settings_from(tmp_path, file=file, environment=environment, flags=flags)

    assert (found.settings.cell, found.settings.http.host) == ("file", "file")
    assert found.settings.http.port == 2
    assert found.settings.worker.slots == 3
    assert found.settings.worker.instances == Settings().worker.instances
    assert found.origins["http.host"].endswith("taskyard.toml")
    assert found.origins["http.port"] == "TASKYARD_HTTP_PORT"
    assert found.origins["worker.slots"] == "--slots"
    assert found.origins["worker.instances"] == "default"


def test_every_setting_has_a_variable_of_its_own_and_a_description() -> None:
    assert len({leaf.variable for leaf in LEAVES.values()}) == len(LEAVES)
    assert all(leaf.description for leaf in LEAVES.values())


@pytest.mark.parametrize("path", LEAVES)
def test_every_setting_can_be_set_by_its_variable(path: str, tmp_path: Path) -> None:
    leaf = LEAVES[path]
    text = str(leaf.default).lower() if isinstance(leaf.default, bool) else str(leaf.default)

    found = settings_from(tmp_path, environment={leaf.variable: text})

    assert found.settings == Settings()
    assert found.origins[path] == leaf.variable


def test_the_named_file_is_read_instead_of_the_one_that_is_here(tmp_path: Path) -> None:
    (tmp_path / "taskyard.toml").write_text("cell = 'here'")
    (tmp_path / "variable.toml").write_text("cell = 'variable'")
    (tmp_path / "flag.toml").write_text("cell = 'flag'")
    environment = {"TASKYARD_CONFIG": str(tmp_path / "variable.toml")}

    by_default = configure(environment={}, directory=tmp_path)
    by_variable = configure(environment=environment, directory=tmp_path)
    by_flag = configure(file=tmp_path / "flag.toml", environment=environment, directory=tmp_path)

    assert [found.settings.cell for found in (by_default, by_variable, by_flag)] == ["here", "variable", "flag"]


def test_all_faults_of_all_sources_are_listed_at_once(tmp_path: Path) -> None:
    file = "htp = 1\nkafka = 3\nlog = 'info'\n[http]\nport = '80'\nprt = 1\n"
    environment = {"TASKYARD_PARK_TASKS": "many", "TASKYARD_LOG_LEVEL": "loud", "TASKYARD_HTTP_PROT": "1"}
    flags = (Given("worker.slots", "0", "--slots"), Given("topics.create", "perhaps", "--set topics.create"))

    with pytest.raises(ConfigError) as raised:
        settings_from(tmp_path, file=file, environment=environment, flags=flags)

    faults = faults_of(raised)
    toml_file = tmp_path / "taskyard.toml"
    assert faults == [
        f"{toml_file}: htp is no setting; `taskyard config` lists all settings",
        f"{toml_file}: kafka must be text of at least one character, not 3",
        f"{toml_file}: log is a section; its settings are log.level, log.format",
        f'{toml_file}: http.port must be a whole number from 0 to 65535, not "80"',
        f"{toml_file}: http.prt is no setting; did you mean http.port?",
        'TASKYARD_LOG_LEVEL: log.level must be one of debug, error, info, warning, not "loud"',
        'TASKYARD_PARK_TASKS: park.tasks must be a whole number of at least 1, not "many"',
        '--slots: worker.slots must be a whole number of at least 1, not "0"',
        '--set topics.create: topics.create must be true or false, not "perhaps"',
        "TASKYARD_HTTP_PROT is no setting and is ignored; did you mean TASKYARD_HTTP_PORT?",
    ]


def test_a_wrong_value_is_told_even_if_a_later_source_replaces_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"taskyard\.toml: http\.port must be a whole number"):
        settings_from(tmp_path, file="[http]\nport = -1\n", environment={"TASKYARD_HTTP_PORT": "1"})


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("kafka", "127.0.0.1", "kafka must be host:port,host:port"),
        ("kafka", "a:1,b", 'not "b"'),
        ("redis", "http://127.0.0.1:6379", "redis must be redis://"),
        ("redis", "redis://127.0.0.1:port", "redis must be redis://"),
        ("cell", "no space", "cell must be text of the form"),
        ("retry.cap_ms", "1", r"retry\.cap_ms \(1\) must not be below retry\.base_ms \(1000\)"),
    ],
)
def test_values_that_cannot_hold_are_refused(path: str, value: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=fault):
        settings_from(tmp_path, flags=(Given(path, value, f"--{path}"),))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("redis", "unix:///run/valkey.sock"),
        ("redis", "rediss://u:p@h/1"),
        ("kafka", "a:1, b:2"),
        ("kafka", "[::1]:9092"),
    ],
)
def test_every_documented_form_of_an_address_is_taken(path: str, value: str, tmp_path: Path) -> None:
    found = settings_from(tmp_path, flags=(Given(path, value, f"--{path}"),))

    assert getattr(found.settings, path) == value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[http", "is not TOML"),
        (None, "cannot be read: No such file or directory"),
        (b"\xff", "cannot be read: it is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_fault(text: str | bytes | None, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(ConfigError, match=f"mine.toml: {fault}"):
        configure(file=file, environment={})


def test_an_unknown_variable_is_a_warning_with_the_name_that_was_meant(tmp_path: Path) -> None:
    environment = {"TASKYARD_HTTP_PROT": "1", "TASKYARD_PORT": "2", "OTHER": "3", "TASKYARD_TEST_SERVICES": "given"}

    found = settings_from(tmp_path, environment=environment)

    assert found.warnings == (
        "TASKYARD_HTTP_PROT is no setting and is ignored; did you mean TASKYARD_HTTP_PORT?",
        "TASKYARD_PORT is no setting and is ignored; did you mean TASKYARD_HTTP_PORT?",
    )


def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_typo(tmp_path: Path) -> None:
    environment = {
        "TASKYARD_SERVICE_HOST": "10.0.0.1",
        "TASKYARD_SERVICE_PORT_HTTP": "8080",
        "TASKYARD_PORT_8080_TCP_ADDR": "10.0.0.1",
        "TASKYARD_DISPATCHER_PORT": "tcp://10.0.0.1:8080",
    }

    assert not settings_from(tmp_path, environment=environment).warnings


def test_a_setting_that_kubernetes_overwrites_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="enableServiceLinks: false"):
        settings_from(tmp_path, environment={"TASKYARD_HTTP_PORT": "tcp://10.0.0.1:8080"})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://u:secret@h:1/0", "redis://u:***@h:1/0"),
        ("redis://:secret@h", "redis://:***@h"),
        ("redis://u:se/cr@et@h", "redis://u:***@h"),
        ("redis://h?password=secret&db=1", "redis://h?password=***&db=1"),
        ("redis://h:1/0", "redis://h:1/0"),
    ],
)
def test_passwords_are_hidden(url: str, expected: str) -> None:
    assert shown("redis", url) == f'"{expected}"'


def test_a_fault_does_not_show_the_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        settings_from(tmp_path, environment={"TASKYARD_REDIS": "http://u:secret@h:1"})

    assert "secret" not in str(raised.value)
    assert "http://u:***@h:1" in str(raised.value)


def test_what_config_prints_is_a_file_with_the_same_settings(tmp_path: Path) -> None:
    file = 'cell = "eu-1"\nredis = "redis://127.0.0.1:7000/3"\n[topics]\ncreate = false\n[log]\nlevel = "debug"\n'
    first = settings_from(tmp_path, file=file)

    text = "\n".join(toml(first))
    second = settings_from(tmp_path, file=text)

    assert second.settings == first.settings
    assert f"# port to listen on; 0 takes a free one and logs it [default]\nport = {Settings().http.port}" in text
    assert tomllib.loads(text)["topics"]["create"] is False


def test_what_config_prints_says_that_a_password_is_hidden(tmp_path: Path) -> None:
    found = settings_from(tmp_path, environment={"TASKYARD_REDIS": "redis://u:secret@h:1/0"})

    text = "\n".join(toml(found))

    assert "[TASKYARD_REDIS, password hidden]" in text
    assert "secret" not in text


def test_common_flags_and_set_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASKYARD_KAFKA", "variable:1")
    common = Common(kafka="flag:1", prefix="p.", sets=("worker.slots=3", "http.host = h"))

    found = configured(common, {"http.port": ("--http-port", "0"), "log.level": ("--log-level", None)})

    assert (found.settings.kafka, found.settings.prefix) == ("flag:1", "p.")
    assert (found.settings.worker.slots, found.settings.http.port) == (3, 0)
    assert found.settings.http.host == "h"
    assert found.settings.log.level == "info"
    assert found.origins["worker.slots"] == "--set worker.slots"
    assert found.origins["http.port"] == "--http-port"
