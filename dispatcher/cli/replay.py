"""`taskyard replay`: a recorded workload through the real system."""

import time
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from cyclopts import Parameter

from taskyard.dispatcher.cli.flags import NONE, Common, configured
from taskyard.dispatcher.cli.loop import run
from taskyard.dispatcher.cli.rehearsal.figures import spread
from taskyard.dispatcher.cli.rehearsal.interrupts import Interrupts
from taskyard.dispatcher.cli.rehearsal.pace import Pace, ideal, made_to_measure, on_fleet, plan, runnable
from taskyard.dispatcher.cli.rehearsal.progress import Progress
from taskyard.dispatcher.cli.rehearsal.rehearsal import Cast, Rehearsal
from taskyard.dispatcher.cli.rehearsal.report import Report, show, use_of, waits_of
from taskyard.dispatcher.cli.rehearsal.services import Stand, stand
from taskyard.dispatcher.cli.rehearsal.trace import Row, Trace, read_fleet, read_trace
from taskyard.dispatcher.cli.terminal import err, fail, out
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.errors import ConfigError, DependencyError
from taskyard.workers.instance import InstanceSpec

_SECONDS, _FLEET_SECONDS = 60.0, 120.0
_SETTLE_S = 300.0
_MANY_INSTANCES = 200
_MANY_LEASE_MS, _MANY_VIEW_MS = 30_000, 250
# What an instance has read is known from its beats only, and those come every third of a lease.
_RECALL_LEASES = 1.5


class Score(NamedTuple):
    """What is to be played. source: the trace's file, for a person."""

    source: str
    trace: Trace
    fleet: list[InstanceSpec]
    pace: Pace


def replay(
    trace: Annotated[Path, Parameter(help="a recorded workload, CSV: genai_requests, fleet_tasks or llm_conversation")],
    /,
    *,
    fleet: Annotated[
        Path | None, Parameter(help="the instances to play on, CSV (fleet_instances); default: a fleet made to measure")
    ] = None,
    utilisation: Annotated[
        float, Parameter(show_default=True, help="load offered by capacity, on average; chooses the fleet or the pace")
    ] = 0.85,
    speed: Annotated[
        float | None, Parameter(help="by how much arrivals are compressed (default: what --seconds asks for)")
    ] = None,
    seconds: Annotated[
        float | None, Parameter(help="how long the arrivals take at most (default: 60, on a given fleet 120)")
    ] = None,
    limit: Annotated[int, Parameter(show_default=True, help="rows of the trace that are read; 0: all")] = 0,
    dispatchers: Annotated[int, Parameter(show_default=True, help="dispatcher processes")] = 2,
    workers: Annotated[int, Parameter(show_default=True, help="worker processes that share the instances")] = 2,
    json: Annotated[Path | None, Parameter(help="write all numbers there")] = None,
    common: Common = NONE,
) -> int:
    """Play a recorded workload through the real system, faster than it was, and report how it went.

    Starts Kafka and Valkey of its own unless --kafka or --redis name running ones. Ctrl-C ends the arrivals; what was
    published is waited for, unless Ctrl-C comes twice. Exit code 0 only if every published task is accounted for.
    """
    if not 0 < utilisation <= 10 or (speed is not None and speed <= 0) or (seconds is not None and seconds <= 0):
        raise ConfigError("--utilisation must be above 0 and at most 10 (0.85 is 85 %), --speed and --seconds above 0")
    if limit < 0 or dispatchers < 1 or workers < 1:
        raise ConfigError("--limit must not be below 0; --dispatchers and --workers must be 1 or more")
    if fleet is not None and speed is not None:
        raise ConfigError("--speed needs a fleet made to measure; on a given one --utilisation chooses the pace")
    progress = Progress(err())
    score = _score(trace, fleet, utilisation=utilisation, speed=speed, seconds=seconds, limit=limit)
    for line in _announced(score):
        progress.tell(line)
    hosts = [score.fleet[number::workers] for number in range(min(workers, len(score.fleet)))]
    with stand(configured(common), "replay", progress.tell) as place:
        tuned = place._replace(settings=_tuned(place.settings, len(score.fleet)))
        report = run(_perform(tuned, Cast(dispatchers, hosts), score, progress))
    show(report, out())
    if json is not None:
        json.write_bytes(report.as_json())
    return 0 if report.adds_up else 1


def _score(
    source: Path, fleet_file: Path | None, *, utilisation: float, speed: float | None, seconds: float | None, limit: int
) -> Score:
    trace = read_trace(source, limit=limit)
    if fleet_file is None:
        rows = trace.rows
        pace, fleet = made_to_measure(rows, utilisation=utilisation, seconds=seconds or _SECONDS, speed=speed)
        if seconds and pace.seconds > seconds:
            end_s = rows[0].at_s + seconds * pace.arrival_speed
            trace = _without(trace, [row for row in rows if row.at_s <= end_s], f"later than {seconds:g} s")
        return Score(str(source), trace, fleet, pace)
    fleet = read_fleet(fleet_file, frozenset(row.type for row in trace.rows))
    trace = _without(trace, runnable(trace.rows, fleet), "fit no instance")
    if not trace.rows:
        raise ConfigError(f"{source}: no task fits any instance of {fleet_file}")
    pace = on_fleet(trace.rows, fleet, utilisation=utilisation, seconds=seconds or _FLEET_SECONDS)
    return Score(str(source), trace, [spec for spec in fleet if spec.types], pace)


def _without(trace: Trace, kept: list[Row], reason: str) -> Trace:
    gone = len(trace.rows) - len(kept)
    return trace._replace(rows=kept, left_out={**trace.left_out, reason: gone}) if gone else trace


def _announced(score: Score) -> list[str]:
    trace, pace = score.trace, score.pace
    lines = [f"{score.source}: {len(trace.rows):,} tasks ({trace.form})"]
    if trace.bad:
        lines.append(f"{trace.bad:,} bad rows are left out; the first: {trace.first_bad}")
    fullest = max(pace.offered, key=lambda name: pace.offered[name])
    lines.append(
        f"{len(trace.rows) * pace.copies:,} tasks in {pace.seconds:.0f} s on {len(score.fleet):,} instances, "
        f"offered {pace.offered[fullest]:.0%} of the {fullest}"
    )
    return lines


def _tuned(settings: Settings, instances: int) -> Settings:
    """Beats are for each instance and a reading is of all: with a thousand on one machine both must be rarer."""
    replace = msgspec.structs.replace
    if instances >= _MANY_INSTANCES:
        worker = replace(settings.worker, lease_ms=max(settings.worker.lease_ms, _MANY_LEASE_MS))
        tick = replace(settings.tick, view_ms=max(settings.tick.view_ms, _MANY_VIEW_MS))
        settings = replace(settings, worker=worker, tick=tick)
    recall_ms = max(settings.tick.recall_after_ms, int(_RECALL_LEASES * settings.worker.lease_ms))
    return replace(settings, tick=replace(settings.tick, recall_after_ms=recall_ms))


async def _perform(place: Stand, cast: Cast, score: Score, progress: Progress) -> Report:
    interrupts = Interrupts()
    at = Rehearsal(place, cast, interrupts, progress.tell)
    due = plan(score.trace.rows, score.pace, run=f"replay-{time.time_ns() // 1_000_000:x}")
    total = len(score.trace.rows) * score.pace.copies
    with interrupts.taken():
        progress.tell(f"starting {cast.dispatchers} dispatchers and {len(cast.hosts)} workers…")
        async with at.running():
            await at.ready()
            async with progress.shown(at, total):
                begin_s = time.monotonic()
                await at.publish(due)
                published_s = time.monotonic() - begin_s
                await at.settle(within_s=_SETTLE_S)
                total_s = time.monotonic() - begin_s
            progress.tell("auditing…")
            report = await _reported(at, score, published_s=published_s, total_s=total_s)
            progress.tell("stopping…")
            await at.stop()
    return msgspec.structs.replace(report, deaths=at.processes.deaths + at.service_deaths)


async def _reported(at: Rehearsal, score: Score, *, published_s: float, total_s: float) -> Report:
    try:
        drift = [f"{one.instance}: {one.used}, {one.misplaced} misplaced" for one in await at.audit()]
    except DependencyError as error:
        fail(str(error))
        drift = None
    account, trace = at.account, score.trace
    reasons: dict[str, int] = {}
    for reason in account.reasons.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    return Report(
        trace=score.source,
        form=trace.form,
        rows=len(trace.rows),
        bad_rows=trace.bad,
        left_out=dict(trace.left_out),
        pace=score.pace,
        instances=len(score.fleet),
        slots=at.gauge.capacity["slots"],
        published=len(account.sent),
        succeeded=account.succeeded,
        dead=account.dead,
        reasons=reasons,
        faults=account.faults(),
        repeated=account.repeated,
        drift=drift,
        is_interrupted=at.interrupts.stopping.is_set(),
        published_s=published_s,
        total_s=total_s,
        throughput=len(account.ended) / total_s if total_s else 0.0,
        late_ms=spread(at.load.late_ms),
        waits=waits_of(account),
        ideal_wait_ms=ideal(trace.rows, score.pace, score.fleet),
        use=use_of(at.gauge, at.measured, score.pace),
        spots=at.gauge.heat.spots(),
        peak_parked=max((sample.parked for sample in at.gauge.samples), default=0),
        deaths=[],
    )
