"""What goes wrong inside the Kafka client is an outage like another: it must not end a process."""

from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient, CoordinationType

from taskyard.dispatcher.kafka.waits import timed
from taskyard.schemas.errors import DependencyError


async def test_a_client_that_knows_no_broker_is_an_outage() -> None:
    # As a cluster tells none for a moment, when its only broker has stood still for longer than its session.
    client: Any = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")

    with pytest.raises(DependencyError, match=r"cannot find the coordinator: .*Did we not perform bootstrap"):
        await timed(client.coordinator_lookup(CoordinationType.GROUP, "g"), "find the coordinator")


@pytest.mark.parametrize("error", [KeyError(1), RuntimeError("the handler is closed"), TypeError("NoneType")])
async def test_a_fault_inside_the_client_is_an_outage_that_names_it(error: Exception) -> None:
    async def fails() -> None:
        raise error

    with pytest.raises(DependencyError, match=f"cannot read: {type(error).__name__} in the Kafka client"):
        await timed(fails(), "read")


async def test_bytes_that_cannot_be_decoded_are_the_callers_to_deal_with() -> None:
    async def fails() -> None:
        b"\xff".decode()

    with pytest.raises(UnicodeDecodeError):
        await timed(fails(), "read")


async def test_an_error_without_words_is_told_by_its_name() -> None:
    async def fails() -> None:
        raise ConnectionResetError

    with pytest.raises(DependencyError, match="cannot read: ConnectionResetError"):
        await timed(fails(), "read")
