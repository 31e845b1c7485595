"""Who is asking: the headers `email` and `token` (R11, R12).

A look-up costs one query; what it found is remembered for a few seconds by the hash of both, so that a busy client
costs none, and a changed row is noticed within 5 s (R3.4).
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from renderonline.database import Database, accounts
from renderonline.farm.accounts import TOKEN_PREFIX, Permission, User, hash_token, may
from renderonline.farm.errors import NotAllowed, NotAuthenticated

log = structlog.get_logger(__name__)

REMEMBERED_S: Final = 4.0
"""Less than the 5 s within which a changed row is noticed."""
MAX_REMEMBERED: Final = 10_000
MAX_HEADER: Final = 1_000
"""Characters of an e-mail or a token that are looked at."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who is known, and may do what their role allows. `seal` changes with their token."""

    user: User
    seal: str

    @property
    def user_id(self) -> int:
        return self.user.user_id

    def may(self, permission: Permission) -> bool:
        """Whether their role has this permission."""
        return may(self.user.role, permission)

    def require(self, permission: Permission) -> None:
        """Raise `NotAllowed` unless their role has this permission."""
        if not self.may(permission):
            raise NotAllowed(f"Your role {self.user.role} may not do this. Ask an administrator of the farm.")

    @property
    def tasks_of(self) -> int | None:
        """Whose tasks they may see and change: their own id, or None for everybody's."""
        return None if self.may(Permission.ALL_TASKS) else self.user_id


class Authenticator:
    """Looks up who is asking."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._remembered: dict[bytes, tuple[float, Principal | None]] = {}
        self._asking: dict[bytes, asyncio.Future[Principal | None]] = {}

    async def principal(self, headers: Mapping[str, str]) -> Principal:
        """The active user whose `email` and `token` the headers hold, or `NotAuthenticated`."""
        found = await self.find(headers.get("email", ""), headers.get("token", ""))
        if found is None:
            raise NotAuthenticated("The headers email and token don't name an active user of this farm.")
        return found

    async def find(self, email: str, token: str) -> Principal | None:
        """The active user with this e-mail and token, or None."""
        if not email or not token or max(len(email), len(token)) > MAX_HEADER:
            return None
        key = hashlib.sha256(f"{email.casefold()}\0{token}".encode("utf-8", "surrogatepass")).digest()
        return await self._known(key, lambda: self._ask(email, token))

    async def holder(self, user_id: int, seal: str) -> Principal | None:
        """The active user who had this seal, None when they are not or their token is another one now."""
        found = await self._known(b"%d" % user_id, lambda: self._ask_for(user_id))
        return found if found is not None and hmac.compare_digest(found.seal, seal) else None

    async def _known(self, key: bytes, ask: Callable[[], Awaitable[Principal | None]]) -> Principal | None:
        known = self._remembered.get(key)
        if known is not None and self._clock() < known[0]:
            return known[1]
        if key not in self._asking:  # requests that come while the same question is open share its answer
            self._asking[key] = asyncio.ensure_future(self._remember(key, ask))
            self._asking[key].add_done_callback(lambda _done: self._asking.pop(key, None))
        return await asyncio.shield(self._asking[key])

    def forget(self) -> None:
        """Somebody's account was changed through us: ask again at once."""
        self._remembered.clear()

    async def _remember(self, key: bytes, ask: Callable[[], Awaitable[Principal | None]]) -> Principal | None:
        principal = await ask()
        self._remembered.pop(key, None)
        self._remembered[key] = (self._clock() + REMEMBERED_S, principal)
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return principal

    async def _ask_for(self, user_id: int) -> Principal | None:
        return _principal(await self._database.read(partial(accounts.active_account, user_id=user_id)))

    async def _ask(self, email: str, token: str) -> Principal | None:
        account = await self._database.read(partial(accounts.authenticate, email=email, token=token))
        if account is not None and not account.token.startswith(TOKEN_PREFIX):
            user_id = account.user.user_id
            sealed = await self._database.write(partial(accounts.seal_token, user_id=user_id, raw=token))
            if sealed:
                log.info("raw token was replaced by its hash", user=user_id)
        return _principal(account)


def _principal(account: accounts.Account | None) -> Principal | None:
    if account is None:
        return None
    # The seal is the same for a raw token and for the hash that takes its place.
    stored = account.token
    return Principal(account.user, stored if stored.startswith(TOKEN_PREFIX) else hash_token(stored))
