"""Sharing: whether the members of a consumer group have got their partitions."""

import asyncio
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from bench.rig import WITHIN_S

_LOOK_S = 0.1


async def shared_out(bootstrap: str, group: str, members: int) -> None:
    """Wait until so many members share the group's partitions. Raises TimeoutError after 120 s."""
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        async with asyncio.timeout(WITHIN_S):
            while True:
                if await _is_shared_out(admin, group, members):
                    return
                await asyncio.sleep(_LOOK_S)
    finally:
        await admin.close()


async def _is_shared_out(admin: Any, group: str, members: int) -> bool:
    try:
        replies = await admin.describe_consumer_groups([group])
    except KafkaError as error:
        if error.retriable:  # the first group of a new broker has no coordinator for a moment
            return False
        raise
    found = [(state, len(joined)) for reply in replies for _, _, state, _, _, joined, *_ in reply.groups]
    return ("Stable", members) in found
