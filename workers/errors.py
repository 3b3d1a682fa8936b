"""What a handler raises to say how its task goes on. Any other exception is a failed attempt."""

from taskyard.schemas.errors import TaskyardError


class Retry(TaskyardError):
    """End this attempt and try again, here or elsewhere, while attempts are left.

    reason: kept with the task. delay_s: the wait before the next attempt; None leaves it to the cell's backoff.
    """

    def __init__(self, reason: str, delay_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay_s = delay_s


class GiveUp(TaskyardError):
    """End the task for good: it goes to the dead letter with this reason, however many attempts are left."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
