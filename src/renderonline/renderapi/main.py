"""The program RenderAPI: serve until somebody says stop, and tell where."""

import contextlib
import json
import os
from typing import Final

import structlog

from renderonline.renderapi.app import create_app
from renderonline.renderapi.bootstrap import announce_login
from renderonline.renderapi.settings import Settings
from renderonline.serving import logs, web
from renderonline.serving.directories import private_write

log = structlog.get_logger(__name__)

READY_FILE: Final = "renderapi.json"
"""In the data directory while RenderAPI answers: {url, pid}."""


def run(settings: Settings) -> None:
    """Run RenderAPI until SIGTERM or SIGINT. Raises one of `farm.errors` when it can't start."""
    logs.configure(json_lines=settings.log_json, level=settings.log_level)
    web.run(serve(settings))


async def serve(settings: Settings) -> None:
    """`run` inside an event loop."""
    app = create_app(settings)
    ready_file = settings.data_directory / READY_FILE

    def ready(url: str) -> None:
        announce_login(settings.data_directory, url)
        private_write(ready_file, json.dumps({"url": url, "pid": os.getpid()}))
        log.info("RenderAPI answers", url=url)

    if not web.is_loopback(settings.host) and settings.certificate is None:
        log.warning(
            "RenderAPI listens beyond this computer WITHOUT TLS: tokens and scenes travel in the clear. "
            "Give a certificate, or put a proxy with TLS in front.",
            host=settings.host,
        )
    try:
        await web.serve(
            app,
            host=settings.host,
            port=settings.port,
            certificate=settings.certificate,
            on_ready=ready,
            on_stop=lambda: app.state.services.events.close(),
            grace_s=settings.grace_s,
        )
    finally:
        with contextlib.suppress(OSError, ValueError):
            if json.loads(ready_file.read_text(encoding="utf-8")).get("pid") == os.getpid():
                ready_file.unlink()
    log.info("RenderAPI has ended")
