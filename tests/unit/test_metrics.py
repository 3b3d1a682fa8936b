"""What the dispatcher counts in a way of its own is what prometheus_client would show."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, Metric

from taskyard.dispatcher.metrics import Metrics
from taskyard.schemas.priority import PRIORITIES

BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)
KINDS = ("outcome", "dead", "refused")
SECONDS = st.one_of(st.sampled_from(BOUNDS), st.floats(0, 1e10))


def samples_of(found: Metric) -> set[tuple[str, tuple[tuple[str, str], ...], float]]:
    """The samples, but for the time at which each was made."""
    return {
        (s.name, tuple(sorted(s.labels.items())), s.value) for s in found.samples if not s.name.endswith("_created")
    }


@given(st.lists(st.tuples(st.sampled_from(sorted(PRIORITIES)), SECONDS)))
def test_waits_read_as_those_of_the_usual_histogram(waits: list[tuple[str, float]]) -> None:
    metrics, registry = Metrics(), CollectorRegistry()
    usual = Histogram("taskyard_wait_seconds", "the same", ["priority"], buckets=BOUNDS, registry=registry)
    for priority, wait_s in waits:
        metrics.wait.observe(priority, wait_s)
        usual.labels(priority).observe(wait_s)

    (found,) = [family for family in metrics.registry.collect() if family.name == "taskyard_wait_seconds"]

    (expected,) = registry.collect()
    assert (found.type, samples_of(found)) == (expected.type, samples_of(expected))


def test_a_page_of_the_outbox_is_counted_by_kind() -> None:
    metrics = Metrics()

    for _ in range(2):
        metrics.published(["outcome", "dead", "outcome"])

    counted = {k: metrics.registry.get_sample_value("taskyard_outcomes_published_total", {"kind": k}) for k in KINDS}
    assert counted == {"outcome": 4, "dead": 2, "refused": None}
