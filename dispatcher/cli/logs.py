"""Logs, to standard error: structlog's and the standard library's through one formatter."""

import logging
import os
import sys
import time
from typing import Any

import msgspec
import structlog

from taskyard.dispatcher.settings import LogSettings

# Clients that tell of every reconnect and every rebalance at INFO, which we tell ourselves.
_CHATTY = ("aiokafka", "kafka")
_SELDOM_S = 30.0


class _Seldom(logging.Filter):
    """Lets each message of a chatty client through once in a while.

    While Kafka is away each loop of each client tells of each try, hundreds of lines a second; ours tell it once.
    """

    def __init__(self) -> None:
        super().__init__()
        # Logger and message before its values are put in -> monotonic time from which it is let through again.
        self._again_s: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.split(".", 1)[0] not in _CHATTY:
            return True
        key, now_s = (record.name, str(record.msg)), time.monotonic()
        if now_s < self._again_s.get(key, 0.0):
            return False
        self._again_s[key] = now_s + _SELDOM_S
        return True


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
    if settings.level != "debug":
        handler.addFilter(_Seldom())
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
