"""What is counted at once for many is what counting each would show."""

from taskyard.dispatcher.metrics import Metrics

KINDS = ("outcome", "dead", "refused")


def test_a_page_of_the_outbox_is_counted_by_kind() -> None:
    metrics = Metrics()

    for _ in range(2):
        metrics.published(["outcome", "dead", "outcome"])

    counted = {k: metrics.registry.get_sample_value("taskyard_outcomes_published_total", {"kind": k}) for k in KINDS}
    assert counted == {"outcome": 4, "dead": 2, "refused": None}
