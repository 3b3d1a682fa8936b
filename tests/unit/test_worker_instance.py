"""The record of an instance: its cursor, its endings, its report."""

import pytest

from taskyard.schemas.errors import InvariantViolated
from taskyard.workers.attempt import Attempt, bounded
from taskyard.workers.instance import Instance, InstanceSpec
from taskyard.workers.lifecycle import INSTANCE, STANDING, WORKER, Lifecycle
from taskyard.workers.link import backoff_s


def registered() -> Instance:
    instance = Instance(InstanceSpec(id="i", types=("a", "b"), capacity={"slots": 1000}))
    instance.new_epoch()
    instance.begin("generation", "0-0")
    return instance


def held(instance: Instance, number: int, agent_type: str = "a") -> Attempt:
    attempt = Attempt(f"t{number}", 1, f"{number}-0", b"entry")
    attempt.type = agent_type
    instance.held[attempt.task_id, 1] = attempt
    return attempt


def test_each_registration_has_another_epoch_of_16_hexadecimal_characters() -> None:
    instance = Instance(InstanceSpec(id="i"))

    epochs = {instance.new_epoch() for _ in range(100)}

    assert len(epochs) == 100
    assert all(len(epoch) == 16 and int(epoch, 16) >= 0 for epoch in epochs)


@pytest.mark.parametrize(
    ("recalled", "read_to"),
    [("100-0", "100-0"), ("99-10", "99-10"), ("99-9", "99-9"), ("9-99", "99-9"), ("0-0", "99-9")],
)
def test_a_recall_drops_the_read_under_way_and_the_next_one_has_gone_past_it(recalled: str, read_to: str) -> None:
    instance = registered()
    instance.cursor = "99-9"
    before = instance.serial

    instance.skip(recalled)
    instance.skip(recalled)
    instance.has_read(before)
    dropped = instance.read_to
    instance.has_read(instance.serial)

    assert (instance.serial > before) == (dropped == "0-0") == (read_to != "99-9")
    assert instance.serial <= before + 1
    assert instance.read_to == read_to
    assert instance.cursor == "99-9"


def test_a_recall_of_before_does_not_hide_what_a_cell_that_went_back_has_queued_once_more() -> None:
    instance = registered()
    instance.cursor = "200-0"
    instance.doubt()
    instance.resume("another", set())
    instance.open()

    instance.skip("100-0")

    assert instance.cursor == "0-0"


def test_endings_go_out_oldest_first_and_bounded_in_number_and_bytes() -> None:
    instance = registered()
    attempts = [held(instance, n) for n in range(250)]
    for attempt in attempts:
        attempt.end("succeeded", b"x")
        instance.ended(attempt)
    big = held(instance, 250)
    big.end("succeeded", b"x" * (3 << 20))
    instance.ended(big)

    batches = [instance.take_batch() for _ in range(4)]

    assert [len(batch) for batch in batches] == [200, 50, 1, 0]
    assert [a for batch in batches for a in batch] == [*attempts, big]


def test_the_first_word_on_how_an_attempt_ended_counts_and_is_told_once() -> None:
    instance = registered()
    attempt = held(instance, 1)
    attempt.end("succeeded", b"first")
    attempt.end("retry", "second")

    instance.ended(attempt)
    instance.ended(attempt)

    assert [a.ending().detail for a in instance.take_batch()] == [b"first"]


def test_an_instance_whose_id_another_has_forgets_what_it_held_and_starts_over() -> None:
    instance = registered()
    running, ended = held(instance, 1), held(instance, 2)
    ended.end("succeeded", b"")
    instance.ended(ended)

    instance.lose("stale")

    assert (instance.life.state, instance.has_lease) == ("starting", False)
    assert not instance.held
    assert not instance.take_batch()
    running.end("retry", "cancelled")
    instance.ended(running)
    assert not instance.take_batch()


def test_an_instance_that_the_cell_does_not_know_keeps_what_it_holds_and_tells_it_before_it_is_open() -> None:
    instance = registered()
    on_its_way, ends, _ = held(instance, 1), held(instance, 2), held(instance, 3)
    on_its_way.end("succeeded", b"")
    instance.ended(on_its_way)
    assert instance.take_batch() == [on_its_way]

    instance.lose("unknown")
    assert (instance.life.state, instance.has_lease, instance.is_open) == ("running", False, False)
    ends.end("retry", "failed")
    instance.ended(ends)
    instance.begin("another", "0-0")
    assert (instance.has_lease, instance.may_finish, instance.is_open) == (True, False, False)
    instance.resume("another", {"3-0"})

    assert (instance.may_finish, instance.is_open) == (True, False)
    assert instance.take_batch() == [on_its_way, ends]


@pytest.mark.parametrize("is_draining", [False, True])
def test_an_instance_without_tasks_that_the_cell_does_not_know_starts_over_or_is_done(*, is_draining: bool) -> None:
    instance = registered()
    if is_draining:
        instance.life.move("draining")

    instance.lose("unknown")

    assert instance.life.state == ("stopped" if is_draining else "starting")


def test_an_instance_that_drains_is_never_open_again_although_it_holds_nothing_any_more() -> None:
    instance = registered()
    last = held(instance, 1)
    instance.life.move("draining")

    instance.lose("unknown")
    instance.settle([last])  # the finish that was under way had counted
    assert instance.must_resume
    instance.begin("another", "0-0")

    assert (instance.has_lease, instance.is_open) == (True, False)


def test_a_report_counts_the_running_tasks_by_type_and_the_share_of_errors() -> None:
    instance = registered()
    for number in range(40):
        attempt = held(instance, number, "b")
        attempt.end("retry", "failed")
        instance.ended(attempt)
    held(instance, 50, "a")

    report = instance.report(10, 20)

    assert report.running == (1, 40)
    assert 800 < report.errors_permille < 900
    assert (report.cpu_permille, report.memory_permille) == (10, 20)


def test_a_long_cause_is_cut_at_the_end_of_a_character() -> None:
    assert bounded("ä" * 300).decode() == "ä" * 200
    assert bounded("x" + "ä" * 300).decode() == "x" + "ä" * 199
    assert bounded("lone \ud800").decode() == "lone ?"


def test_no_lifecycle_goes_backwards_from_stopped_and_every_state_leads_there() -> None:
    for table in (WORKER, INSTANCE):
        assert table["stopped"] == ()
        assert all("stopped" in table[state] or "draining" in table[state] for state in table if state != "stopped")


def test_the_lease_may_be_lost_in_every_standing_and_each_leads_to_open() -> None:
    assert all("absent" in STANDING[standing] for standing in STANDING if standing != "absent")
    assert "open" in STANDING["absent"]
    assert "resumed" in STANDING["resuming"]
    assert "open" in STANDING["resumed"]
    # Endings go out only after the cell has been told.
    assert "open" not in STANDING["resuming"]


def test_a_transition_that_the_table_does_not_have_is_a_bug() -> None:
    life = Lifecycle(INSTANCE)
    life.move("running")
    life.move("draining")

    with pytest.raises(InvariantViolated, match="from draining to running"):
        life.move("running")


def test_waits_between_repeated_calls_are_random_below_a_cap_that_doubles() -> None:
    for failures, cap_s in ((0, 0.1), (1, 0.2), (4, 1.6), (50, 5.0)):
        waits = [backoff_s(failures) for _ in range(300)]

        assert 0.7 * cap_s < max(waits) <= cap_s
        assert min(waits) < 0.3 * cap_s
