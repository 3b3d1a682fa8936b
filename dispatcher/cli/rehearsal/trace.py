"""Recorded workloads: three published forms, told apart by their columns, read into one.

genai_requests     requests to an image-generation service (Alibaba, cluster-trace-v2026-GenAI)
fleet_tasks        tasks of a GPU cluster (Alibaba, cluster-trace-gpu-v2023), with fleet_instances as its machines
llm_conversation   chat requests to a language model (Azure, AzureLLMInferenceTrace)
"""

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from taskyard.schemas.errors import ConfigError, SchemaError
from taskyard.schemas.limits import check_name, check_units
from taskyard.workers.instance import InstanceSpec

_FEW_STEPS = 30
# Seconds that a model takes for each token: a figure for a replay, not a measurement (see the traces' README).
_GENERATED_S, _CONTEXT_S = 0.02, 0.0005
_MIB_PER_TOKEN = 0.125
_SHORT_S, _LONG_S = 1.0, 8.0
_QOS = {"Guaranteed": "critical", "LS": "high", "Burstable": "normal", "BE": "low"}
ANY = "any"
"""The agent type of a task that names no GPU model; every instance serves it."""


class Row(NamedTuple):
    """One recorded task. at_s: seconds, of any origin. needs: units per resource, slots not named."""

    at_s: float
    service_s: float
    type: str
    priority: str
    tenant: str
    needs: Mapping[str, int]
    is_failed: bool


class Trace(NamedTuple):
    """Rows in order of arrival. left_out: reason -> rows that never ran. bad: rows that could not be read."""

    form: str
    rows: list[Row]
    left_out: Mapping[str, int]
    bad: int
    first_bad: str


class _LeftOut(Exception):
    """The row is sound, but nothing ran that could be replayed."""


Record = Mapping[str, str]


def _genai(record: Record) -> Row:
    status = record["predict_status"]
    if not status.isascii() or not status.isalpha():
        raise ValueError("no status")
    if status not in ("SUCCEED", "FAILED"):
        raise _LeftOut(f"status {status}")
    images, steps = record.get("num_images_per_prompt"), record.get("num_inference_steps")
    is_quick = bool(images and steps) and float(images or 0) == 1 and float(steps or 0) <= _FEW_STEPS
    return Row(
        at_s=_instant(record["gmt_create"]),
        service_s=_length(record["exec_time_seconds"]),
        type=record["predict_type"],
        priority="high" if is_quick else "normal",
        tenant=record.get("groupId") or "",
        needs={},
        is_failed=status == "FAILED",
    )


def _cluster(record: Record) -> Row:
    if not record["scheduled_time"]:
        raise _LeftOut("never scheduled")
    if not record["deletion_time"]:
        raise _LeftOut("not ended")
    needs = {
        "cpu_milli": int(record["cpu_milli"]),
        "memory_mib": int(record["memory_mib"]),
        "gpu_milli": int(record["num_gpu"]) * int(record["gpu_milli"]),
    }
    return Row(
        at_s=_finite(record["creation_time"]),
        service_s=_length(str(float(record["deletion_time"]) - float(record["scheduled_time"]))),
        # The recording parts alternatives with a bar, which the name of an agent type may not have.
        type=(record.get("gpu_spec") or ANY).replace("|", "+"),
        priority=_QOS[record["qos"]],
        tenant="",
        needs={name: units for name, units in needs.items() if units},
        is_failed=record.get("pod_phase") == "Failed",
    )


def _llm(record: Record) -> Row:
    context, generated = int(record["ContextTokens"]), int(record["GeneratedTokens"])
    service_s = _length(str(_GENERATED_S * generated + _CONTEXT_S * context))
    priority = "high" if service_s < _SHORT_S else "normal" if service_s < _LONG_S else "low"
    needs = {"memory_mib": max(1, round(context * _MIB_PER_TOKEN))}
    return Row(_instant(record["TIMESTAMP"]), service_s, "chat", priority, "", needs, is_failed=False)


class _Form(NamedTuple):
    columns: tuple[str, ...]
    read: Callable[[Record], Row]


_FORMS = {
    "genai_requests": _Form(("gmt_create", "predict_type", "predict_status", "exec_time_seconds"), _genai),
    "fleet_tasks": _Form(
        (
            "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "qos", "creation_time", "deletion_time",
            "scheduled_time",
        ),
        _cluster,
    ),
    "llm_conversation": _Form(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _llm),
}  # fmt: skip
_FLEET_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
_UNREADABLE = (ValueError, KeyError, TypeError, OverflowError, SchemaError)


def read_trace(path: Path, *, limit: int = 0) -> Trace:
    """Read a recorded workload; at most `limit` rows of the file, 0: all.

    Rows that cannot be read are counted, never fatal. Raises ConfigError if the file has none of the known forms, or
    no row that can be replayed.
    """
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    bad, first_bad, form = 0, "", ""
    with _opened(path) as (columns, records):
        form = _form_of(path, columns)
        for number, record in enumerate(records, 2):
            if limit and number - 1 > limit:
                break
            try:
                row = _read(_FORMS[form], record)
                check_name(row.type, field="agent type")
                check_units(row.needs, field="requirements")
                rows.append(row)
            except _LeftOut as reason:
                left_out[str(reason)] += 1
            except _UNREADABLE as error:
                bad += 1
                first_bad = first_bad or f"line {number}: {str(error) or type(error).__name__}"
    if not rows:
        raise ConfigError(f"{path}: no row can be replayed; {bad} are bad ({first_bad}), left out: {dict(left_out)}")
    rows.sort(key=lambda row: row.at_s)
    return Trace(form, _spread_within_seconds(rows), dict(left_out), bad, first_bad)


def read_fleet(path: Path, types: frozenset[str]) -> list[InstanceSpec]:
    """Read the machines of a cluster as instances that serve `types`: those that name their GPU model, and ANY.

    The recording has no slots: each instance gets one for each core, 8 at least. Raises ConfigError for a bad row: a
    fleet that lacks instances would be another fleet.
    """
    with _opened(path) as (columns, records):
        missing = [name for name in _FLEET_COLUMNS if name not in columns]
        if missing:
            raise ConfigError(f"{path}: no column {', '.join(missing)}; a fleet has {','.join(_FLEET_COLUMNS)}")
        found: list[InstanceSpec] = []
        for number, record in enumerate(records, 2):
            try:
                found.append(_instance(record, types))
            except _UNREADABLE as error:
                raise ConfigError(f"{path}, line {number}: {str(error) or type(error).__name__}") from error
    if not found:
        raise ConfigError(f"{path}: has no instances")
    return found


def _instance(record: Record, types: frozenset[str]) -> InstanceSpec:
    model, cpu_milli = record["model"], int(record["cpu_milli"])
    served = sorted(name for name in types if name == ANY or model in name.split("+"))
    capacity = {
        "slots": max(8, cpu_milli // 1000),
        "cpu_milli": cpu_milli,
        "memory_mib": int(record["memory_mib"]),
        "gpu_milli": int(record["gpu"]) * 1000,
    }
    check_units(capacity, field="capacity")
    return InstanceSpec(
        id=record["sn"],
        types=tuple(served),
        capacity={name: units for name, units in capacity.items() if units},
        labels={"model": model} if model else {},
    )


def _read(form: _Form, record: Record) -> Row:
    short = [name for name in form.columns if record.get(name) is None]
    if short:
        raise ValueError(f"no {short[0]}")
    return form.read(record)


class _opened:  # noqa: N801 - a context manager, used like a function
    """The columns and the records of a CSV file; raises ConfigError if there is none."""

    def __init__(self, path: Path) -> None:
        try:
            # Bytes that are no UTF-8 spoil their own row only.
            self._file = path.open(encoding="utf-8", errors="replace", newline="")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        self._path = path

    def __enter__(self) -> tuple[list[str], Iterator[Record]]:
        reader = csv.DictReader(self._file)
        try:
            columns = list(reader.fieldnames or ())
        except (OSError, csv.Error) as error:
            raise ConfigError(f"{self._path}: is not a CSV file: {error}") from error
        return columns, _records(reader)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _records(reader: "csv.DictReader[str]") -> Iterator[Record]:
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield {}  # a bad row, which the form's reader will miss its columns in


def _form_of(path: Path, columns: list[str]) -> str:
    for form, (wanted, _) in _FORMS.items():
        if set(wanted) <= set(columns):
            return form
    known = "\n".join(f"  {form}: {', '.join(wanted)}" for form, (wanted, _) in _FORMS.items())
    found = ", ".join(columns[:12]) or "none"
    raise ConfigError(f"{path}: its columns are those of no known recording. It has {found}; known are\n{known}")


def _spread_within_seconds(rows: list[Row]) -> list[Row]:
    """Spread rows of one whole second over it: the recording's clock is that coarse, the arrivals were not."""
    counts = Counter(row.at_s for row in rows)
    seen: Counter[float] = Counter()
    spread: list[Row] = []
    for row in rows:
        count = counts[row.at_s]
        if count > 1 and row.at_s == int(row.at_s):
            seen[row.at_s] += 1
            row = row._replace(at_s=row.at_s + (seen[row.at_s] - 1) / count)  # noqa: PLW2901 - the same row, mended
        spread.append(row)
    return spread


def _instant(text: str) -> float:
    # Seven digits of a second are one more than Python 3.11 takes.
    return datetime.fromisoformat(text[:26]).replace(tzinfo=UTC).timestamp()


def _length(text: str) -> float:
    seconds = _finite(text)
    if seconds < 0:
        raise ValueError(f"a task of {seconds} s")
    return seconds


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no time")
    return number
