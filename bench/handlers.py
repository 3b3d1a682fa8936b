"""The handler of figure 3, for `taskyard worker bench.handlers:handlers`: it looks at its payload, as the peers' do."""

from bench.backlog import AGENT_TYPE


async def noop(payload: str) -> int:
    """Do nothing else."""
    return len(payload)


handlers = {AGENT_TYPE: noop}
