"""Where the settings come from: defaults, then a TOML file, then the environment, then flags; the last one wins.

Every value of every source is checked, also one that a later source replaces, and all faults are listed in one
ConfigError. A variable that starts like ours but is none is only a warning: the environment belongs to others too.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import inspect

from taskyard.dispatcher.settings import Settings
from taskyard.schemas.errors import ConfigError

FILE = "taskyard.toml"
_PREFIX = "TASKYARD_"
_FILE_VARIABLE = "TASKYARD_CONFIG"
_NO_SETTINGS = {_FILE_VARIABLE, "TASKYARD_TEST_SERVICES"}
# Kubernetes puts the addresses of a Service named `taskyard` or `taskyard-…` into every container beside it.
_KUBERNETES = re.compile(r"_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)=|_PORT=(tcp|udp)://")
_REDIS_SCHEMES = ("redis", "rediss", "unix")


class Leaf(NamedTuple):
    """One setting. type: as msgspec converts it."""

    path: str
    type: Any
    default: object
    description: str

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return _PREFIX + self.path.upper().replace(".", "_")


class Given(NamedTuple):
    """A value from one source. origin: what a person would look for, such as `--http-port`. is_text: not typed yet."""

    path: str
    value: object
    origin: str
    is_text: bool = True


class Configured(NamedTuple):
    """The settings, where each path's value came from, and what looked odd on the way."""

    settings: Settings
    origins: dict[str, str]
    warnings: tuple[str, ...]


def _leaves(struct: type[msgspec.Struct], above: str = "") -> Iterator[Leaf]:
    for field in msgspec.structs.fields(struct):
        kind: Any = field.type
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from _leaves(kind, f"{above}{field.name}.")
        else:
            metas = [meta for meta in get_args(kind) if isinstance(meta, msgspec.Meta)]
            yield Leaf(above + field.name, kind, field.default, "".join(meta.description or "" for meta in metas))


LEAVES = {leaf.path: leaf for leaf in _leaves(Settings)}
"""Every setting by its path, such as `http.port`."""

_VARIABLES = {leaf.variable: leaf.path for leaf in LEAVES.values()}


def configure(
    *,
    file: Path | None = None,
    flags: Sequence[Given] = (),
    environment: Mapping[str, str] = os.environ,
    directory: Path = Path(),
) -> Configured:
    """Gather the settings. file: else the one that TASKYARD_CONFIG names, else `taskyard.toml` in `directory`.

    Raises ConfigError with all faults of all sources.
    """
    faults: list[str] = []
    from_file = list(_from_file(_chosen(file, environment, directory), faults))
    from_environment, warnings = _from_environment(environment)
    values: dict[str, object] = {path: leaf.default for path, leaf in LEAVES.items()}
    origins = dict.fromkeys(LEAVES, "default")
    for given in (*from_file, *from_environment, *flags):
        fault = _taken(given, values)
        if fault:
            faults.append(fault)
        else:
            origins[given.path] = given.origin
    faults += _unfit(values, origins)
    if faults:
        raise ConfigError(_listed([*faults, *warnings]))
    return Configured(msgspec.convert(_tree(values), Settings), origins, tuple(warnings))


def shown(path: str, value: object) -> str:
    """A value in TOML's form, without its secret."""
    text = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()
    if path != "redis":
        return text
    return re.sub(r"([?&]password=)[^&\"]*", r"\1***", re.sub(r"://([^:@/?#]*):.*@", r"://\1:***@", text))


def _chosen(file: Path | None, environment: Mapping[str, str], directory: Path) -> tuple[Path, str] | None:
    if file is not None:
        return file, f"--config {file}"
    named = environment.get(_FILE_VARIABLE)
    if named:
        return Path(named), f"{_FILE_VARIABLE}={named}"
    here = directory / FILE
    return (here, FILE) if here.exists() else None


def _from_file(chosen: tuple[Path, str] | None, faults: list[str]) -> Iterator[Given]:
    if chosen is None:
        return
    path, why = chosen
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        faults.append(f"{why}: cannot be read: {reason}")
        return
    except tomllib.TOMLDecodeError as error:
        faults.append(f"{why}: is not TOML: {error}")
        return
    except RecursionError:
        faults.append(f"{why}: is nested deeper than any setting")
        return
    yield from _flat(found, str(path))


def _flat(table: Mapping[str, Any], origin: str, above: str = "") -> Iterator[Given]:
    for name, value in table.items():
        path = above + name
        if isinstance(value, dict) and path not in LEAVES and value:
            yield from _flat(value, origin, f"{path}.")  # pyright: ignore[reportUnknownArgumentType] - TOML's own
        elif not (value == {} and _has_below(path)):
            yield Given(path, value, origin, is_text=False)


def _from_environment(environment: Mapping[str, str]) -> tuple[list[Given], list[str]]:
    given: list[Given] = []
    warnings: list[str] = []
    for name, value in sorted(environment.items()):
        if not name.startswith(_PREFIX) or name in _NO_SETTINGS:
            continue
        if name in _VARIABLES:
            given.append(Given(_VARIABLES[name], value, name))
        elif not _KUBERNETES.search(f"{name}={value}"):
            near = _near(name.removeprefix(_PREFIX), [known.removeprefix(_PREFIX) for known in _VARIABLES], "_")
            warnings.append(f"{name} is no setting and is ignored" + _meant(near and _PREFIX + near))
    return given, warnings


def _taken(given: Given, values: dict[str, object]) -> str:
    """Put the value in its place, or say what is wrong with it."""
    leaf = LEAVES.get(given.path)
    if leaf is None:
        if _has_below(given.path):
            return f"{given.origin}: {given.path} is a section; its settings are {', '.join(_below(given.path))}"
        return f"{given.origin}: {given.path} is no setting{_meant(_near(given.path, LEAVES, '.'))}"
    try:
        values[given.path] = msgspec.convert(given.value, leaf.type, strict=not given.is_text)
    except (msgspec.ValidationError, UnicodeEncodeError):  # the environment's bytes need not be text
        text = shown(given.path, given.value if isinstance(given.value, str | int | bool) else str(given.value))
        hint = ""
        if isinstance(given.value, str) and given.value.startswith("tcp://") and given.origin.startswith(_PREFIX):
            hint = " (Kubernetes sets it for a Service of that name; turn that off with enableServiceLinks: false)"
        return f"{given.origin}: {given.path} must be {_wanted(leaf.type)}, not {text}{hint}"
    return ""


def _unfit(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """What no type can say: the form of the addresses, and values that contradict each other."""
    for server in str(values["kafka"]).split(","):
        host, _, port = server.strip().rpartition(":")
        if not host or not port.isdecimal():
            yield f"{origins['kafka']}: kafka must be host:port,host:port, not {json.dumps(server)}"
    if not _is_redis(str(values["redis"])):
        form = "redis://[user:password@]host:port/db, rediss://… or unix://path"
        yield f"{origins['redis']}: redis must be {form}, not {shown('redis', values['redis'])}"
    if values["retry.cap_ms"] < values["retry.base_ms"]:
        yield f"retry.cap_ms ({values['retry.cap_ms']}) must not be below retry.base_ms ({values['retry.base_ms']})"


def _is_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is no number
    except ValueError:
        return False
    return parts.scheme in _REDIS_SCHEMES and bool(parts.path if parts.scheme == "unix" else parts.hostname)


def _wanted(kind: Any) -> str:
    """Say in words what a type admits."""
    info = inspect.type_info(kind)
    if isinstance(info, inspect.Metadata):
        info = info.type
    match info:
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case inspect.IntType(ge=low, le=None):
            return "a whole number" if low is None else f"a whole number of at least {low}"
        case inspect.IntType(ge=low, le=high):
            return f"a whole number from {low} to {high}"
        case inspect.StrType(pattern=str(pattern)):
            return f"text of the form {pattern.removesuffix(chr(92) + 'Z').removeprefix('^')}"
        case inspect.StrType(min_length=1):
            return "text of at least one character"
        case _:
            return "text"


def _below(path: str) -> list[str]:
    return [leaf for leaf in LEAVES if leaf.startswith(f"{path}.")]


def _has_below(path: str) -> bool:
    return bool(_below(path))


def _near(name: str, known: Iterable[str], parting: str) -> str:
    """The known name that was probably meant: one that ends so, or is spelt almost so; empty if there is none."""
    names = list(known)
    ends = [other for other in names if other.endswith(parting + name)]
    return (ends or difflib.get_close_matches(name, names, n=1, cutoff=0.75) or [""])[0]


def _meant(near: str) -> str:
    return f"; did you mean {near}?" if near else "; `taskyard config` lists all settings"


def _listed(faults: Sequence[str]) -> str:
    if len(faults) == 1:
        return f"wrong settings: {faults[0]}"
    return f"wrong settings, {len(faults)} faults:\n" + "\n".join(f"  {fault}" for fault in faults)


def as_toml(settings: Settings) -> str:
    """Write all settings down, so that a child process needs neither our flags nor our environment."""
    lines: list[str] = []
    for path in LEAVES:
        value: object = settings
        for name in path.split("."):
            value = getattr(value, name)
        lines.append(f"{path} = {msgspec.json.encode(value).decode()}\n")
    return "".join(lines)


def _tree(values: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        above, _, name = path.rpartition(".")
        (tree.setdefault(above, {}) if above else tree)[name] = value
    return tree
