"""What `taskyard doctor` looks at. Each check returns its findings; none of them changes anything."""

import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from taskyard.dispatcher.cell.connection import library
from taskyard.dispatcher.cli.overview import Reading
from taskyard.dispatcher.cli.terminal import duration
from taskyard.dispatcher.core.snapshot import InstanceView
from taskyard.dispatcher.kafka import topics as kafka
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.errors import DependencyError
from taskyard.schemas.topics import topics

_OLDEST = {"redis": (7, 0), "valkey": (8, 0)}
_CLOCK_MS = 1_000
_AUDITED = 1_000
_NAMED = 6


class Finding(NamedTuple):
    """One line of the doctor. advice: what to do; empty if all is well."""

    status: Literal["ok", "warn", "fail"]
    what: str
    advice: str = ""


async def kafka_findings(settings: Settings) -> list[Finding]:
    """Is Kafka there, and has it the topics as they should be?"""
    names = topics(settings.prefix)
    try:
        faults = await kafka.check_topics(settings.kafka, names, msgspec.structs.replace(settings.topics, create=False))
    except DependencyError as error:
        return [Finding("fail", f"Kafka at {settings.kafka}: {error}", "start it (`taskyard up`), or set --kafka")]
    found = [Finding("ok", f"Kafka at {settings.kafka} answers")]
    missing = [fault.topic for fault in faults if fault.is_fatal]
    if missing:
        advice = "a dispatcher creates them when it starts, unless topics.create is off; or --prefix is wrong"
        found.append(Finding("fail", f"{len(missing)} topics are missing: {_some(missing)}", advice))
    advice = "harmless if you meant it: then set topics.partitions"
    found += [Finding("warn", f"topic {f.topic} {f.what}", advice) for f in faults if not f.is_fatal]
    if not faults:
        found.append(Finding("ok", f"{len(names.names)} topics with {settings.topics.partitions} partitions each"))
    return found


async def server_findings(at: Reading) -> list[Finding]:
    """Is the server that has the cell new enough, and set up so that it loses nothing? Raises DependencyError."""
    text = (await at.connection.command("INFO")).decode(errors="replace")
    info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return [_version(info), _eviction(info), _persistence(info), await _library(at), await _clock(at)]


def _version(info: Mapping[str, str]) -> Finding:
    name = "valkey" if "valkey_version" in info else "redis"
    text = info.get(f"{name}_version", "0.0")
    shown = f"{name.capitalize()} {text}"
    if tuple(int(part) for part in text.split(".")[:2]) < _OLDEST[name]:
        return Finding("fail", f"{shown} is too old", "use Redis 7.0 or Valkey 8.0, or newer")
    return Finding("ok", f"{shown} answers")


def _eviction(info: Mapping[str, str]) -> Finding:
    policy, limit = info.get("maxmemory_policy", "?"), info.get("maxmemory", "0")
    if policy == "noeviction":
        used, most = (
            info.get("used_memory_human", "?"),
            info.get("maxmemory_human", "?") if limit != "0" else "no limit",
        )
        if 0 < int(limit) <= int(info.get("used_memory", "0")):
            advice = "raise maxmemory; until then nothing is placed, and Kafka keeps the tasks"
            return Finding("fail", f"the memory is full: {used} used of {most}", advice)
        return Finding("ok", f"maxmemory-policy noeviction, {used} used of {most}")
    advice = "CONFIG SET maxmemory-policy noeviction, and in the server's configuration: tasks would be dropped"
    return Finding("warn" if limit == "0" else "fail", f"maxmemory-policy is {policy}", advice)


def _persistence(info: Mapping[str, str]) -> Finding:
    if info.get("aof_enabled") != "1":
        advice = "CONFIG SET appendonly yes, and in the server's configuration: a restart would lose the cell"
        return Finding("fail", "the append-only file is off", advice)
    state = info.get("aof_last_write_status", "ok")
    if state != "ok":
        return Finding("fail", f"the append-only file cannot be written: {state}", "look at the server's log and disk")
    return Finding("ok", "the append-only file is on")


async def _library(at: Reading) -> Finding:
    ours, there = library(), await at.connection.loaded()
    if there is None:
        return Finding("warn", f"the function library {ours.name} is not loaded", "a dispatcher loads it at its start")
    shown = f"the function library {ours.name} is loaded, build {there[0]}"
    if there[0] != ours.build:
        advice = f"this version has build {ours.build}: expected while versions are mixed; the newest build stays"
        return Finding("warn", shown, advice)
    return Finding("ok", shown)


async def _clock(at: Reading) -> Finding:
    before_s = time.time()
    seconds, micros = await at.connection.command("TIME")
    ours_ms = (before_s + time.time()) / 2 * 1000
    ahead_ms = int(seconds) * 1000 + int(micros) / 1000 - ours_ms
    shown = f"the server's clock is {duration(abs(ahead_ms))} {'ahead of' if ahead_ms > 0 else 'behind'} this machine's"
    if abs(ahead_ms) > _CLOCK_MS:
        return Finding("warn", shown, "deadlines are compared with the server's clock: run NTP on both")
    return Finding("ok", shown)


async def cell_findings(settings: Settings, at: Reading) -> list[Finding]:
    """Is the cell alive, and is its state in order?"""
    if not await at.generation():
        advice = "start a dispatcher; if one runs, --cell or --redis is not the same"
        return [Finding("warn", f"no dispatcher has opened the cell {settings.cell} yet", advice)]
    instances = await at.view.instances()
    now_ms = (await at.view.level()).now_ms
    return [
        await _dispatchers(at),
        await _history(at),
        _leases(instances, now_ms),
        *_cordoned(instances),
        await _types(at),
        await _ledger(at, instances),
    ]


async def _dispatchers(at: Reading) -> Finding:
    if await at.connection.command("EXISTS", f"{at.connection.root}:lock:tick"):
        return Finding("ok", "a dispatcher runs")
    advice = "start one: until then nothing is placed and no dead instance is noticed"
    return Finding("warn", "no dispatcher runs", advice)


async def _history(at: Reading) -> Finding:
    if await at.is_begun():
        return Finding("ok", "the cell has its history")
    return Finding("fail", "the cell is new, or has lost its history", "`taskyard recover` says what happens next")


def _leases(instances: list[InstanceView], now_ms: int) -> Finding:
    if not instances:
        return Finding("warn", "no instance is registered", "start a worker: `taskyard worker module:handlers`")
    late = [instance.id for instance in instances if instance.lease_until_ms <= now_ms]
    if late:
        advice = "a dispatcher takes their tasks back; if these stay, no dispatcher runs"
        return Finding("warn", f"{len(late)} of {len(instances)} leases have run out: {_some(late)}", advice)
    return Finding("ok", f"{len(instances)} instances are registered, their leases are current")


def _cordoned(instances: list[InstanceView]) -> list[Finding]:
    closed = [f"{instance.id} ({instance.reason})" for instance in instances if instance.state == "cordoned"]
    if not closed:
        return []
    return [Finding("warn", f"{len(closed)} instances take no tasks: {_some(closed)}", "the reasons say what to do")]


async def _types(at: Reading) -> Finding:
    unserved = [shape for shape in await at.view.shapes() if not shape.instances]
    if not unserved:
        return Finding("ok", "every parked task is of a type that some instance serves")
    types = sorted({shape.shape.split("|")[1] for shape in unserved})
    count = sum(shape.parked for shape in unserved)
    advice = "start a worker that serves it, or correct the producer"
    return Finding("warn", f"{count} parked tasks are of a type that no instance serves: {_some(types)}", advice)


async def _ledger(at: Reading, instances: list[InstanceView]) -> Finding:
    """The auditor's question, for a bounded number of instances."""
    wrong: list[str] = []
    for instance in instances[:_AUDITED]:
        drift = await at.view.audit(instance.id)
        if drift.misplaced or any(drift.used.values()):
            wrong.append(instance.id)
    if wrong:
        advice = "this is a bug of Taskyard: please report it with `taskyard queue INSTANCE --json`"
        return Finding("fail", f"capacity and queue disagree on {_some(wrong)}", advice)
    return Finding("ok", f"capacity and queues agree on {min(len(instances), _AUDITED)} instances")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def as_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """As `--json` prints them."""
    return [finding._asdict() for finding in findings]
