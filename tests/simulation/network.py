"""The network between processes and servers: every request and every reply may be lost, late, or come twice."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

from taskyard.schemas.errors import DependencyError
from tests.simulation.process import NOWHERE, Process, nobody

Service = Literal["cell", "kafka"]
Fate = Literal["fine", "slow", "lost_request", "lost_reply", "late", "twice", "error"]
TIMEOUT_S = {"cell": 0.8, "kafka": 1.2}
"""How long a client waits for an answer."""

# So long after the first time a request may come once more.
_REPEATED_S = 1.0
_FATES: tuple[Fate, ...] = ("slow", "lost_request", "lost_reply", "late", "twice", "error")


class Trouble(NamedTuple):
    """A time in which a link is bad. process, calls: empty for all. share: of the calls that fare badly.

    fates: what may become of those.
    """

    service: Service
    process: str
    until_s: float
    share: float
    fates: tuple[Fate, ...] = _FATES
    calls: frozenset[str] = frozenset()


class Trap(NamedTuple):
    """Something that happens when a process of this kind makes this call. is_before: its reply still under way."""

    call: str
    kind: str
    spring: Callable[[Process], None]
    is_before: bool


class Network:
    """Carries calls. seen: how many had each fate."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seed: str) -> None:
        self._loop = loop
        self._chance = random.Random(f"{seed}/network")
        self.troubles: list[Trouble] = []
        self.traps: list[Trap] = []
        self.fates: Counter[str] = Counter()
        # By then each call that fared badly has been answered or given up, and what was late of it has come.
        self._stray_until_s = 0.0
        # Told of each call that a server has answered. Set by the owner.
        self.on_call: Callable[[Process, str, object, object], None] = nobody

    def heal(self) -> None:
        """Let all go well from now on."""
        self.troubles.clear()
        self.traps.clear()

    @property
    def is_quiet(self) -> bool:
        """Whether all calls go well, and what is left of those that did not is over."""
        return not self.troubles and self._loop.time() >= self._stray_until_s

    def _fate(self, process: Process, service: Service, call: str) -> Fate:
        if not self.troubles:
            return "fine"
        now_s = self._loop.time()
        self.troubles = [trouble for trouble in self.troubles if trouble.until_s > now_s]
        for trouble in self.troubles:
            is_meant = trouble.process in ("", process.name) and (not trouble.calls or call in trouble.calls)
            if trouble.service == service and is_meant and self._chance.random() < trouble.share:
                return self._chance.choice(trouble.fates)
        return "fine"

    def _note_stray(self, service: Service, fate: Fate, request_s: float) -> None:
        self.fates[f"{service} {fate}"] += 1
        over_s = max(request_s, TIMEOUT_S[service]) + (_REPEATED_S if fate == "twice" else 0)
        self._stray_until_s = max(self._stray_until_s, self._loop.time() + over_s)

    async def ask(
        self, process: Process, service: Service, call: str, effect: Callable[[], Any], told: object = None
    ) -> Any:
        """Have `effect` happen at the server and return what it returns; a future it returns is waited for.

        Raises DependencyError if no answer comes in time, or a bad one. A dead process gets no answer at all.
        """
        if process.is_dead:
            raise asyncio.CancelledError
        fate = self._fate(process, service, call)
        reply: asyncio.Future[Any] = self._loop.create_future()
        request_s, timeout_s = self._chance.uniform(0.0002, 0.002), TIMEOUT_S[service]
        if fate == "slow":
            request_s = self._chance.uniform(0.01, timeout_s * 0.9)
        elif fate == "late":
            request_s = timeout_s * self._chance.uniform(1.0, 2.5)
        if fate != "fine":
            self._note_stray(service, fate, request_s)
        exchange = _Exchange(self, process, call, effect, told, fate, reply)
        if fate == "error":
            self._loop.call_later(request_s, _fail, reply, f"{service} refused {call}", context=NOWHERE)
        elif fate != "lost_request":
            self._loop.call_later(request_s, exchange.arrive, context=NOWHERE)
        if fate in ("lost_request", "lost_reply", "late"):
            # A connection may also be found broken at once.
            gives_up_s = timeout_s * self._chance.choice((0.05, 1.0)) if fate == "lost_reply" else timeout_s
            self._loop.call_later(gives_up_s, _fail, reply, f"{service} did not answer {call}")
        if fate == "twice":
            self._loop.call_later(request_s + self._chance.uniform(0.01, _REPEATED_S), exchange.repeat, context=NOWHERE)
        self._spring(call, process, is_before=True)
        return await reply

    def reply_later(self, exchange: "_Exchange", end: Any, error: BaseException | None) -> None:
        """Carry a reply back."""
        self.on_call(exchange.process, exchange.call, exchange.told, error or end)
        self._spring(exchange.call, exchange.process, is_before=False)
        if exchange.fate in ("lost_reply", "late"):
            return
        reply_s = self._chance.uniform(0.0002, 0.002)
        self._loop.call_later(reply_s, _answer, exchange.reply, end, error, context=NOWHERE)

    def _spring(self, call: str, process: Process, *, is_before: bool) -> None:
        for trap in self.traps:
            if (trap.call, trap.kind, trap.is_before) == (call, process.kind, is_before):
                self.traps.remove(trap)
                trap.spring(process)
                return


class _Exchange:
    """One request on its way."""

    def __init__(
        self, network: Network, process: Process, call: str, effect: Callable[[], Any], told: object, fate: Fate,
        reply: asyncio.Future[Any],
    ) -> None:  # fmt: skip
        self._network = network
        self.process = process
        self.call = call
        self.told = told
        self.fate: Fate = fate
        self.reply = reply
        self._effect = effect

    def arrive(self) -> None:
        """Let the server do it."""
        try:
            end = self._effect()
        except DependencyError as error:
            self._network.reply_later(self, None, error)
            return
        if isinstance(end, asyncio.Future):
            cast("asyncio.Future[Any]", end).add_done_callback(self._waited, context=NOWHERE)
        else:
            self._network.reply_later(self, end, None)

    def _waited(self, end: "asyncio.Future[Any]") -> None:
        if not end.cancelled():
            error = end.exception()
            self._network.reply_later(self, None if error else end.result(), error)

    def repeat(self) -> None:
        """Let the server do it once more; nobody hears of that."""
        try:
            end = self._effect()
        except DependencyError as error:
            end = error
        if isinstance(end, asyncio.Future):
            cast("asyncio.Future[Any]", end).add_done_callback(_hear)
        self._network.on_call(self.process, f"{self.call} once more", self.told, cast("object", end))


def _hear(end: "asyncio.Future[Any]") -> None:
    """Take the end of a wait that nobody waits for."""
    if not end.cancelled():
        end.exception()


def _answer(reply: asyncio.Future[Any], end: Any, error: BaseException | None) -> None:
    if reply.done():
        return
    if error is None:
        reply.set_result(end)
    else:
        reply.set_exception(error)


def _fail(reply: asyncio.Future[Any], why: str) -> None:
    if not reply.done():
        reply.set_exception(DependencyError(why))
