"""Joining the farm with a code: nobody may try out many of them."""

import structlog

from renderonline.farm.errors import NotAuthenticated
from renderonline.renderapi.administration import Administration
from renderonline.renderapi.guesses import Guesses

log = structlog.get_logger(__name__)


class Enrolments:
    """Lets machines in. After ten wrong codes within a minute an address has to wait."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration
        self._guesses = Guesses(10, "Too many wrong join codes from this address. Wait a minute.")

    async def enroll(self, client: str, code: str, name: str) -> tuple[int, str]:
        """The machine's number and secret. `NotAuthenticated` for a code that is not valid, `LimitReached` for many."""
        self._guesses.check(client)
        try:
            machine_id, secret = await self._administration.enroll(code, name)
        except NotAuthenticated:
            self._guesses.wrong(client)
            log.warning("wrong join code", client=client)
            raise
        log.info("machine has joined", machine=machine_id, name=name, client=client)
        return machine_id, secret
