"""The flags that every command has, and flags that stand for settings.

A command takes `common: Common = NONE` and calls `settings_of(common, {"http.port": ("--http-port", http_port)})`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter

from taskyard.dispatcher.cli.configure import LEAVES, Configured, Given, configure
from taskyard.dispatcher.cli.terminal import warn
from taskyard.dispatcher.settings import Settings

_OWN = Group.create_default_parameters()
_GROUP = Group("Common options", sort_key=1_000)


def setting(path: str, flag: str, *, group: Group = _OWN) -> Parameter:
    """Make the flag of a setting, described as the setting is. Its value stays text: `configure` checks it."""
    leaf = LEAVES[path]
    default = f" (default: {leaf.default})" if leaf.default != "" else ""
    return Parameter(name=flag, help=leaf.description + default, group=group, metavar=_metavar(leaf.type))


def _metavar(kind: Any) -> str:
    """Say what is wanted: text, a number, or one of some words."""
    plain = get_args(kind)[0]
    if get_origin(plain) is Literal:
        return "|".join(get_args(plain))
    return "INT" if plain is int else "TEXT"


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """What every command understands."""

    config: Annotated[
        Path | None,
        Parameter(group=_GROUP, help="settings file (default: $TASKYARD_CONFIG, else taskyard.toml if it is here)"),
    ] = None
    kafka: Annotated[str | None, setting("kafka", "--kafka", group=_GROUP)] = None
    redis: Annotated[str | None, setting("redis", "--redis", group=_GROUP)] = None
    cell: Annotated[str | None, setting("cell", "--cell", group=_GROUP)] = None
    prefix: Annotated[str | None, setting("prefix", "--prefix", group=_GROUP)] = None
    sets: Annotated[
        tuple[str, ...],
        Parameter(name="--set", group=_GROUP, metavar="PATH=VALUE", help="any other setting; may be repeated"),
    ] = ()
    debug: Annotated[bool, Parameter(group=_GROUP, help="show the traceback of an error")] = False


NONE = Common()
"""No flag given."""

SettingFlags = Mapping[str, tuple[str, str | None]]
"""Path of a setting -> the flag that stands for it, and its value if it was given."""


def configured(common: Common, flags: SettingFlags | None = None) -> Configured:
    """Gather the settings, the command's own flags last. Raises ConfigError with all faults."""
    given = [_parted(text) for text in common.sets]
    for path in ("kafka", "redis", "cell", "prefix"):
        value = getattr(common, path)
        if value is not None:
            given.append(Given(path, value, f"--{path}"))
    given += [Given(path, value, flag) for path, (flag, value) in (flags or {}).items() if value is not None]
    return configure(file=common.config, flags=given)


def settings_of(common: Common, flags: SettingFlags | None = None) -> Settings:
    """Gather the settings and show what looked odd. Raises ConfigError with all faults."""
    found = configured(common, flags)
    for warning in found.warnings:
        warn(warning)
    return found.settings


def _parted(text: str) -> Given:
    path, _, value = text.partition("=")
    return Given(path.strip(), value.strip(), f"--set {path.strip()}")
