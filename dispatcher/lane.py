"""The lane of one priority: poll, order, plan, apply. The main job, as one loop.

While the cell applies one batch the next is read and planned. The fence makes that safe: a batch that does not start
where its partition stands is refused, whoever sent it, and the lane goes back to what was applied.
"""

import asyncio
import random
import secrets
import time

import structlog

from taskyard.dispatcher.arrivals import Arrival
from taskyard.dispatcher.batches import batch_of
from taskyard.dispatcher.cell.contract import Applied, Batch, DispatcherCell, Fenced, Full, OnSent, Recovering
from taskyard.dispatcher.core.fleet import Fleet
from taskyard.dispatcher.core.plan import plan
from taskyard.dispatcher.intake import Chunk, Intake
from taskyard.dispatcher.metrics import Metrics
from taskyard.dispatcher.settings import IntakeSettings
from taskyard.schemas.errors import DependencyError

log = structlog.get_logger()

PARKED_PERMILLE = {"critical": 1000, "high": 950, "normal": 900, "low": 800}
"""The share of the park's bounds that a priority may fill: the lowest one is paused first."""

_POLL_MS = 200
# While the park is full, or the cell has not begun: how often it is asked whether it still is so.
_PAUSE_S = 0.2
# For the last calls of a lane that stops: the cell applies or refuses its batch anyway, and the offsets decide nothing.
_END_S = 1.0
# A topic that was made anew is also seen by its log being shorter; this is for one that has grown meanwhile.
_REPORTS_PER_TOPIC_CHECK = 5


class Lane:
    """Run by one asyncio task. At most one apply call is in flight."""

    def __init__(
        self, priority: str, intake: Intake, fleet: Fleet, cell: DispatcherCell, settings: IntakeSettings,
        metrics: Metrics, stopping: asyncio.Event,
    ) -> None:  # fmt: skip
        self.priority = priority
        self._intake = intake
        self._fleet = fleet
        self._cell = cell
        self._settings = settings
        self._metrics = metrics
        self._stopping = stopping
        self._in_flight: asyncio.Task[None] | None = None
        # What a record weighs, going by the last ones: the next read is bounded by it.
        self._record_bytes = float(settings.payload_bytes)
        self._is_full = False
        # Until the cell has said that it takes batches: reading for one that does not would be in vain.
        self._is_waiting = True
        self._is_failing = False
        self._reports = 0

    @property
    def is_positioned(self) -> bool:
        """Whether it reads where the cell stands, or has nothing to read."""
        return self._intake.is_positioned

    def rewind(self) -> None:
        """Read again from what the cell has applied."""
        self._intake.rewind()

    async def start(self) -> None:
        """Join the consumer group. Raises DependencyError."""
        await self._intake.consumer.start()

    async def step(self) -> bool:
        """Read, plan and send one batch. Raises DependencyError; the next step starts from what was applied.

        Returns False if a call has failed and none has been answered since.
        """
        try:
            if self._is_waiting and await self._has_to_wait():
                await asyncio.sleep(_PAUSE_S)
                return True
            chunk = await self._intake.poll(records=self._at_once(), timeout_ms=_POLL_MS)
            if chunk is not None:
                self._weigh(chunk)
                await self._send(chunk)
            elif self._in_flight is not None:
                await self.settle()
        except DependencyError:
            self._is_failing = True
            await self.settle(quietly=True)
            self._intake.rewind()
            raise
        return not self._is_failing

    async def _has_to_wait(self) -> bool:
        """Ask with an empty batch whether the cell has begun."""
        self._is_waiting = isinstance(await self._cell.apply(Batch((), (), (), ())), Recovering)
        return self._is_waiting

    def _at_once(self) -> int:
        return max(1, min(self._settings.batch, int(self._settings.batch_bytes / self._record_bytes)))

    def _weigh(self, chunk: Chunk) -> None:
        if chunk.arrivals:
            mean_bytes = sum([len(arrival.wire) for arrival in chunk.arrivals]) / len(chunk.arrivals)
            self._record_bytes = max(1.0, mean_bytes, self._record_bytes / 2)

    async def report(self) -> None:
        """Look whether the topic is still the one that was read, tell the lag, store offsets for the tools of others.

        Also while `step` waits for room in the park.
        """
        if self._reports % _REPORTS_PER_TOPIC_CHECK == 0:
            await self._intake.check_topic()
        self._reports += 1
        await self._intake.measure_lag()
        await self._intake.commit()

    async def settle(self, *, quietly: bool = False) -> None:
        """Wait for the call in flight. quietly: an error of it is passed over, since all is read again."""
        task, self._in_flight = self._in_flight, None
        if task is None:
            return
        try:
            await task
        except DependencyError:
            if not quietly:
                raise

    async def stop(self) -> None:
        """End what was begun, store the offsets, leave the group; nothing that is away is waited for."""
        try:
            async with asyncio.timeout(_END_S):
                await self.settle(quietly=True)
                await self._intake.commit()
        except (DependencyError, TimeoutError) as error:
            why = str(error) or f"no answer within {_END_S:.0f} s"
            log.warning("offsets_not_committed", priority=self.priority, error=why)
        finally:
            await self._intake.consumer.stop()

    async def _send(self, chunk: Chunk) -> None:
        arrivals = sorted(chunk.arrivals, key=_by_key)
        seed = secrets.randbits(32)
        now_ms = self._fleet.time_ms(time.monotonic())
        decisions = plan([a.shape for a in arrivals], self._fleet, now_ms=now_ms, tie=random.Random(seed).random)
        batch = batch_of(
            chunk, arrivals, decisions, policy=self._fleet.policy.name, seed=seed,
            view_age_ms=int(now_ms - self._fleet.seen_ms), parked_permille=PARKED_PERMILLE[self.priority],
        )  # fmt: skip
        await self.settle()
        if self._intake.is_current(chunk):
            await self._begin(chunk, batch)

    async def _begin(self, chunk: Chunk, batch: Batch) -> None:
        """Start the call and return once its request is written: planning before that would keep the server waiting."""
        sent = asyncio.Event()
        task = asyncio.create_task(self._apply(chunk, batch, sent.set), name=f"apply {self.priority}")
        task.add_done_callback(lambda _: sent.set())
        self._in_flight = task
        await sent.wait()

    async def _apply(self, chunk: Chunk, batch: Batch, on_sent: OnSent) -> None:
        """Apply until the cell takes the batch, or refuses it: then the intake has gone back."""
        while True:
            with self._metrics.apply_seconds.time():
                result = await self._cell.apply(batch, on_sent=on_sent)
            self._is_failing = False
            match result:
                case Applied():
                    self._applied(chunk, result)
                    return
                case Fenced():
                    log.info("batch_fenced", priority=self.priority, applied=result.applied)
                    self._metrics.fenced.labels(self.priority).inc()
                    self._intake.rewind()
                    return
                case Recovering():
                    log.warning("intake_waits", priority=self.priority, next="a dispatcher recovers the lost cell")
                    self._is_waiting = True
                    self._intake.rewind()
                    return
                case Full():
                    self._full(result)
                    if self._stopping.is_set():
                        return
                    await asyncio.sleep(_PAUSE_S)

    def _applied(self, chunk: Chunk, result: Applied) -> None:
        self._intake.applied(chunk)
        self._metrics.paused.labels(self.priority).set(0)
        if self._is_full:
            log.info("intake_resumed", priority=self.priority)
        self._is_full = False
        self._metrics.applied(self.priority, result.results)

    def _full(self, result: Full) -> None:
        if not self._is_full:
            log.warning("intake_paused", priority=self.priority, parked=result.parked, outbox=result.outbox,
                        parked_bytes=result.parked_bytes, next="Kafka keeps the rest until there is room")  # fmt: skip
        self._is_full = True
        self._metrics.paused.labels(self.priority).set(1)


def _by_key(arrival: Arrival) -> float:
    return arrival.key_ms
