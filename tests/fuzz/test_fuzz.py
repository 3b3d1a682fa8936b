"""Whatever comes, each reader keeps its promise. `make fuzz` does the same with a million inputs."""

from tests.fuzz.campaign import peak_bytes
from tests.fuzz.rounds import every_target, feed

_INPUTS = 50_000
# The same inputs each time: CI tells what a change has broken, `make fuzz` looks for what nobody knows.
_SEED = 7
_GROWTH_BYTES = 300 << 20


def test_no_input_breaks_a_reader_or_takes_long_or_much_memory(redis_url: str) -> None:
    before_bytes = peak_bytes()

    with every_target(redis_url) as targets:
        tallies = feed(targets, seed=_SEED, inputs=_INPUTS)

    assert [finding for tally in tallies for finding in tally.findings] == []
    assert sum(tally.inputs for tally in tallies) >= _INPUTS
    assert peak_bytes() - before_bytes < _GROWTH_BYTES
