"""Structured logs: every program writes short sentences with `key=value` to standard error.

Modules use `structlog.get_logger(__name__)`; what the libraries say through `logging` comes out in the same form.
"""

import logging
import sys
from typing import Any, Final

import structlog
from structlog.typing import Processor

from renderonline.farm.errors import InvalidRequest

LEVELS: Final = ("debug", "info", "warning", "error", "critical")


def configure(*, json_lines: bool, level: str) -> None:
    """Send all logs to standard error, as JSON lines or for people; `level` is one of `LEVELS`, any letter case."""
    if level.lower() not in LEVELS:
        raise InvalidRequest(f"Log level {level} is not known; choose one of {', '.join(LEVELS)}.")
    number = getattr(logging, level.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(json_lines=json_lines)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # The server's own start and stop lines repeat ours; what goes wrong is kept.
    for noisy in ("uvicorn.error", "uvicorn.asgi", "asyncio", "websockets", "alembic"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))


def _renderers(*, json_lines: bool) -> list[Any]:
    if json_lines:
        return [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    ]
