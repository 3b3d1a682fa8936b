"""Sending over a connection that has just been closed, under uvloop.

Between the loss of a connection and the moment when its reader hears of it, uvloop answers a write with RuntimeError
where asyncio's own loop has OSError. aiokafka (0.14) expects the latter only: its fetcher, coordinator and metadata
tasks die of anything else, without a word to those who wait for them.
"""

from typing import Any, cast

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

_send = cast("Any", AIOKafkaConnection).send


def _send_or_close(self: Any, request: Any, expect_response: bool = True) -> Any:
    try:
        return _send(self, request, expect_response)
    except RuntimeError as error:
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"connection at {self.host}:{self.port} was closed: {error}") from error


def mend() -> None:
    """Let such a write close the connection and raise KafkaConnectionError, in this process. Idempotent."""
    AIOKafkaConnection.send = _send_or_close
