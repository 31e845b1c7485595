"""Joining the farm with a code: nobody may try out many of them."""

import time
from collections import OrderedDict
from collections.abc import Callable
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

    def __init__(self, administration: Administration, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._administration = administration
        self._clock = clock
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    async def enroll(self, client: str, code: str, name: str) -> tuple[int, str]:
        """The machine's number and secret. `NotAuthenticated` for a code that is not valid, `LimitReached` for many."""
        if len(self._recent(client)) >= MAX_FAILURES:
            raise LimitReached("Too many wrong join codes from this address. Wait a minute.")
        try:
            machine_id, secret = await self._administration.enroll(code, name)
        except NotAuthenticated:
            self._failures.setdefault(client, []).append(self._clock())
            self._failures.move_to_end(client)
            while len(self._failures) > MAX_REMEMBERED:
                self._failures.popitem(last=False)
            log.warning("wrong join code", client=client)
            raise
        log.info("machine has joined", machine=machine_id, name=name, client=client)
        return machine_id, secret

    def _recent(self, client: str) -> list[float]:
        since = self._clock() - WINDOW_S
        recent = [moment for moment in self._failures.get(client, []) if moment > since]
        if recent:
            self._failures[client] = recent
        else:
            self._failures.pop(client, None)
        return recent
