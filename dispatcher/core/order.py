"""The order key: who goes first when not all can."""

from collections.abc import Mapping

from taskyard.schemas.task import Task


def order_key_ms(task: Task, *, arrived_ms: float, slack_ms: Mapping[str, int]) -> float:
    """Return `arrived_ms + slack_ms[priority]`, or the deadline if that is earlier; smaller goes first.

    arrived_ms: Unix time at which Kafka took the record. The key never changes, so ageing costs nothing: a task is
    passed only by tasks whose key is earlier, and every wait is bounded (design, section 5).
    """
    key_ms = arrived_ms + slack_ms[task.priority]
    return min(key_ms, task.deadline_ms) if task.deadline_ms else key_ms
