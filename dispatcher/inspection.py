"""One round of the audit over a cell: what is walked in which order, what is confirmed, what is mended.

The order matters: what is left of an instance that is gone goes before its entries are placed again; an entry is given
its place back before the places are asked whether their tasks are there; and the park's index is mended before what it
lists is added up.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from taskyard.dispatcher.cell.audit_contract import REPORTED, AuditCell, Finding, Page

_FIELDS = ("free", "closed", "recalled", "report", "lease")
# How often a queue is read again that has moved, or has just been mended. The next round comes anyway.
_TRIES = 3
# Names of queues in one call.
_NAMES = 500
# Above so many parked shapes the counters are not added up.
_SHAPES = 1_000
# Up to so many places the library counts the unfinished tasks in one call.
_COUNTED = 2_000

Walk = tuple[str, str, str]
"""Name, subject, cursor."""


class Found(NamedTuple):
    """One finding and whether it was mended."""

    finding: Finding
    is_mended: bool


class Inspection:
    """Made anew for each round; run by one asyncio task, which alone writes what is here."""

    def __init__(self, cell: AuditCell, *, is_mending: bool, instance: str | None = None) -> None:
        """Walk over everything, or only over one instance and its queue."""
        self._cell = cell
        self._is_mending = is_mending
        self._found: dict[Finding, bool] = {}
        self.pages = 0
        self.doing = "keys"
        """The walk of the last page."""
        # Names by the first part of the key; a dict keeps their order and each once.
        self._keys: dict[str, dict[str, None]] = {"q": {}, "park": {}, "heads": {}, "open": {}}
        self._long: dict[str, None] = {}
        self._tries: Counter[str] = Counter()
        self._serving: tuple[Counter[str], dict[str, int]] = Counter(), {}
        self._unfinished = _Unfinished()
        self._todo: deque[Walk] = deque()
        self._stages: deque[Callable[[], Iterable[Walk]]] = deque()
        if instance is None:
            self._stages.extend(self._all())
        else:
            self._stages.append(lambda: [("instance", instance, ""), ("queue", instance, "")])

    def _all(self) -> tuple[Callable[[], Iterable[Walk]], ...]:
        return (
            lambda: [("keys", "", "")],
            lambda: [("instances", "", "")],
            lambda: [*[("fields", name, "") for name in _FIELDS], *self._each("open", "open")],
            lambda: [("queues", names, "") for names in _lines([*self._keys["q"]])],
            lambda: [("queue", name, "") for name in self._long],
            lambda: [("queues", names, "") for names in _lines([*self._long])],
            lambda: [("types", "", ""), *self._each("heads", "heads"), *self._each("shape", "park")],
            lambda: [("hold", "", ""), ("held", "", "")],
            lambda: [*self._each("park", "park"), ("later", "", ""), ("deadlines", "", "")],
            self._count_unfinished,
            lambda: [("serving", "", ""), ("count_unfinished", "", ""), *self._counters()],
            self._doubts,
        )

    @property
    def found(self) -> list[Found]:
        """All findings so far. A place that a misplaced entry belongs to is not lost."""
        misplaced = {finding.task for finding in self._found if finding.kind == "misplaced"}
        return [
            Found(finding, is_mended)
            for finding, is_mended in self._found.items()
            if finding.kind != "lost" or finding.task not in misplaced
        ]

    async def step(self) -> bool:
        """Look at one page and mend what it finds. False once all has been looked at. Raises DependencyError.

        After an error the same page is looked at again.
        """
        while not self._todo:
            if not self._stages:
                return False
            self._todo.extend(self._stages.popleft()())
        walk, subject, cursor = self._todo[0]
        self.doing = walk
        following = await (self._list_keys(cursor) if walk == "keys" else self._look(walk, subject, cursor))
        self._todo.popleft()
        if following:
            self._todo.appendleft((walk, subject, following))
        self.pages += 1
        return True

    def _each(self, walk: str, kind: str) -> list[Walk]:
        return [(walk, name, "") for name in self._keys[kind]]

    def _counters(self) -> list[Walk]:
        shapes = self._keys["park"]
        return [("counters", "\n".join(shapes), "")] if len(shapes) <= _SHAPES else []

    def _count_unfinished(self) -> list[Walk]:
        return [("unfinished", "", ""), ("places", "", ""), ("unfinished", "", ""), ("carried", "", "")]

    def _doubts(self) -> list[Walk]:
        """What was counted while it moved is no finding: it is counted again, in one call or once more like this."""
        counted, told = self._serving
        doubts: list[Walk] = [] if counted == told else [("count_serving", "", ""), ("count_headroom", "", "")]
        if self._unfinished.end_walk():
            doubts += self._count_unfinished()
            self._stages.append(self._confirm)
        return doubts

    def _confirm(self) -> list[Walk]:
        return [("confirmed", "", "")] if self._unfinished.end_walk() else []

    async def _list_keys(self, cursor: str) -> str:
        following, names = await self._cell.keys(cursor)
        for name in names:
            kind, _, rest = name.partition(":")
            if rest and kind in self._keys:
                self._keys[kind][rest] = None
        return following

    async def _look(self, walk: str, subject: str, cursor: str) -> str:
        if walk == "confirmed":
            await self._take(self._unfinished.findings())
            return ""
        page = await self._cell.examine(walk, subject, cursor)
        await self._take(page.findings)
        self._count(walk, page, is_first=not cursor)
        self._long.update(dict.fromkeys(page.long))
        if page.is_moved:
            self._again(subject)
        return page.cursor

    def _count(self, walk: str, page: Page, *, is_first: bool) -> None:
        match walk:
            case "instances":
                self._serving[0].update(page.counts)
            case "serving":
                self._serving[1].update(page.counts)
            case "unfinished":
                self._unfinished.tell(page.counts, is_first=is_first)
            case "places":
                self._unfinished.count(page.counts, is_first=is_first)
            case _:
                pass

    def _again(self, instance: str) -> bool:
        """Read a queue once more. False if it was often enough."""
        self._tries[instance] += 1
        if self._tries[instance] > _TRIES:
            return False
        self._todo.append(("queue", instance, ""))
        return True

    async def _take(self, findings: Sequence[Finding]) -> None:
        found = [finding for finding in dict.fromkeys(findings) if finding not in self._found]
        mended = await self._mend(found) if self._is_mending else set[Walk]()
        for finding in found:
            is_mended = (finding.kind, *_target(finding)) in mended
            # Its queue has moved, or an entry of it was mended: what is left shows when it is read again.
            is_moved = self._is_mending and not is_mended and finding.part == "used" and finding.kind not in REPORTED
            if not is_moved or not self._again(finding.subject):
                self._found[finding] = is_mended

    async def _mend(self, findings: Sequence[Finding]) -> set[tuple[str, ...]]:
        targets = {_target(finding): finding for finding in findings if finding.kind not in REPORTED}
        mended = set[tuple[str, ...]]()
        for finding in targets.values():
            mended |= {(m.kind, *_target(m)) for m in await self._cell.mend(finding)}
        return mended


class _Unfinished:
    """Unfinished tasks by bucket: as they are told before and after a walk over all places, and as that counts them.

    The walk is not of one moment. So a bucket is in doubt if it was told the same before and after and was counted
    otherwise, and wrong if a second walk comes to the very same numbers.
    """

    def __init__(self) -> None:
        self._told: list[dict[str, int]] = []
        self._counted: Counter[str] = Counter()
        self._doubted: list[dict[str, tuple[int, int]]] = []

    def tell(self, counts: Mapping[str, int], *, is_first: bool) -> None:
        """Note what is told, a page of it."""
        if is_first:
            self._told.append({})
        self._told[-1].update(counts)

    def count(self, counts: Mapping[str, int], *, is_first: bool) -> None:
        """Note what a page of the walk has counted."""
        if is_first:
            self._counted = Counter()
        self._counted.update(counts)

    def end_walk(self) -> bool:
        """End one walk. Returns whether to walk once more: few are counted in one call anyway."""
        before, after = self._told[-2:]
        buckets = {*before, *after, *self._counted}
        told = {bucket: before.get(bucket, 0) for bucket in buckets if before.get(bucket, 0) == after.get(bucket, 0)}
        self._doubted.append({b: (self._counted[b], n) for b, n in told.items() if self._counted[b] != n})
        return bool(self._doubted[-1]) and self._counted.total() > _COUNTED

    def findings(self) -> list[Finding]:
        """What was in doubt twice, with the very same numbers."""
        first, second = self._doubted[-2:]
        return [
            Finding("unfinished", "unfinished", b, f"{counted}|{told}", "", f"{told} told, there are {counted}")
            for b, (counted, told) in second.items()
            if first.get(b) == (counted, told)
        ]


def _target(finding: Finding) -> Walk:
    return finding.part, finding.subject, finding.at


def _lines(names: Sequence[str]) -> list[str]:
    return ["\n".join(names[first : first + _NAMES]) for first in range(0, len(names), _NAMES)]
