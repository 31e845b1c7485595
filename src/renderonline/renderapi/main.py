"""The program RenderAPI: serve until somebody says stop, and tell where."""

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Final

import structlog

from renderonline.renderapi.administration import announce_login
from renderonline.renderapi.app import Standby, create_app
from renderonline.renderapi.settings import Settings
from renderonline.sandbox.box import BoxKind
from renderonline.sandbox.privacy import keep_private, write_private
from renderonline.sandbox.probing import probe
from renderonline.serving import web
from renderonline.serving.admission import raise_descriptors
from renderonline.serving.settings import configure_logs

log = structlog.get_logger(__name__)

READY_FILE: Final = "renderapi.json"
"""In the data directory while RenderAPI answers: {url, pid}."""


def run(settings: Settings, web_page: Path | None = None) -> None:
    """Run RenderAPI until SIGTERM or SIGINT, with the page of this directory at `/`. Raises one of `farm.errors` when
    it can't start."""
    configure_logs(json_lines=settings.log_json, level=settings.log_level)
    raise_descriptors()
    keep_private()
    box = probe(settings.sandbox)
    if box.kind == BoxKind.NONE:
        log.warning("NO BOX around what reads users' scenes and ZIPs", advice=box.advice)
    web.run(serve(settings, web_page))


async def serve(settings: Settings, web_page: Path | None = None) -> None:
    """`run` inside an event loop."""
    app = create_app(settings, web_page)
    standby: Standby = app.state.standby
    ready_file = settings.data_directory / READY_FILE
    announcing: list[asyncio.Task[None]] = []

    async def announce(url: str) -> None:
        if standby.why_not:
            log.info("RenderAPI stands by", url=url)
        await standby.begun.wait()
        announce_login(settings.data_directory, url)
        write_private(ready_file, json.dumps({"url": url, "pid": os.getpid()}))
        log.info("RenderAPI answers", url=url)

    if not web.is_loopback(settings.host) and settings.certificate is None:
        log.warning(
            "RenderAPI listens beyond this computer WITHOUT TLS: tokens and scenes travel in the clear. "
            "Give a certificate, or put a proxy with TLS in front and name its address in TrustedProxies.",
            host=settings.host,
        )
    try:
        await web.serve(
            app,
            host=settings.host,
            port=settings.port,
            certificate=settings.certificate,
            on_ready=lambda url: announcing.append(asyncio.create_task(announce(url))),
            on_stop=lambda: app.state.services.events.close() if standby.begun.is_set() else None,
            grace_s=settings.grace_s,
            is_proxy=settings.proxies.trusts,
        )
        if standby.failure is not None:
            raise standby.failure
    finally:
        for task in announcing:
            task.cancel()
        with contextlib.suppress(OSError, ValueError):
            if json.loads(ready_file.read_text(encoding="utf-8")).get("pid") == os.getpid():
                ready_file.unlink()
    log.info("RenderAPI has ended")
