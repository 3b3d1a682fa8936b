"""All scenarios, in the order in which they are run."""

from tests.fault import changes, networks, pairs, processes, states
from tests.fault.fleet import Fleet, Host, Layout
from tests.fault.publisher import Kind, Plan
from tests.fault.scenario import Scenario
from tests.fault.worker import Order

_BLOCKED_MS = 5_000  # longer than a lease
_RECALLED_MS = 8_000  # longer than until a recall: tick.recall_after_ms, a beat and ten ticks
_LONG_MS = 15_000


def _nothing(_: Fleet) -> None:
    """The tasks are the fault, or there is none."""


def _exits(system: Fleet) -> None:
    system.mortal.add(system.workers[-1].name)


# Two processes for the steady flow, one for tasks that may take it down.
_RISKY = (Host(), Host(), Host(instances=2, slots=5, types=("risky",)))
_HARMLESS = Kind(type="risky", every=50)


def _risky(*kinds: Kind) -> Layout:
    return Layout(hosts=_RISKY, plan=Plan(kinds=(*kinds, _HARMLESS)))


SCENARIOS = (
    Scenario("calm", _nothing, after_s=6.0),
    Scenario("kill-dispatcher", processes.kill_dispatcher),
    Scenario("kill-all-dispatchers", processes.kill_all_dispatchers),
    Scenario("kill-worker", processes.kill_worker),
    Scenario("kill-valkey", processes.kill_valkey),
    Scenario("kill-kafka", processes.kill_kafka),
    Scenario("restart-kafka", processes.restart_kafka),
    Scenario("pause-dispatcher", processes.pause_dispatcher),
    Scenario("pause-worker", processes.pause_worker),
    Scenario("pause-valkey", processes.pause_valkey),
    Scenario("pause-kafka", processes.pause_kafka),
    Scenario("aof-cut", states.aof_cut),
    Scenario("lagging-replica", states.lagging_replica, Layout(proxied=frozenset({"valkey"}))),
    Scenario("disk-full", states.disk_full),
    Scenario("memory-full", states.memory_full),
    Scenario("valkey-network", networks.valkey_network, Layout(proxied=frozenset({"valkey"}))),
    Scenario("kafka-network", networks.kafka_network, Layout(proxied=frozenset({"kafka"}))),
    Scenario("worker-cut-off", networks.worker_cut_off, Layout(hosts=(Host(), Host(), Host(has_proxy=True)))),
    # Some tasks were read before the fault and are still running when what came behind them is recalled.
    Scenario(
        "worker-deaf",
        networks.worker_deaf,
        Layout(
            hosts=(Host(slots=20), Host(slots=20), Host(slots=20, has_proxy=True)),
            plan=Plan(kinds=(Kind(order=Order(_RECALLED_MS), every=250),)),
        ),
    ),
    Scenario("two-at-once", pairs.two_at_once, Layout(proxied=frozenset({"valkey"}))),
    Scenario("topic-recreated", changes.topic_recreated),
    Scenario("partitions-added", changes.partitions_added),
    Scenario("rolling-upgrade", changes.rolling_upgrade),
    Scenario(
        "handler-exits",
        _exits,
        _risky(Kind(type="risky", order=Order(how="exit"), every=8_000, max_attempts=2, fate="dies")),
        before_s=0.0,
        after_s=20.0,
    ),
    Scenario(
        "handler-blocks",
        _nothing,
        _risky(Kind(type="risky", order=Order(_BLOCKED_MS, "block"), first=1, max_attempts=2, fate="either")),
        after_s=14.0,
    ),
    Scenario(
        "handler-endless",
        _nothing,
        Layout(
            plan=Plan(kinds=(Kind(order=Order(how="endless"), every=200, timeout_ms=500, max_attempts=2, fate="dies"),))
        ),
    ),
    # All is lost while long tasks run; last, since it takes the longest.
    Scenario(
        "valkey-wiped",
        states.wiped,
        Layout(hosts=(Host(slots=120),) * 3, plan=Plan(kinds=(Kind(order=Order(_LONG_MS), first=1_000),))),
        before_s=8.0,
        after_s=25.0,
        is_last=True,
    ),
)
