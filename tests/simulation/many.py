"""Running many seeds in several processes, and what is told of each."""

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from typing import NamedTuple

from tests.simulation.run import Result, case, play, simulation
from tests.simulation.shrink import shrink
from tests.simulation.trace import in_words

_LAST = 40
_CHUNK = 10
_SHOWN = 5
_TELL_EVERY_S = 5.0


class Job(NamedTuple):
    """A few seeds. kinds: faults of these kinds only, if there are any."""

    seeds: tuple[int, ...]
    kinds: tuple[str, ...] = ()
    is_shrunk: bool = True


class Told(NamedTuple):
    """What is kept of a run. invariant: the promise that was broken; empty: none was."""

    seed: int
    invariant: str
    report: str
    calls: int
    virtual_s: float
    faults: Counter[str]


def report(result: Result, kinds: tuple[str, ...], *, is_shrunk: bool) -> str:
    """Say what was broken, by what, the last that happened before, and how to see it again."""
    what = case(result.seed, kinds=kinds)
    lines = [f"seed {result.seed}: {result.violation}"]
    if is_shrunk:
        what, result = shrink(what, result)
        lines.append(f"shrunk: {result.violation}")
    lines += [f"  {fault}" for fault in what.faults]
    published = [f"{one.at_s:.2f} {one.priority} {one.task_id or 'poison'}" for one in what.scene.publications]
    lines.append(f"  {len(published)} records: {', '.join(published[:12])}")
    events = [event for event in result.trace.events if event[1:3] != ("world", "crash") or event.at_s < result.end_s]
    lines += [f"  {in_words(event)}" for event in events[-_LAST:]]
    again = f"python -m tests.simulation --seed {result.seed} --trace"
    return "\n".join([*lines, f"again: {again}" + (f" --kinds {','.join(kinds)}" if kinds else "")])


def tell(job: Job) -> list[Told]:
    """Run the seeds of a job, in a process of its own."""
    told: list[Told] = []
    with simulation():
        for seed in job.seeds:
            result = play(case(seed, kinds=job.kinds))
            invariant = result.violation.invariant if result.violation else ""
            is_first = not any(one.invariant for one in told)
            said = report(result, job.kinds, is_shrunk=job.is_shrunk and is_first) if result.violation else ""
            told.append(Told(seed, invariant, said, result.calls, result.end_s, result.befallen + result.fates))
    return told


class Summary:
    """What all runs together have shown."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._told_s = 0.0
        self._calls = 0
        self._virtual_s = 0.0
        self._faults: Counter[str] = Counter()
        self.done = 0
        self.broken: list[Told] = []

    def add(self, told: Told) -> None:
        """Count a run; print a broken promise at once."""
        self.done += 1
        self._calls += told.calls
        self._virtual_s += told.virtual_s
        self._faults += told.faults
        if told.invariant:
            self.broken.append(told)
            print(f"\n{told.report}\n" if len(self.broken) <= _SHOWN else f"seed {told.seed}: {told.invariant}")
        if time.monotonic() - self._told_s > _TELL_EVERY_S:
            self._told_s = time.monotonic()
            print(f"{self.done} seeds, {len(self.broken)} broken", file=sys.stderr, flush=True)

    def show(self) -> None:
        """Print all of it."""
        took_s = time.monotonic() - self._began_s
        hours = self._virtual_s / 3600
        print(f"{self.done} seeds in {took_s:.0f} s, {self._calls} calls of the cell, {hours:.1f} h of virtual time")
        print("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(self._faults.items())))
        counts = Counter(told.invariant for told in self.broken)
        print(f"broken promises: {len(self.broken)} " + ", ".join(f"{name}: {n}" for name, n in counts.items()))
        if self.broken:
            print("seeds: " + " ".join(str(told.seed) for told in sorted(self.broken)))


def many(jobs: Iterable[Job], *, processes: int, until_s: float) -> Summary:
    """Run all jobs. until_s: monotonic; none is begun afterwards."""
    summary = Summary()
    left = iter(jobs)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: set[Future[list[Told]]] = set()
        while True:
            while len(running) < 2 * processes and time.monotonic() < until_s and (job := next(left, None)):
                running.add(pool.submit(tell, job))
            if not running:
                return summary
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for told in (told for future in ended for told in future.result()):
                summary.add(told)


def in_jobs(seeds: Iterable[int], kinds: tuple[str, ...], *, is_shrunk: bool) -> Generator[Job]:
    """Part the seeds into jobs."""
    left = iter(seeds)
    while chunk := tuple(islice(left, _CHUNK)):
        yield Job(chunk, kinds, is_shrunk)
