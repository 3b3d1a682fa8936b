"""Logs, to standard error: structlog's and the standard library's through one formatter."""

import logging
import os
import sys
from typing import Any

import msgspec
import structlog

from taskyard.dispatcher.settings import LogSettings

# Clients that tell of every reconnect and every rebalance at INFO, which we tell ourselves.
_CHATTY = ("aiokafka", "kafka")


def configure(settings: LogSettings) -> None:
    """Set up the logs of this process. May be repeated; the last one counts."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    is_console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    clock = structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if is_console else "iso", utc=not is_console)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        clock,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([] if is_console else [structlog.processors.format_exc_info]),
                _console() if is_console else structlog.processors.JSONRenderer(serializer=_json),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.DEBUG if settings.level == "debug" else logging.WARNING)
    logging.captureWarnings(capture=True)


def _console() -> structlog.dev.ConsoleRenderer:
    has_colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    # Not structlog's default for tracebacks, which prints the values of local variables: payloads are never logged.
    return structlog.dev.ConsoleRenderer(colors=has_colours, exception_formatter=structlog.dev.plain_traceback)


def _json(event: Any, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
