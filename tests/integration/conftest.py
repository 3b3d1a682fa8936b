"""The yard that the dispatcher's tests share, and the producer."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from taskyard import Producer
from taskyard.dispatcher.settings import (
    HttpSettings,
    IntakeSettings,
    RetrySettings,
    Settings,
    TopicSettings,
)
from tests.conftest import TestServices
from tests.integration.publishing import create_topics
from tests.integration.yard import Yard, open_yard

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(services: TestServices, cell: str, prefix: str) -> Settings:
    return Settings(
        kafka=services.kafka,
        redis=services.redis,
        cell=cell,
        prefix=prefix,
        http=HttpSettings(port=0),
        intake=IntakeSettings(session_timeout_ms=1_000),
        topics=TopicSettings(partitions=2),
        retry=RetrySettings(base_ms=1, cap_ms=2),
    )


@pytest.fixture
async def yard(settings: Settings) -> AsyncGenerator[Yard]:
    async with open_yard(settings) as opened:
        yield opened


@pytest.fixture
async def cell_prefix(kafka_address: str, prefix: str) -> str:
    """A prefix under which the topics exist."""
    await create_topics(kafka_address, prefix)
    return prefix


@pytest.fixture
async def producer(kafka_address: str, cell_prefix: str) -> AsyncGenerator[Producer]:
    async with Producer(kafka_address, prefix=cell_prefix) as producer:
        yield producer
