"""The auditor of a dispatcher, and the command: rounds, counts, logs, exit codes."""

import asyncio
import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from taskyard.dispatcher.audit import AuditMetrics, Auditor
from taskyard.dispatcher.cell.audit import RedisAudit
from taskyard.dispatcher.cell.connection import Connection
from taskyard.dispatcher.cli.app import run
from tests.contract.damage import Keys, lived_in
from tests.contract.rig import Rig

AT_ONCE = 1
"""Ms in which a whole round is due."""


@pytest.fixture
async def rig(connection: Connection) -> Rig:
    """A cell that has everything in it."""
    return await lived_in(connection)


class Audited:
    """An auditor, and what it has counted."""

    def __init__(
        self, rig: Rig, connection: Connection, owner: str, *, round_ms: int = AT_ONCE, is_mending: bool = True
    ) -> None:
        self._registry = CollectorRegistry()
        self.auditor = Auditor(
            rig.cell,
            RedisAudit(connection),
            AuditMetrics(self._registry),
            owner,
            round_ms=round_ms,
            is_mending=is_mending,
        )

    def value(self, name: str, **labels: str) -> float | None:
        """Read a metric."""
        return self._registry.get_sample_value(f"taskyard_audit_{name}", labels)

    async def round(self) -> list[Any]:
        """Step until a round has ended. Returns what was logged."""
        before = self.value("round_timestamp_seconds")
        with capture_logs() as logs:
            while self.value("round_timestamp_seconds") == before:
                await self.auditor.step()
        return logs


async def test_a_round_counts_and_tells_what_it_mended(rig: Rig, connection: Connection) -> None:
    audited = Audited(rig, connection, "one")
    assert await audited.round() == []
    assert (audited.value("drift"), audited.value("findings_total", kind="lease")) == (0, 0)
    await Keys(connection)("ZREM", "lease", "i2")

    [told] = await audited.round()

    assert (told["log_level"], told["kind"], told["subject"], told["mended"]) == ("warning", "lease", "i2", True)
    assert (audited.value("findings_total", kind="lease"), audited.value("mended_total", kind="lease")) == (1, 1)
    assert audited.value("drift") == 1
    assert await audited.round() == []
    assert audited.value("drift") == 0


async def test_what_cannot_be_mended_is_an_error_told_once_with_what_to_do(rig: Rig, connection: Connection) -> None:
    audited = Audited(rig, connection, "one")
    await Keys(connection)("HSET", "carried", "ghost", 5)

    [told] = await audited.round()

    assert (told["log_level"], told["kind"], told["task"], told["mended"]) == ("error", "lost", "ghost", False)
    assert "recovery" in told["next"]
    assert await audited.round() == []
    assert (audited.value("drift"), audited.value("findings_total", kind="lost")) == (1, 2)


async def test_with_mending_off_nothing_is_changed(rig: Rig, connection: Connection) -> None:
    audited = Audited(rig, connection, "one", is_mending=False)
    await Keys(connection)("ZREM", "lease", "i2")

    [told] = await audited.round()

    assert (told["log_level"], told["mended"]) == ("error", False)
    assert await Keys(connection)("ZSCORE", "lease", "i2") is None


async def test_one_dispatcher_audits_at_a_time_until_it_gives_that_back(rig: Rig, connection: Connection) -> None:
    one, other = Audited(rig, connection, "one"), Audited(rig, connection, "other")
    await one.round()

    await other.auditor.step()
    assert other.value("round_timestamp_seconds") == 0
    await one.auditor.stop()

    await other.round()


async def test_a_round_takes_its_time(rig: Rig, connection: Connection) -> None:
    audited = Audited(rig, connection, "one", round_ms=3_600_000)

    for _ in range(20):
        await audited.auditor.step()

    assert audited.value("round_timestamp_seconds") == 0


async def test_the_command_tells_mends_and_says_with_its_exit_code_whether_all_was_well(
    rig: Rig, connection: Connection, redis_url: str, cell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--redis", redis_url, "--cell", cell]

    async def audit(*words: str) -> tuple[int, str]:
        code = await in_thread(["audit", *words, *where])
        return code, capsys.readouterr().out

    assert await audit() == (0, "nothing is wrong: queues, places, capacity and indexes agree\n")
    await Keys(connection)("ZREM", "lease", "i2")

    code, shown = await audit("--json")
    [finding] = json.loads(shown)
    assert (code, finding["kind"], finding["subject"], finding["mended"]) == (1, "lease", "i2", False)
    assert await audit("--instance", "i1") == (0, "nothing is wrong: queues, places, capacity and indexes agree\n")
    code, shown = await audit("--mend")
    assert (code, "mended" in shown, "i2" in shown) == (1, True, True)
    assert (await audit())[0] == 0
    assert await in_thread(["audit", "--instance", "nobody", *where]) == 2


async def in_thread(words: list[str]) -> int:
    """Run the command line, which has a loop of its own."""
    return await asyncio.to_thread(run, words)
