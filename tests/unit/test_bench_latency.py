"""The arithmetic of the latency rows: when tasks are due, quantiles, stops of a loop."""

import asyncio
import time
from itertools import pairwise
from pathlib import Path

import pytest

from bench import latency_stamps as stamps
from bench.backlog import PAYLOAD_BYTES
from bench.latency_figures import count_of, middle_rate, nearest_rank, schedule, spread
from bench.latency_send import send_all
from bench.stalls import TICK_S, Stretch, longest, stretch
from taskyard.dispatcher.cli.loop import run

MS = 1_000_000


@pytest.mark.parametrize(
    ("count", "permille", "expected"), [(1, 990, 1), (100, 990, 99), (100, 500, 50), (101, 990, 100), (1000, 999, 999)]
)
def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed(count: int, permille: int, expected: int) -> None:
    assert nearest_rank(range(1, count + 1), permille) == expected


def test_a_spread_is_in_milliseconds_and_does_not_need_order() -> None:
    found = spread(value * MS for value in reversed(range(1, 1_001)))

    assert found[:5] == (1_000, 500, 990, 999, 1_000)


def test_too_few_samples_have_no_999_permille_and_none_have_no_spread() -> None:
    assert spread([MS] * 999).p999_ms is None
    with pytest.raises(ValueError, match="no latency"):
        spread([])


def test_each_latency_is_in_the_one_bucket_of_the_histogram_whose_bounds_hold_it() -> None:
    values_ms = [0.01, 0.1, 0.11, 0.2, 0.21, 3.0, 3.1, 50.0]

    found = spread(int(value * MS) for value in values_ms).histogram

    bounds = [0.0, *[bound for bound, _ in found]]
    for (low, high), (_, count) in zip(pairwise(bounds), found, strict=True):
        assert count == sum(low < value <= high + 1e-9 for value in values_ms)
    assert sum(count for _, count in found) == len(values_ms)


def test_streams_keep_a_steady_pace_each_and_do_not_send_at_the_same_moment() -> None:
    plan = schedule({"critical": 200, "low": 50}, 1.0)

    critical, low = ([at for at, name in plan if name == wanted] for wanted in ("critical", "low"))
    assert (len(critical), len(low)) == (count_of(200, 1.0), count_of(50, 1.0)) == (200, 50)
    assert {later - at for at, later in pairwise(critical)} == {5 * MS}
    assert {later - at for at, later in pairwise(low)} == {20 * MS}
    assert critical[0] == 0
    assert low[0] == 10 * MS
    assert plan == sorted(plan)


def test_in_rounds_tasks_are_due_together_and_none_of_them_earlier_than_alone() -> None:
    singly, in_rounds = (schedule({"low": 3_000}, 1.0, every_ms) for every_ms in (0, 10))

    assert {at % (10 * MS) for at, _ in in_rounds} == {0}
    assert all(0 <= late - at < 10 * MS for (at, _), (late, _) in zip(singly, in_rounds, strict=True))


def test_a_sender_that_is_late_sends_all_with_the_times_that_were_planned() -> None:
    past_ns = time.monotonic_ns() - 80 * MS
    plan = [(past_ns + number * MS, "critical") for number in range(70)]
    sent: list[tuple[int, str]] = []

    async def send(stream: str, due_ns: int) -> None:
        sent.append((due_ns, stream))

    late_ns = asyncio.run(send_all(send, plan))

    assert sent == plan
    assert min(late_ns) >= 10 * MS
    assert late_ns[0] >= 80 * MS


def test_a_task_is_never_sent_before_it_is_due() -> None:
    soon_ns = time.monotonic_ns() + 5 * MS
    plan = [(soon_ns + number * MS // 4, "critical") for number in range(8)]
    early_ns: list[int] = []

    async def send(_: str, due_ns: int) -> None:
        early_ns.append(due_ns - time.monotonic_ns())

    run(send_all(send, plan))

    assert len(early_ns) == len(plan)
    assert max(early_ns) <= 0


def test_the_rate_of_full_slots_leaves_out_a_slow_start_and_a_slow_end() -> None:
    slow_start = [number * 100 * MS for number in range(10)]
    middle = [slow_start[-1] + number * MS for number in range(1, 81)]
    slow_end = [middle[-1] + number * 100 * MS for number in range(1, 11)]

    assert middle_rate([*slow_end, *middle, *slow_start]) == pytest.approx(1_000)


def test_too_few_starts_give_no_rate() -> None:
    with pytest.raises(ValueError, match="1 starts are too few"):
        middle_rate([5])


def test_a_payload_has_its_size_and_comes_back_as_a_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before_ns = time.monotonic_ns()
    probe, task = (stamps.payload_of(due_ns, "stamped", 10, PAYLOAD_BYTES) for due_ns in (0, before_ns))

    stamps.stamp(probe[1:-1].decode())
    is_probed, probes = stamps.is_probed(tmp_path, "stamped"), stamps.count(tmp_path, "stamped")
    hold_ms = stamps.stamp(task[1:-1].decode())

    assert (len(probe), len(task)) == (PAYLOAD_BYTES, PAYLOAD_BYTES)
    assert (is_probed, probes, hold_ms) == (True, 0, 10)
    (found,) = stamps.read(tmp_path, "stamped")
    assert found.due_ns == before_ns <= found.started_ns <= time.monotonic_ns()


def test_the_longest_stop_is_that_of_the_stretches_that_touch_the_time() -> None:
    stretches = [
        Stretch(0, 100, 90 * MS, 80 * MS),
        Stretch(100, 200, 5 * MS, 1 * MS),
        Stretch(200, 300, 3 * MS, 2 * MS),
        Stretch(300, 400, 70 * MS, 60 * MS),
    ]

    assert longest(stretches, 100, 300) == {"stall_ms": 5, "stall_cpu_ms": 2}
    assert longest(stretches, 150, 301) == {"stall_ms": 70, "stall_cpu_ms": 60}
    with pytest.raises(ValueError, match="wrote nothing"):
        longest(stretches, 400, 500)


def test_a_ticker_sees_a_loop_that_stops_and_the_processor_time_of_it() -> None:
    async def stop() -> None:
        end_ns = time.thread_time_ns() + 30 * MS
        while time.thread_time_ns() < end_ns:
            pass

    async def both() -> Stretch:
        found, _ = await asyncio.gather(stretch(), stop())
        return found

    found = run(both())

    assert found.ended_ns - found.began_ns >= 100 * MS
    assert found.stop_ns >= 30 * MS - TICK_S * 1e9
    assert found.cpu_ns >= 29 * MS
