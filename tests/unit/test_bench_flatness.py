"""Whether memory is called flat: noise, garbage and late steps are, leaks are not."""

import random

import pytest

from bench.flatness import flatness

MIB = 1 << 20
HALF_HOUR = [5.0 * number for number in range(360)]


def noise(seed: int) -> list[float]:
    """Garbage on top of a level of 100 MiB, never below it."""
    chance = random.Random(seed)
    return [100 * MIB + chance.expovariate(1 / MIB) for _ in HALF_HOUR]


@pytest.mark.parametrize("seed", range(5))
def test_garbage_that_comes_and_goes_is_flat(seed: int) -> None:
    assert flatness(list(zip(HALF_HOUR, noise(seed), strict=True))).is_flat


@pytest.mark.parametrize("seed", range(5))
def test_a_slow_leak_under_garbage_is_found_and_its_size_told(seed: int) -> None:
    # Eight bytes for each of 1,000 tasks a second.
    leaked = [size + 8_000 * at_s for at_s, size in zip(HALF_HOUR, noise(seed), strict=True)]

    found = flatness(list(zip(HALF_HOUR, leaked, strict=True)))

    assert not found.is_flat
    assert found.growth_bytes == pytest.approx(8_000 * 600, rel=0.2)


def test_growth_of_less_than_two_percent_in_ten_minutes_is_flat_and_of_more_is_not() -> None:
    at_most, beyond = ([(at_s, 100 * MIB * (1 + share * at_s / 600)) for at_s in HALF_HOUR] for share in (0.019, 0.022))

    assert flatness(at_most).is_flat
    assert not flatness(beyond).is_flat


def test_what_grows_in_the_first_half_only_is_warm_up() -> None:
    assert flatness([(at_s, min(at_s, 890.0) * MIB) for at_s in HALF_HOUR]).is_flat


def test_one_late_step_is_no_slope() -> None:
    assert flatness([(at_s, (104 if at_s > 1_700 else 100) * MIB) for at_s in HALF_HOUR]).is_flat


def test_a_saw_tooth_is_flat_wherever_it_ends() -> None:
    for period_s in (13, 70, 85):
        assert flatness([(at_s, MIB * (4 + 2 * (at_s % period_s) / period_s)) for at_s in HALF_HOUR]).is_flat


def test_too_few_samples_are_not_judged() -> None:
    with pytest.raises(ValueError, match="a longer run"):
        flatness([(5.0 * number, 1.0) for number in range(12)])
