"""Standing by: of all RenderAPI on one database one dispatches, the others wait for its lease (R10)."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import orjson
import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from renderonline import __version__
from renderonline.database.lease import LOOKS, Lease, Overtaken
from renderonline.farm.errors import NotAvailable, RenderOnlineError
from renderonline.renderapi.errors import problem

log = structlog.get_logger(__name__)

STANDBY: Final = "standby"
"""The code of an answer that says: ask the RenderAPI that dispatches."""


class Standby:
    """`why_not`: why this RenderAPI answers nobody, "" once it dispatches; `begun` is set then. `failure`: why it ends
    by itself."""

    def __init__(self) -> None:
        self.why_not = "RenderAPI is about to start."
        self.begun = asyncio.Event()
        self.failure: RenderOnlineError | None = None

    def begin(self) -> None:
        """Answer from now on."""
        self.why_not = ""
        self.begun.set()

    def end(self, error: RenderOnlineError) -> None:
        """Answer nobody any more and end the program."""
        if self.failure is None:
            log.critical("this RenderAPI ends", reason=error.message)
            self.why_not, self.failure = error.message, error
            os.kill(os.getpid(), signal.SIGTERM)

    def lost(self) -> None:
        """Another RenderAPI has the lease."""
        self.end(Overtaken("Another RenderAPI has taken over the database while this one stood still."))

    async def wait_for(self, lease: Lease, lease_s: float, start: Callable[[], Awaitable[None]]) -> None:
        """Stand by until the lease is ours, then `start`."""
        try:
            while not await self._taken(lease):
                self.why_not = f"This RenderAPI stands by. {lease.holder} dispatches; ask that one."
                await asyncio.sleep(lease_s / LOOKS)
            log.info("this RenderAPI takes over", after=lease.holder)
            await start()
        except RenderOnlineError as error:
            self.end(error)
        except Exception as error:  # whatever fails must end this program: another one can take over
            log.exception("taking over failed")
            self.end(RenderOnlineError(f"Taking over failed: {error}."))

    async def _taken(self, lease: Lease) -> bool:
        try:
            return await asyncio.to_thread(lease.take)
        except NotAvailable as error:
            log.warning("database does not answer", reason=error.message)
            return False


class OnlyDispatching:
    """Middleware: while another RenderAPI dispatches, `/healthz` says `standby` and everything else is answered 503."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        standby: Standby = scope["app"].state.standby
        if not standby.why_not or scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["path"] == "/healthz" and standby.failure is None:
            told = {"status": STANDBY, "version": __version__}
            await Response(orjson.dumps(told), media_type="application/json")(scope, receive, send)
        else:
            await problem(503, standby.why_not, STANDBY, {"Retry-After": "1"})(scope, receive, send)
