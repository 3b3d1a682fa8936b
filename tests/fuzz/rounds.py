"""All targets, fed in rounds so that progress can be told."""

import contextlib
from collections.abc import Callable, Generator, Sequence

from tests.fuzz.campaign import Tally, Target, hunt
from tests.fuzz.cells import cell_target
from tests.fuzz.loops import loop_targets
from tests.fuzz.wire import wire_targets

_ROUND = 100_000


@contextlib.contextmanager
def every_target(redis_url: str) -> Generator[list[Target]]:
    """All targets, ready to be fed until the block is left."""
    with wire_targets() as wire, loop_targets() as loops, cell_target(redis_url) as cell:
        yield [*wire, *loops, cell]


def feed(
    targets: Sequence[Target], *, seed: int, inputs: int, tell: Callable[[Tally], None] = lambda _: None
) -> list[Tally]:
    """Feed the targets by their shares, at least one input each; tell the tally of each target in each round."""
    shares = sum(target.share for target in targets)
    tallies: list[Tally] = []
    for first in range(0, inputs, _ROUND):
        size = min(_ROUND, inputs - first)
        for target in targets:
            # Each round has inputs of its own, whatever the others are.
            tallies.append(hunt(target, seed=seed + first // _ROUND, inputs=-(-size * target.share // shares)))
            tell(tallies[-1])
    return tallies
