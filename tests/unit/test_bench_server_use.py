"""What a run asks of the Redis server, from its counters before and after."""

from typing import Any

from bench.server_use import Use, per_task


def _use(calls: dict[str, tuple[int, int]], bytes_in: int, bytes_out: int, bytes_aof: int) -> Use:
    commands: dict[str, dict[str, Any]] = {
        f"cmdstat_{name}": {"calls": count, "usec": us} for name, (count, us) in calls.items()
    }
    stats = {"total_net_input_bytes": bytes_in, "total_net_output_bytes": bytes_out}
    return Use(commands, stats, {"aof_current_size": bytes_aof})


def test_calls_and_bytes_are_those_of_the_run_alone_for_each_task() -> None:
    before = _use({"xadd": (100, 900), "info": (7, 70)}, 1_000, 2_000, 3_000)
    after = _use({"xadd": (300, 1_300), "info": (8, 80), "fcall": (50, 5_000)}, 41_000, 12_000, 63_000)

    found = per_task(before, after, 2_000)

    assert found == {
        "calls": {"xadd": {"per_task": 0.1, "us": 2}, "fcall": {"per_task": 0.025, "us": 100}},
        "bytes_in": 20,
        "bytes_out": 5,
        "bytes_aof": 30,
    }
