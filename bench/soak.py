"""`python -m bench.soak`: half the load that a worker can take, for half an hour. Does memory stay flat?

One dispatcher and one worker on Kafka and Valkey of their own. Every five seconds: resident memory of each process, and
what Valkey has allocated. Judged are dispatcher, worker and what Valkey has allocated (flatness.py says how); Kafka's
heap grows to its bound by design, and Valkey's resident memory is the allocator's. Ends with code 1 if something grows,
or if not every task was finished.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench import life
from bench.backlog import AGENT_TYPE, PAYLOAD
from bench.flatness import Flatness, flatness
from bench.rig import Child, Rig, rss_bytes, taskyard, wait_for
from bench.soak_handlers import HOLD_MS
from taskyard.compose import embedded
from taskyard.compose.embedded import Services
from taskyard.producers.producer import Producer
from taskyard.schemas.codec import JSON
from taskyard.schemas.task import Task

_EVERY_S = 5.0
_TURN_S = 0.02
_SLOTS = 100
_RATE = _SLOTS * 1000 / HOLD_MS / 2
"""Tasks a second: half of what the slots can take."""

# Memory of finished ids grows to its bound by design: a small one is reached within the first minute. It is halved each
# 13 s, which no small multiple of the samples' 5 s is: in a block of samples each of its phases is seen.
_REMEMBERED = round(2 * 13 * _RATE)
_JUDGED = ("dispatcher", "worker", "valkey")
_MIB = 1 << 20


class Look(NamedTuple):
    """One sample. bytes: of each process; `valkey` is what it has allocated, `valkey_rss` what it has in RAM."""

    at_s: float
    done: int
    bytes: dict[str, int]


def main() -> int:
    """Soak, judge, write. Returns 1 if memory grows."""
    options = _options()
    with embedded.start(on_progress=_say) as services:
        looks, published = _soak(services, options.minutes * 60)
    found = {name: flatness([(look.at_s, look.bytes[name]) for look in looks]) for name in _JUDGED}
    if options.json is not None:
        options.json.write_text(json.dumps(_as_json(options.minutes, published, looks, found), indent=1) + "\n")
    for name, judged in found.items():
        _say(f"{name}: {_told(judged)}")
    return 0 if all(judged.is_flat for judged in found.values()) else 1


def _soak(services: Services, seconds: float) -> tuple[list[Look], int]:
    """Run it all. Raises TimeoutError if not every task is finished two minutes after the last was published."""
    rig = Rig(services)
    # As a user has it: the append-only file is rewritten when it has doubled.
    rig.redis.config_set("auto-aof-rewrite-percentage", 100)
    cell = rig.new_name()
    asyncio.run(life.open_cell(rig.redis_url, cell))
    placing = taskyard(rig, cell, "dispatcher", "--http-port", "0", "--set", f"intake.remember_tasks={_REMEMBERED}")
    working = taskyard(rig, cell, "worker", "bench.soak_handlers:handlers", "--slots", str(_SLOTS))
    with rig.child(*working) as worker, rig.child(*placing) as dispatcher:
        wait_for(lambda: rig.redis.exists(f"ty:{{{cell}}}:inst"), "the worker to register")
        children = {"dispatcher": dispatcher, "worker": worker}
        pids = {
            **{name: child.pid for name, child in children.items()},
            "valkey_rss": services.redis_pid,
            "kafka": services.kafka_pid,
        }
        looks: list[Look] = []
        published = asyncio.run(_load(rig, cell, seconds, children, pids, looks))
        wait_for(lambda: life.published(rig, cell) >= published, f"all of {published} tasks to be finished")
    return looks, published


async def _load(
    rig: Rig, cell: str, seconds: float, children: Mapping[str, Child], pids: Mapping[str, int], looks: list[Look]
) -> int:
    """Publish and sample for so long; returns how many were published."""
    began_s = time.monotonic()
    async with Producer(rig.kafka) as producer, asyncio.TaskGroup() as group:
        publishing = group.create_task(_publish(producer, seconds), name="publish")
        while not publishing.done():
            for name, child in children.items():
                child.check(name)
            held = {name: rss_bytes(pid) for name, pid in pids.items()}
            at_s = time.monotonic() - began_s
            looks.append(Look(at_s, life.published(rig, cell), {**held, "valkey": rig.used_bytes()}))
            if len(looks) % round(60 / _EVERY_S) == 0:
                _say(f"{at_s / 60:.0f} min: {looks[-1].done:,} finished; {_sizes(looks[-1])}")
            await asyncio.wait([publishing], timeout=_EVERY_S)
    return publishing.result()


async def _publish(producer: Producer, seconds: float) -> int:
    """Publish at a steady pace, several together each turn; late turns catch up."""
    payload, began_s, count = msgspec.Raw(JSON.encode_payload(PAYLOAD)), time.monotonic(), 0
    while (now_s := time.monotonic() - began_s) < seconds:
        due = int(now_s * _RATE) - count
        count += await producer.publish_many([Task(type=AGENT_TYPE, payload=payload) for _ in range(due)])
        await asyncio.sleep(_TURN_S)
    return count


def _as_json(minutes: float, published: int, looks: list[Look], found: Mapping[str, Flatness]) -> dict[str, Any]:
    return {
        "minutes": minutes,
        "tasks_per_s": _RATE,
        "published": published,
        "judged": {name: {**judged._asdict(), "is_flat": judged.is_flat} for name, judged in found.items()},
        "samples": [look._asdict() for look in looks],
    }


def _told(judged: Flatness) -> str:
    share = 100 * judged.growth_bytes / judged.level_bytes
    return (
        f"{'flat' if judged.is_flat else 'GROWS'}: {judged.level_bytes / _MIB:.1f} MiB, in ten minutes "
        f"{judged.growth_bytes / _MIB:+.2f} MiB ({share:+.1f} %), give or take {judged.uncertain_bytes / _MIB:.2f}; "
        f"allowed {judged.allowed_bytes / _MIB:.2f}"
    )


def _sizes(look: Look) -> str:
    return ", ".join(f"{name} {size / _MIB:.1f}" for name, size in look.bytes.items()) + " MiB"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="how long (default 30; 2 at least)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and the judgement to a file")
    options = parser.parse_args()
    if options.minutes < 2:
        parser.error("--minutes: 2 at least, or there are too few samples to judge")
    return options


if __name__ == "__main__":
    sys.exit(main())
