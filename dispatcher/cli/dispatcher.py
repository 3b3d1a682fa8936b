"""`taskyard dispatcher`: one dispatcher until it is told to stop."""

from typing import Annotated

import structlog

from taskyard.dispatcher import service
from taskyard.dispatcher.cli import logs
from taskyard.dispatcher.cli.flags import NONE, Common, configured, setting
from taskyard.dispatcher.cli.loop import run


def dispatcher(
    *,
    http_host: Annotated[str | None, setting("http.host", "--http-host")] = None,
    http_port: Annotated[str | None, setting("http.port", "--http-port")] = None,
    log_level: Annotated[str | None, setting("log.level", "--log-level")] = None,
    log_format: Annotated[str | None, setting("log.format", "--log-format")] = None,
    common: Common = NONE,
) -> None:
    """Run a dispatcher: it reads the tasks' topics, places tasks on instances and publishes their outcomes.

    Start as many as you like with the same settings; they share the work. SIGTERM ends it in order.
    """
    found = configured(
        common,
        {
            "http.host": ("--http-host", http_host),
            "http.port": ("--http-port", http_port),
            "log.level": ("--log-level", log_level),
            "log.format": ("--log-format", log_format),
        },
    )
    logs.configure(found.settings.log)
    for warning in found.warnings:
        structlog.get_logger(__name__).warning("odd_setting", detail=warning)
    run(service.run(found.settings))
