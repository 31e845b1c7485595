"""Sends the previews of frames to RenderAPI. They are looks only: what can't be sent soon is left out."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from renderonline.farm.errors import RenderOnlineError
from renderonline.hpcserver.transfers import Errand, Stopped, Transfers

log = structlog.get_logger(__name__)

PATIENCE_S: Final = 2.0
"""So long a frame waits at most for its previews to be sent."""
QUIET_S: Final = 30.0
"""After one that could not be sent none is tried for so long."""
THREADS: Final = 2


class PreviewSender:
    """Sends previews in threads of its own."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="previews")
        self._quiet_until = 0.0

    def close(self) -> None:
        """Send no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def send(self, attempt: int, token: str, name: str, previews: Mapping[str, bytes]) -> None:
        """Send the previews of one file; never raises, and comes back within `PATIENCE_S`."""
        if time.monotonic() < self._quiet_until:
            return
        errand = Errand(attempt, token, PATIENCE_S)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().run_in_executor(self._threads, self._send, errand, name, previews)
        except RenderOnlineError as error:
            log.info("previews are not wanted", attempt=attempt, name=name, reason=str(error))
        except (TimeoutError, Stopped, OSError) as error:
            log.info("previews could not be sent", attempt=attempt, name=name, reason=str(error))
            self._quiet_until = time.monotonic() + QUIET_S

    def _send(self, errand: Errand, name: str, previews: Mapping[str, bytes]) -> None:
        if time.monotonic() >= self._quiet_until:
            for size, jpeg in previews.items():
                self._transfers.send(errand, f"previews/{name}?size={size}", jpeg)
