"""The four priorities and the slack that each is given."""

from typing import Final

PRIORITIES: Final = ("critical", "high", "normal", "low")
"""Most urgent first. One topic, one consumer and one apply loop for each."""

SLACK_MS: Final = {"critical": 0, "high": 10_000, "normal": 60_000, "low": 600_000}
"""How long a task of a priority may be passed by later critical ones (design, section 5)."""
