"""What a dispatcher tells those who run it: health, metrics, topics, lag."""

import asyncio
import json
from pathlib import Path

import pytest

from taskyard.dispatcher.kafka.topics import check_topics, lag
from taskyard.dispatcher.settings import (
    Settings,
    TopicSettings,
)
from taskyard.dispatcher.web import Web
from taskyard.schemas.errors import ConfigError
from taskyard.schemas.topics import topics
from tests.integration.yard import Yard, count, get, task, until

ROOT = Path(__file__).parents[2]


def _words(expression: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "_" else " " for c in expression).split()


async def test_health_and_metrics_are_served(yard: Yard) -> None:
    dispatcher = await yard.dispatcher()
    port = dispatcher.http_port
    await yard.instance("i")
    await yard.publish(task("t"))
    await until(lambda: count(yard, "i", 1), what="the task is placed")

    status, body = await asyncio.to_thread(get, port, "/ready")
    assert (status, json.loads(body)["ready"]) == (200, True)
    assert (await asyncio.to_thread(get, port, "/live"))[0] == 200
    assert (await asyncio.to_thread(get, port, "/nothing"))[0] == 404
    _, metrics = await asyncio.to_thread(get, port, "/metrics")
    assert 'taskyard_tasks_applied_total{outcome="placed",priority="normal"} 1.0' in metrics


async def test_the_dashboard_asks_for_metrics_that_exist(yard: Yard) -> None:
    dispatcher = await yard.dispatcher()
    dashboard = json.loads((ROOT / "compose/grafana/dashboards/taskyard.json").read_text())
    asked = {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}

    _, metrics = await asyncio.to_thread(get, dispatcher.http_port, "/metrics")
    names = {line.split()[2] for line in metrics.splitlines() if line.startswith("# TYPE")}

    words = {word for expr in asked for word in _words(expr) if word.startswith("taskyard_")}
    assert words
    assert {word.removesuffix("_bucket") for word in words} <= names


async def test_a_port_in_use_is_a_clear_error(settings: Settings, yard: Yard) -> None:
    dispatcher = await yard.dispatcher()

    with pytest.raises(ConfigError, match=r"http: cannot listen on .* choose another"):
        Web("127.0.0.1", dispatcher.http_port, dispatcher.health, dispatcher.metrics)


async def test_topics_are_created_once_and_differences_are_told(settings: Settings) -> None:
    names = topics(settings.prefix)

    first = await check_topics(settings.kafka, names, TopicSettings(partitions=2))
    second = await check_topics(settings.kafka, names, TopicSettings(partitions=3))
    missing = await check_topics(settings.kafka, topics("nobody-made-me."), TopicSettings(create=False))

    assert first == []
    assert {(fault.topic, fault.is_fatal) for fault in second} == {(name, False) for name in names.names}
    assert all(fault.is_fatal and fault.what == "is missing" for fault in missing)
    assert len(missing) == len(names.names)


async def test_what_is_published_and_not_applied_is_lag(yard: Yard, settings: Settings) -> None:
    names = list(yard.topics.tasks.values())
    await check_topics(settings.kafka, yard.topics, settings.topics)

    await yard.publish(task("t1", priority="low"), task("t2", priority="low"))

    behind = await lag(settings.kafka, [*names, "nobody-made-me"], yard.cell.applied)
    assert behind == {**dict.fromkeys(names, 0), yard.topics.tasks["low"]: 2, "nobody-made-me": 0}
