"""`taskyard doctor`: is everything as Taskyard needs it?"""

import asyncio
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from taskyard.dispatcher.cli.checks import Finding, as_json, cell_findings, kafka_findings, server_findings
from taskyard.dispatcher.cli.configure import shown
from taskyard.dispatcher.cli.flags import NONE, Common, configured
from taskyard.dispatcher.cli.overview import reading
from taskyard.dispatcher.cli.terminal import out, print_json
from taskyard.dispatcher.settings import Settings
from taskyard.schemas.errors import DependencyError

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(*, json: Annotated[bool, Parameter(help="one line of JSON")] = False, common: Common = NONE) -> int:
    """Check Kafka, the topics, Redis or Valkey, and the cell; say what to do about what is not as it should be.

    Changes nothing. Exit code 1 if a check failed; warnings do not count.
    """
    found = configured(common)
    findings = [Finding("warn", warning, "unset it, or correct its name") for warning in found.warnings]
    findings += asyncio.run(_findings(found.settings))
    if json:
        print_json(as_json(findings))
    else:
        _print(findings)
    return 1 if any(finding.status == "fail" for finding in findings) else 0


async def _findings(settings: Settings) -> list[Finding]:
    of_kafka, of_cell = await asyncio.gather(kafka_findings(settings), _redis_findings(settings))
    return of_kafka + of_cell


async def _redis_findings(settings: Settings) -> list[Finding]:
    async with reading(settings) as at:
        try:
            return [*await server_findings(at), *await cell_findings(settings, at)]
        except DependencyError as error:
            where = shown("redis", settings.redis).strip('"')
            return [Finding("fail", f"{where}: {error}", "start it (`taskyard up`), or set --redis")]


def _print(findings: list[Finding]) -> None:
    console = out()
    for status, what, advice in findings:
        console.print(f"[{_STYLES[status]}]{status:<4}[/]  {escape(what)}", soft_wrap=True)
        if advice:
            console.print(f"      → {escape(advice)}", soft_wrap=True)
    counts = {status: sum(finding.status == status for finding in findings) for status in _STYLES}
    console.print(f"\n{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")
