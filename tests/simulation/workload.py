"""What one seed makes of the world: settings, fleet, and the records that services publish."""

import random
from typing import Any, NamedTuple

from taskyard.dispatcher.settings import (
    IntakeSettings,
    OrderSettings,
    ParkSettings,
    RecoverySettings,
    RetrySettings,
    Settings,
    TickSettings,
    TopicSettings,
)
from taskyard.schemas.codec import JSON, MSGPACK, Codec, content_headers
from taskyard.schemas.task import AgentType, Task, TaskId
from taskyard.workers.instance import InstanceSpec
from tests.simulation.process import BEGIN_MS

BUSY_S = 9.0
"""How long faults happen."""
PUBLISHED_S = 11.0
"""How long tasks are published."""
TYPES = ("a", "b", "c")
UNSERVED = "z"
_HOWS = (("ok", 70), ("fail_once", 8), ("fail", 4), ("retry", 6), ("give_up", 3), ("hang", 4), ("exit", 1))
POISON = (("poison", b"1"),)


class Publication(NamedTuple):
    """One record to be published. partition: 0 to 1, of those that the topic has then. task_id: empty for poison."""

    at_s: float
    priority: str
    partition: float
    task_id: str
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Crew(NamedTuple):
    """One worker process and its instances."""

    name: str
    specs: tuple[InstanceSpec, ...]


class Scene(NamedTuple):
    """All that is there before the first fault.

    impossible: tasks that no instance can ever run. has_new_ids: a worker that begins again has other instances.
    is_hasty: the cell looks at less than it would.
    """

    seed: int
    settings: Settings
    dispatchers: tuple[str, ...]
    crews: tuple[Crew, ...]
    publications: tuple[Publication, ...]
    impossible: frozenset[str]
    has_new_ids: bool
    is_hasty: bool


def scene(seed: int) -> Scene:
    """Draw a scene."""
    chance = random.Random(f"{seed}/scene")
    dispatchers = tuple(f"d{i}" for i in range(chance.choice((1, 2, 2, 3))))
    crews = _crews(chance)
    publications, impossible = _publications(chance)
    settings, has_new_ids, is_hasty = _settings(chance), chance.random() < 0.4, chance.random() < 0.4
    return Scene(seed, settings, dispatchers, crews, publications, impossible, has_new_ids, is_hasty)


def _settings(chance: random.Random) -> Settings:
    is_tight = chance.random() < 0.3
    return Settings(
        cell="sim",
        drain_ms=2_000,
        topics=TopicSettings(partitions=chance.choice((1, 2, 3))),
        park=ParkSettings(
            tasks=chance.choice((4, 8)) if is_tight else 10_000,
            outbox=chance.choice((3, 6)) if is_tight else 10_000,
            age_ms=600_000,
            unknown_type_age_ms=5_000,
        ),
        retry=RetrySettings(base_ms=60, cap_ms=600),
        order=OrderSettings(
            slack_high_ms=500, slack_normal_ms=1_000, slack_low_ms=3_000,
            headroom_permille=chance.choice((0, 50, 300)), hold_after_ms=chance.choice((800, 3_000)),
        ),
        intake=IntakeSettings(batch=chance.choice((1, 4, 16)), session_timeout_ms=1_500),
        recovery=RecoverySettings(grace_ms=1_500, watermark_ms=1_000, carry_after_ms=3_000),
        tick=TickSettings(period_ms=150, view_ms=150, recall_after_ms=1_000),
    )  # fmt: skip


def _crews(chance: random.Random) -> tuple[Crew, ...]:
    """At least one instance can run whatever is not impossible."""
    first = InstanceSpec(
        id="i0", types=TYPES, capacity={"slots": 4, "memory_mib": 1024, "gpu": 1}, labels={"zone": "1"}
    )
    crews = [Crew("w0", (first,))]
    for index in range(1, chance.choice((2, 3, 3, 4))):
        specs: list[InstanceSpec] = []
        for number in range(chance.choice((1, 1, 2))):
            types = tuple(sorted(chance.sample(TYPES, chance.choice((1, 2)))))
            capacity = {"slots": chance.choice((1, 2, 3))} | chance.choice(({}, {"memory_mib": 512}))
            labels = chance.choice(({}, {"zone": "1"}, {"zone": "2"}))
            specs.append(InstanceSpec(id=f"i{index}{'ab'[number]}", types=types, capacity=capacity, labels=labels))
        crews.append(Crew(f"w{index}", tuple(specs)))
    return tuple(crews)


def _publications(chance: random.Random) -> tuple[tuple[Publication, ...], frozenset[str]]:
    found: list[Publication] = []
    impossible: set[str] = set()
    for number in range(chance.randrange(30, 70)):
        at_s = chance.uniform(0.2, PUBLISHED_S)
        if chance.random() < 0.04:
            found.append(_poison(chance, at_s))
            continue
        codec = MSGPACK if chance.random() < 0.15 else JSON
        task, is_impossible = _task(chance, f"t{number}", at_s, codec)
        if is_impossible:
            impossible.add(task.id)
        one = Publication(
            at_s, task.priority, chance.random(), task.id, codec.encode_task(task), tuple(content_headers(codec))
        )
        found.append(one)
        if chance.random() < 0.06:  # a producer that retried
            later_s = at_s + chance.choice((0.0, 0.1, 2.0))
            found.append(one._replace(at_s=later_s, partition=chance.choice((one.partition, chance.random()))))
    if chance.random() < 0.3:  # a burst
        found = [one._replace(at_s=1.0 + one.at_s / 20) for one in found]
    return tuple(sorted(found, key=lambda one: one.at_s)), frozenset(impossible)


def _poison(chance: random.Random, at_s: float) -> Publication:
    value: bytes | None = chance.choice((b"\xff\x00", b'{"kind":"task"}', b"[1]", None, b'{"v":9,"kind":"task"}'))
    return Publication(at_s, chance.choice(("critical", "normal")), chance.random(), "", value, POISON)


def _task(chance: random.Random, name: str, at_s: float, codec: Codec) -> tuple[Task, bool]:
    agent_type = chance.choices((*TYPES, UNSERVED), (50, 30, 20, 2))[0]
    requirements: dict[str, int] = chance.choices(
        ({}, {"slots": 2}, {"slots": 4}, {"memory_mib": 256}, {"slots": 1, "gpu": 1}, {"slots": 9}),
        (60, 14, 7, 10, 4, 2),
    )[0]
    constraints: dict[str, str] = {"zone": "1"} if chance.random() < 0.1 else {}
    is_impossible = requirements.get("slots", 1) > 4 or agent_type == UNSERVED
    deadline_ms = 0
    if is_impossible or chance.random() < 0.08:
        deadline_ms = BEGIN_MS + int(1000 * (at_s + chance.choice((0.05, 0.6, 3.0))))
    what = _what(chance)
    task = Task(
        id=TaskId(name),
        type=AgentType(agent_type),
        priority=chance.choices(("critical", "high", "normal", "low"), (20, 20, 40, 20))[0],
        payload=codec.encode_payload(what),
        requirements=requirements,
        constraints=constraints,
        deadline_ms=deadline_ms,
        timeout_ms=500 if what["how"] == "hang" else chance.choice((0, 500, 2_000)),
        max_attempts=chance.choice((1, 2, 3, 4)),
    )
    return task, is_impossible


def _what(chance: random.Random) -> dict[str, Any]:
    how = chance.choices([how for how, _ in _HOWS], [weight for _, weight in _HOWS])[0]
    ms = chance.choice((0, 5, 30, 100, 100, 200, 350, 700, 1_200))
    return {"how": how, "ms": ms}
