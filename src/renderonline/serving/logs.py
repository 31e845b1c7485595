"""Structured logs: every program writes short sentences with `key=value` to standard error.

Modules use `structlog.get_logger(__name__)`; what the libraries say through `logging` comes out in the same form.
"""

import logging
import sys
from typing import Any, Final

import structlog

from renderonline.farm.errors import InvalidRequest

LEVELS: Final = ("debug", "info", "warning", "error", "critical")


def configure(*, json_lines: bool, level: str) -> None:
    """Send all logs to standard error, as JSON lines or for people; `level` is one of `LEVELS`, any letter case."""
    if level.lower() not in LEVELS:
        raise InvalidRequest(f"Log level {level} is not known; choose one of {', '.join(LEVELS)}.")
    number = getattr(logging, level.upper())
    stdlib, written = structlog.stdlib, structlog.stdlib.ProcessorFormatter
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    stack = structlog.processors.StackInfoRenderer()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        stdlib.add_logger_name,
        stdlib.add_log_level,
        stamp,
        stack,
    ]
    structlog.configure(
        processors=[stdlib.filter_by_level, *shared, written.wrap_for_formatter],
        logger_factory=stdlib.LoggerFactory(),
        wrapper_class=stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    if json_lines:
        rendered: list[Any] = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        rendered = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(written(foreign_pre_chain=shared, processors=[written.remove_processors_meta, *rendered]))
    logging.basicConfig(handlers=[handler], level=number, force=True)
    # The server's own start and stop lines repeat ours; what goes wrong is kept.
    for noisy in ("uvicorn.error", "uvicorn.asgi", "asyncio", "websockets"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))
