"""`taskyard demo`: the main job, live, on real services."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.markup import escape

from taskyard.dispatcher.cli.flags import NONE, Common, configured
from taskyard.dispatcher.cli.loop import run
from taskyard.dispatcher.cli.rehearsal.bursts import bursts, fleet, moment
from taskyard.dispatcher.cli.rehearsal.interrupts import Interrupts
from taskyard.dispatcher.cli.rehearsal.rehearsal import Cast, Rehearsal
from taskyard.dispatcher.cli.rehearsal.screen import Phase, Screen
from taskyard.dispatcher.cli.rehearsal.services import Stand, stand
from taskyard.dispatcher.cli.rehearsal.summary import Summary, show
from taskyard.dispatcher.cli.terminal import err, out
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.errors import ConfigError, TaskyardError

_SETTLE_S = 60.0
_LAG_EVERY_S = 1.0
_LEASE_MS = 3_000
_SESSION_MS = 2_000
_DRAIN_MS = 5_000


def demo(
    *,
    seconds: Annotated[float, Parameter(show_default=True, help="how long tasks are published; 0: until Ctrl-C")] = 30,
    dispatchers: Annotated[int, Parameter(show_default=True, help="dispatcher processes")] = 2,
    workers: Annotated[int, Parameter(show_default=True, help="worker processes, four instances each")] = 3,
    rate: Annotated[
        float | None, Parameter(help="tasks a second on average (default: about 85 % of what the fleet can do)")
    ] = None,
    seed: Annotated[int, Parameter(show_default=True, help="of the load; the same seed gives the same tasks")] = 1,
    common: Common = NONE,
) -> int:
    """Show the main job live: several dispatchers, a fleet of agents, bursts on all four priorities.

    Starts Kafka and Valkey of its own unless --kafka or --redis name running ones. Ctrl-C ends it early; everything
    that was published is still waited for, unless Ctrl-C comes twice. Kill any of its processes: it starts them again.
    Exit code 0 only if every published task is accounted for.
    """
    if seconds < 0 or dispatchers < 1 or workers < 1 or (rate is not None and rate <= 0):
        raise ConfigError("--seconds must be 0 or more, --dispatchers and --workers 1 or more, --rate above 0")
    progress = err()
    began_s = time.monotonic()
    with stand(configured(common), "demo", lambda line: progress.print(f"[dim]{escape(line)}[/]")) as place:
        tuned = place._replace(settings=_tuned(place.settings, has_own_kafka=bool(place.servers)))
        progress.print(f"[dim]starting {dispatchers} dispatchers and {workers} workers…[/]")
        cast = Cast(dispatchers, fleet(workers), sample_s=0.25)

        def show_ready() -> None:
            progress.print(f"[dim]ready after {time.monotonic() - began_s:.1f} s[/]")

        summary = run(_perform(tuned, cast, show_ready, seconds=seconds, rate=rate or 0.0, seed=seed))
    show(summary)
    return 0 if summary.adds_up else 1


def _tuned(settings: Settings, *, has_own_kafka: bool) -> Settings:
    """A killed process should be missed for seconds, not for the usual ten; and a demo ends quickly."""
    replace = msgspec.structs.replace
    worker = replace(settings.worker, lease_ms=_LEASE_MS, drain_ms=_DRAIN_MS)
    # A Kafka that is not ours may refuse a session this short.
    intake = replace(settings.intake, session_timeout_ms=_SESSION_MS) if has_own_kafka else settings.intake
    return replace(settings, worker=worker, intake=intake)


async def _perform(
    place: Stand, cast: Cast, show_ready: Callable[[], None], *, seconds: float, rate: float, seed: int
) -> Summary:
    interrupts = Interrupts()
    started: list[float] = []
    screen = Screen(out(), lambda: _burst(started))
    at = Rehearsal(place, cast, interrupts, screen.tell)
    plan = bursts(cast.fleet, seconds=seconds, rate=rate, seed=seed, run=f"demo-{time.time_ns() // 1_000_000:x}")
    with interrupts.taken():
        async with at.running():
            await at.ready()
            if not interrupts.stopping.is_set():
                show_ready()
            async with _drawn(screen, at):
                begin_s = time.monotonic()
                started.append(begin_s)
                screen.phase = Phase("publishing", begin_s + seconds if seconds else 0.0)
                await at.publish(plan)
                started.clear()
                screen.phase = Phase("waiting for the last tasks", time.monotonic() + _SETTLE_S)
                await at.settle(within_s=_SETTLE_S)
                screen.phase = Phase("stopping")
                summary = await Summary.of(at, published_s=time.monotonic() - begin_s)
                await at.stop()
    return summary._replace(deaths=tuple(at.processes.deaths + at.service_deaths))


@contextlib.asynccontextmanager
async def _drawn(screen: Screen, at: Rehearsal) -> AsyncGenerator[None]:
    async with asyncio.TaskGroup() as group:
        loops = [
            group.create_task(screen.run(at), name="screen"),
            group.create_task(_watch_lag(screen, at), name="lag"),
        ]
        yield
        for loop in loops:
            loop.cancel()


async def _watch_lag(screen: Screen, at: Rehearsal) -> None:
    while True:
        try:
            screen.lag = await at.lag()
        except TaskyardError:
            screen.lag = None
        await asyncio.sleep(_LAG_EVERY_S)


def _burst(started: list[float]) -> str:
    if not started:
        return ""
    priority = moment(time.monotonic() - started[0]).burst
    return f"burst of {priority} tasks" if priority else ""
