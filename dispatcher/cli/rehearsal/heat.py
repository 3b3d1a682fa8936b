"""Heat: how evenly the instances of a fleet were used, and where one was hot while another was idle."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taskyard.dispatcher.cli.rehearsal.figures import percentile, variation
from taskyard.workers.instance import InstanceSpec

_HOT, _COOL = 0.95, 0.5
_OFTEN = 0.1


class Spots(NamedTuple):
    """Mean utilisation per instance, 0 to 1.

    hot: in more than 10 % of the samples above 95 % of a resource while another instance that serves the same type had
    less than 50 % of it in use.
    """

    instances: int
    min: float
    median: float
    p95: float
    max: float
    variation: float
    hot: tuple[str, ...]


class Heat:
    """Adds up samples. The utilisation of an instance is that of its fullest resource."""

    def __init__(self, fleet: Sequence[InstanceSpec]) -> None:
        self._fleet = {spec.id: spec for spec in fleet}
        self._sums = dict.fromkeys(self._fleet, 0.0)
        self._hot = dict.fromkeys(self._fleet, 0)
        self._count = 0

    def add(self, held: Mapping[str, Mapping[str, int]]) -> None:
        """Add one sample: the units held per instance and resource."""
        self._count += 1
        full: list[tuple[str, str]] = []
        coolest: dict[tuple[str, str], float] = {}
        for name, spec in self._fleet.items():
            mine = held.get(name, {})
            shares = {resource: mine.get(resource, 0) / units for resource, units in spec.capacity.items() if units}
            self._sums[name] += max(shares.values())
            for resource, share in shares.items():
                if share > _HOT:
                    full.append((name, resource))
                for agent_type in spec.types:
                    key = (agent_type, resource)
                    coolest[key] = min(share, coolest.get(key, 1.0))
        hot = {name for name, resource in full if self._has_cool(name, resource, coolest)}
        for name in hot:
            self._hot[name] += 1

    def _has_cool(self, name: str, resource: str, coolest: Mapping[tuple[str, str], float]) -> bool:
        return any(coolest[agent_type, resource] < _COOL for agent_type in self._fleet[name].types)

    def spots(self) -> Spots:
        """Describe what was added."""
        if not self._count:
            return Spots(len(self._fleet), 0.0, 0.0, 0.0, 0.0, 0.0, ())
        means = sorted(total / self._count for total in self._sums.values())
        hot = tuple(name for name, count in self._hot.items() if count > _OFTEN * self._count)
        return Spots(
            len(means), means[0], percentile(means, 0.5), percentile(means, 0.95), means[-1], variation(means), hot
        )
