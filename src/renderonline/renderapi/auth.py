"""Authentication: the headers `email` and `token` (R12 Tokens), or a session of the web page (R11 Web authority):
`Callers` says who sent a request.

`Authenticator` looks accounts up. Answers are cached for a few seconds by the hash of e-mail and token, so that a busy
client costs no queries and a changed row is noticed within 5 s (R3.4 Changes by hand).

`Sessions` has the sessions of the web page. A cookie names one, and counts only for requests that the page itself
makes. Sessions are stored in a private file, so that a restart logs nobody out. A session ends with a logout, after a
time without a request, after a longer time in any case, and when the account's token changes.

`Throttle` counts and logs wrong tokens and join codes, and delays their answers. A secret is always compared first: the
right one never waits and is never locked out, whatever others send.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import structlog
from starlette.requests import HTTPConnection
from starlette.responses import Response

from renderonline.database import administration_rows
from renderonline.database.door import Database
from renderonline.farm.accounts import TOKEN_PREFIX, Permission, User, hash_token, may
from renderonline.farm.errors import InvalidRequest, NotAllowed, NotAuthenticated, NotAvailable
from renderonline.sandbox.privacy import private_read, write_private
from renderonline.serving.admission import client_of, let_in, source_of

log = structlog.get_logger(__name__)

REMEMBERED_S: Final = 4.0
"""Less than 5 s: within that time a changed row must be noticed."""
MAX_REMEMBERED: Final = 10_000
"""Accounts that were looked up; also addresses and accounts of wrong secrets."""
MAX_HEADER: Final = 1_000
"""Longer e-mails and tokens, in characters, are wrong."""
CSRF_HEADER: Final = "x-renderonline"
"""A header that no page of another origin can send along with the cookie; its value does not matter."""
TICKET: Final = "ticket"
_PLACE: Final = re.compile(r"/renderapi/v2/[^?#]*")
_ODD: Final = re.compile(r"[\x00-\x1f\x7f\\]|/\.\.?(/|$)")
"""Characters and parts of a path that a browser would change."""
MAX_SESSIONS: Final = 10_000
MAX_OF_ONE: Final = 50
"""Sessions of one account; another one ends the oldest."""
WINDOW_S: Final = 60.0
"""The count of an address or account starts again after this time without a wrong secret."""
FREE: Final = 5
"""Wrong secrets from an address, or for an account, that are answered without delay: people mistype."""
FIRST_S: Final = 0.1
LONGEST_S: Final = 2.0
MOST_WAITING: Final = 32
"""Answers that are delayed at the same time; more are sent at once, because each occupies a connection."""
MOST_WAITING_OF_ONE: Final = 4
LONGEST_ACCOUNT: Final = 255
"""Characters of an account's name that are remembered; a header may have 60,000."""
LINES: Final = 30
"""Log lines per window."""


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated user, who may do what their role allows. `fingerprint` changes with their token."""

    user: User
    fingerprint: str

    @property
    def user_id(self) -> int:
        return self.user.user_id

    def may(self, permission: Permission) -> bool:
        return may(self.user.role, permission)

    def require(self, permission: Permission) -> None:
        """Raise `NotAllowed` unless their role has this permission."""
        if not self.may(permission):
            raise NotAllowed(f"Your role {self.user.role} may not do this. Ask an administrator of the farm.")

    @property
    def tasks_of(self) -> int | None:
        """The owner of the tasks that they may see and change: their own id, or None for everybody's."""
        return None if self.may(Permission.ALL_TASKS) else self.user_id


class Throttle:
    """Delays answers to wrong secrets. All ways to log in share one object and its counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._waiting: Counter[str] = Counter()
        self._lines = (0, 0.0)

    async def wrong(self, what: str, client: str, account: str = "") -> None:
        """Count a wrong secret from the address `client`, for `account` if one was named. Returns after the delay of
        its answer, at most `LONGEST_S`."""
        address = source_of(client)
        here = self._count(f"address {address}")
        named = account[:LONGEST_ACCOUNT].casefold()
        counted = max(here, self._count(f"account {named}") if named else 0)
        self._log(what, here, client, account)
        wait_s = self.delay_s(counted)
        full = self._waiting.total() >= MOST_WAITING or self._waiting[address] >= MOST_WAITING_OF_ONE
        if not wait_s or full:
            return
        self._waiting[address] += 1
        try:
            await asyncio.sleep(wait_s)
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]

    @staticmethod
    def delay_s(count: int) -> float:
        """How long the answer to the `count`th wrong secret waits."""
        return min(FIRST_S * 2 ** min(count - FREE - 1, 10), LONGEST_S) if count > FREE else 0.0

    def _count(self, who: str) -> int:
        now = self._clock()
        count, until = self._counts.pop(who, (0, 0.0))
        count = count + 1 if now < until else 1
        self._counts[who] = (count, now + WINDOW_S)
        if len(self._counts) > MAX_REMEMBERED:
            self._counts.popitem(last=False)
        return count

    def _log(self, what: str, count: int, client: str, account: str) -> None:
        """Log the 1st, 10th, 100th … wrong secret of an address, at most `LINES` per window."""
        if str(count).strip("0") != "1":
            return
        lines, until = self._lines
        if self._clock() >= until:
            lines, until = 0, self._clock() + WINDOW_S
        self._lines = (lines + 1, until)
        if lines < LINES:
            named = account[:100].encode("unicode_escape").decode("ascii")
            log.warning("wrong secret", what=what, client=client, account=named, from_there=count)


class Authenticator:
    """Looks up accounts."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._remembered: dict[bytes, tuple[float, Principal | None]] = {}
        self._pending: dict[bytes, asyncio.Future[Principal | None]] = {}

    async def find(self, email: str, token: str) -> Principal | None:
        """The active user with this e-mail and token, or None."""
        if not email or not token or max(len(email), len(token)) > MAX_HEADER:
            return None
        key = hashlib.sha256(f"{email.casefold()}\0{token}".encode("utf-8", "surrogatepass")).digest()
        return await self._known(key, partial(self._ask, email, token))

    async def holder(self, user_id: int, fingerprint: str) -> Principal | None:
        """The active user with this id, or None if there is none or their token was changed since."""
        ask = partial(self._database.read, partial(administration_rows.active_account, user_id=user_id))
        found = await self._known(b"%d" % user_id, ask)
        return found if found is not None and hmac.compare_digest(found.fingerprint, fingerprint) else None

    async def _known(
        self, key: bytes, ask: Callable[[], Awaitable[administration_rows.Account | None]]
    ) -> Principal | None:
        known = self._remembered.get(key)
        if known is not None and self._clock() < known[0]:
            return known[1]
        if key not in self._pending:  # simultaneous requests for the same account share one query
            self._pending[key] = asyncio.ensure_future(self._remember(key, ask))
            self._pending[key].add_done_callback(lambda _done: self._pending.pop(key, None))
        return await asyncio.shield(self._pending[key])

    def forget(self) -> None:
        """Look every account up again, because one was changed through this RenderAPI."""
        self._remembered.clear()

    async def _remember(
        self, key: bytes, ask: Callable[[], Awaitable[administration_rows.Account | None]]
    ) -> Principal | None:
        principal = None
        if (account := await ask()) is not None:
            # The fingerprint is the same for a raw token and for the hash that replaces it.
            stored = account.token
            principal = Principal(account.user, stored if stored.startswith(TOKEN_PREFIX) else hash_token(stored))
        self._remembered.pop(key, None)
        self._remembered[key] = (self._clock() + REMEMBERED_S, principal)
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return principal

    async def _ask(self, email: str, token: str) -> administration_rows.Account | None:
        account = await self._database.read(partial(administration_rows.authenticate, email=email, token=token))
        if account is not None and not account.token.startswith(TOKEN_PREFIX):
            user_id = account.user.user_id
            sealed = await self._database.write(partial(administration_rows.seal_token, user_id=user_id, raw=token))
            if sealed:
                log.info("raw token was replaced by its hash", user=user_id)
        return account


@dataclass(frozen=True, slots=True)
class LoginSession:
    """A login; `begun` and `seen` (last request) in seconds since 1970. `fingerprint` changes with the account's
    token."""

    user_id: int
    fingerprint: str
    begun: float
    seen: float


class Sessions:
    """All sessions. One ends after `idle_s` without a request, and `longest_s` after its beginning in any case."""

    def __init__(
        self, authenticator: Authenticator, throttle: Throttle, file: Path, *, idle_s: float, longest_s: float
    ) -> None:
        self._authenticator, self._throttle, self._file = authenticator, throttle, file
        self._idle_s, self._longest_s = idle_s, longest_s
        self._writing = asyncio.Lock()
        self._open: dict[str, LoginSession] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            stored = json.loads(private_read(file))
            self._open = {key: replace(LoginSession(**values), seen=time.time()) for key, values in stored.items()}

    async def log_in(self, connection: HTTPConnection, email: str, token: str) -> tuple[Principal, str]:
        """Begin a session; returns its user and the value of its cookie. Raises `NotAuthenticated` for a wrong e-mail
        or token, after a delay that grows with their number."""
        if not _from_the_page(connection):
            raise NotAuthenticated(
                "Only the farm's own page can log in here. Send the headers email and token instead."
            )
        principal = await self._authenticator.find(email, token)
        if principal is None:
            await self._throttle.wrong("login", client_of(connection), email)
            raise NotAuthenticated("This e-mail and token don't belong to an active account of this farm.")
        name, now = secrets.token_urlsafe(32), time.time()
        self._drop_old(principal.user_id)
        self._open[_key(name)] = LoginSession(principal.user_id, principal.fingerprint, now, now)
        await self._store()
        return principal, name

    async def log_out(self, connection: HTTPConnection) -> None:
        """End the session of this request, if it has one."""
        if _from_the_page(connection) and self._open.pop(_key(_cookie(connection)), None) is not None:
            await self._store()

    async def principal(self, connection: HTTPConnection, *, keeps_open: bool = True) -> Principal | None:
        """The user of a request's session; None when it has none, or when its cookie does not count. `keeps_open`: the
        request counts as use of the session."""
        name = _cookie(connection)
        if not name or not (_from_the_page(connection) or _has_ticket(connection, name)):
            return None
        key = _key(name)
        session = self._open.get(key)
        if session is None or not self._is_open(session):
            return None
        if keeps_open:
            self._open[key] = replace(session, seen=time.time())
        return await self._authenticator.holder(session.user_id, session.fingerprint)

    def ticket(self, connection: HTTPConnection, path: str) -> str:
        """An address with which the browser itself, without our header, may fetch `path` in this session."""
        named = unquote(path)  # as it arrives
        if not _PLACE.fullmatch(path) or _ODD.search(named) or not _cookie(connection):
            raise InvalidRequest("Tickets are for plain addresses below /renderapi/v2/, in a session.")
        return f"{path}?{TICKET}={_ticket(_cookie(connection), named)}"

    def set_cookie(self, connection: HTTPConnection, response: Response, name: str) -> None:
        """Have the browser keep the session, or forget it when `name` is empty."""
        response.set_cookie(
            _cookie_name(connection),
            name,
            max_age=int(self._longest_s) if name else 0,
            path="/",
            secure=connection.url.is_secure,
            httponly=True,
            samesite="strict",
        )

    def _is_open(self, session: LoginSession) -> bool:
        now = time.time()
        return now < session.seen + self._idle_s and now < session.begun + self._longest_s

    def _drop_old(self, user_id: int) -> None:
        self._open = {key: session for key, session in self._open.items() if self._is_open(session)}
        theirs = [key for key, session in self._open.items() if session.user_id == user_id]
        for key in [*theirs[: max(0, len(theirs) - MAX_OF_ONE + 1)], *list(self._open)[: -MAX_SESSIONS + 1]]:
            self._open.pop(key, None)

    async def _store(self) -> None:
        async with self._writing:  # the newest state is written last
            text = json.dumps({key: asdict(session) for key, session in self._open.items()})
            try:
                await asyncio.to_thread(write_private, self._file, text)
            except OSError as error:  # sessions then last until this RenderAPI ends
                log.warning("sessions can't be kept over a restart", file=str(self._file), reason=error.strerror)


class Callers:
    """Who sent a request."""

    def __init__(self, authenticator: Authenticator, throttle: Throttle, sessions: Sessions) -> None:
        self._authenticator, self._throttle, self._sessions = authenticator, throttle, sessions

    async def principal(self, connection: HTTPConnection) -> Principal:
        """Who it is by the headers email and token, or without these by a session of the web page. Raises
        `NotAuthenticated`."""
        if _names_somebody(connection):
            found = await self.by_headers(connection)
        elif (found := await self._sessions.principal(connection)) is not None:
            let_in(connection, f"user {found.user_id}")
        if found is None:
            raise NotAuthenticated("The headers email and token don't name an active user of this farm.")
        return found

    async def by_headers(self, connection: HTTPConnection) -> Principal | None:
        """Who it is by the headers email and token alone; None after a while for a wrong token."""
        email, token = _identity(connection)
        found = await self._authenticator.find(email, token)
        if found is not None:
            let_in(connection, f"user {found.user_id}")
        elif email and token:
            await self._throttle.wrong("token", client_of(connection), email)
        return found

    async def may_stay(self, connection: HTTPConnection, caller: Principal) -> bool:
        """Whether `caller`, who sent this request, would be let in again with the same rights; keeps no session
        open."""
        try:
            if _names_somebody(connection):
                found = await self._authenticator.find(*_identity(connection))
            else:
                found = await self._sessions.principal(connection, keeps_open=False)
        except NotAvailable:  # the database is away: nobody's rights have changed
            return True
        return found == caller


def _names_somebody(connection: HTTPConnection) -> bool:
    """Whether a request has one of the headers email and token: then its cookie does not count."""
    return not {"email", "token"}.isdisjoint(connection.headers)


def _identity(connection: HTTPConnection) -> tuple[str, str]:
    """The headers email and token. The bytes of an e-mail beyond ASCII are UTF-8; those that are not are Latin-1, in
    which a client of v1 may send it."""
    email, token = (connection.headers.get(name, "") for name in ("email", "token"))
    with contextlib.suppress(UnicodeError):
        email = email.encode("latin-1").decode()
    return email, token


def _from_the_page(connection: HTTPConnection) -> bool:
    """Whether this request comes from a page of this very origin and carries our header."""
    headers = connection.headers
    if not headers.get(CSRF_HEADER) or headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return False
    try:
        return "origin" not in headers or urlsplit(headers["origin"]).netloc == headers.get("host")
    except ValueError:
        return False


def _has_ticket(connection: HTTPConnection, name: str) -> bool:
    sent = connection.query_params.get(TICKET, "")
    expected = _ticket(name, str(connection.scope.get("path", "")))
    return connection.scope.get("method") in {"GET", "HEAD"} and hmac.compare_digest(sent.encode(), expected.encode())


def _ticket(name: str, path: str) -> str:
    return hmac.new(name.encode(), path.encode(), hashlib.sha256).hexdigest()


def _key(name: str) -> str:
    """The hash of a session's name: readers of the file can't use it."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _cookie(connection: HTTPConnection) -> str:
    return connection.cookies.get(_cookie_name(connection), "")[:100]


def _cookie_name(connection: HTTPConnection) -> str:
    """The cookie's name has the port, because browsers share cookies between all farms on one computer."""
    port = connection.url.port or ""
    return f"{'__Host-' if connection.url.is_secure else ''}renderonline{port}"
