"""Joining the farm with a code: nobody may try out many of them."""

import time
from typing import Final

import structlog

from renderonline.farm.errors import LimitReached, NotAuthenticated
from renderonline.renderapi.administration import Administration

log = structlog.get_logger(__name__)

MAX_FAILURES: Final = 10
WINDOW_S: Final = 60.0
MAX_REMEMBERED: Final = 10_000


class Enrolments:
    """Lets machines in. After ten wrong codes within a minute an address has to wait."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration
        self._failures: dict[str, list[float]] = {}

    async def enroll(self, client: str, code: str, name: str) -> tuple[int, str]:
        """The machine's number and secret. `NotAuthenticated` for a code that is not valid, `LimitReached` for many."""
        now = time.monotonic()
        recent = [moment for moment in self._failures.get(client, ()) if moment > now - WINDOW_S]
        if len(recent) >= MAX_FAILURES:
            raise LimitReached("Too many wrong join codes from this address. Wait a minute.")
        try:
            machine_id, secret = await self._administration.enroll(code, name)
        except NotAuthenticated:
            # Asked for anew: others may have failed meanwhile.
            before = [moment for moment in self._failures.pop(client, ()) if moment > now - WINDOW_S]
            self._failures[client] = [*before, now]
            while len(self._failures) > MAX_REMEMBERED:
                del self._failures[next(iter(self._failures))]
            log.warning("wrong join code", client=client)
            raise
        log.info("machine has joined", machine=machine_id, name=name, client=client)
        return machine_id, secret
