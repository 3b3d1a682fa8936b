"""What `results` and `dead-letter` tell of the tasks that have ended.

The relay publishes the letter of a dead task, then its outcome, to two topics: it may have been cut off in between, and
if the cell was lost then too, only the letter says so. The outcome is made from it once more.
"""

import contextlib
from collections.abc import Iterable

import msgspec

from taskyard.schemas.codec import codec_of, content_headers
from taskyard.schemas.errors import SchemaError
from taskyard.schemas.limits import Limits, check_id
from taskyard.schemas.outcome import DeadLetter, Outcome

_ANY_SIZE = Limits(payload_bytes=1 << 30, envelope_bytes=1 << 30)

OutcomeRecord = tuple[str, bytes, list[tuple[str, bytes]]]
"""Task id, encoded outcome, headers."""


class Told:
    """Filled page by page, `dead-letter` first. Keeps the letters of tasks that have had no outcome so far."""

    def __init__(self) -> None:
        self._letters: dict[str, bytes] = {}

    def read(self, values: Iterable[bytes]) -> list[str]:
        """Read records of either topic; return the ids that have an outcome, each once.

        What is neither, or has an id that no task can have, is somebody else's and is passed over.
        """
        found: dict[str, None] = {}
        for value in values:
            ended = _ended(value)
            if isinstance(ended, Outcome):
                found[ended.id] = None
                self._letters.pop(ended.id, None)
            elif ended is not None:
                self._letters[ended.id] = value
        return list(found)

    def left_untold(self) -> list[OutcomeRecord]:
        """Make the outcomes of letters that have none. To be asked when both topics have been read to their ends."""
        return [(task_id, *_outcome_of(value)) for task_id, value in self._letters.items()]


def ended_ids(values: Iterable[bytes]) -> Iterable[str]:
    """Yield the ids of the tasks that these records of `results` or `dead-letter` say have ended."""
    return (ended.id for ended in map(_ended, values) if ended is not None)


def _ended(value: bytes) -> Outcome | DeadLetter | None:
    codec = codec_of(value)
    for decode in (codec.decode_outcome, codec.decode_dead_letter):
        with contextlib.suppress(SchemaError):
            ended = decode(value)
            check_id(ended.id)
            return ended
    return None


def _outcome_of(value: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    codec = codec_of(value)
    letter = codec.decode_dead_letter(value)
    outcome = Outcome(
        id=letter.id, type=letter.type, status="dead", attempt=letter.attempt, finished_ms=letter.at_ms,
        cause=f"{letter.reason}: {letter.detail}", causes=letter.causes,
    )  # fmt: skip
    with contextlib.suppress(SchemaError):
        task = codec.decode_task(letter.record, _ANY_SIZE)
        outcome = msgspec.structs.replace(outcome, priority=task.priority, tenant=task.tenant, session=task.session)
    return codec.encode_outcome(outcome), content_headers(codec)
