"""Sessions of the web page (R11): a cookie that counts only for requests which the page itself makes.

The cookie names a session; what it stands for is kept here, bounded, and in a private file, so that a restart logs
nobody out. A session ends by logging out, after a while without a request, after a longer one in any case, and when
the account's token changes.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog
from starlette.requests import HTTPConnection
from starlette.responses import Response

from renderonline.farm.errors import InvalidRequest, NotAuthenticated
from renderonline.renderapi.auth import Authenticator, Principal
from renderonline.renderapi.guesses import Guesses
from renderonline.serving.directories import private_write

log = structlog.get_logger(__name__)

CSRF_HEADER: Final = "x-renderonline"
"""A header that no page of another origin can send along with the cookie; its value does not matter."""
TICKET: Final = "ticket"
MAX_SESSIONS: Final = 10_000
MAX_OF_ONE: Final = 50
"""Sessions of one account; the oldest goes."""


@dataclass(frozen=True, slots=True)
class Session:
    """Who is logged in since when (seconds since 1970); `seal` changes with the account's token."""

    user_id: int
    seal: str
    begun: float
    seen: float


class Sessions:
    """All sessions. `idle_s` without a request ends one, `longest_s` after its begin it ends anyway."""

    def __init__(
        self,
        authenticator: Authenticator,
        file: Path,
        *,
        idle_s: float,
        longest_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authenticator = authenticator
        self._file = file
        self._idle_s, self._longest_s, self._clock = idle_s, longest_s, clock
        self._turn = asyncio.Lock()
        told = "Too many failed logins. Wait a minute, then try again."
        self._of_account, self._of_address = Guesses(10, told), Guesses(60, told)
        self._open: dict[str, Session] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            kept = json.loads(file.read_text(encoding="utf-8"))
            self._open = {key: replace(Session(**one), seen=clock()) for key, one in kept.items()}

    async def log_in(self, connection: HTTPConnection, email: str, token: str) -> tuple[Principal, str]:
        """Begin a session: who it is, and what the cookie must say. `NotAuthenticated` for a wrong e-mail or token,
        `LimitReached` after many of them."""
        if not _from_the_page(connection):
            raise NotAuthenticated(
                "Only the farm's own page can log in here. Send the headers email and token instead."
            )
        client = connection.client.host if connection.client is not None else ""
        account = f"{client} {email.casefold()}"
        self._of_account.check(account)
        self._of_address.check(client)
        principal = await self._authenticator.find(email, token)
        if principal is None:
            self._of_account.wrong(account)
            self._of_address.wrong(client)
            raise NotAuthenticated("This e-mail and token don't belong to an active account of this farm.")
        name, now = secrets.token_urlsafe(32), self._clock()
        self._drop_old(principal.user_id)
        self._open[_key(name)] = Session(principal.user_id, principal.seal, now, now)
        await self._keep()
        return principal, name

    async def log_out(self, connection: HTTPConnection) -> None:
        """End the session of this request, if it has one."""
        if _from_the_page(connection) and self._open.pop(_key(_cookie(connection)), None) is not None:
            await self._keep()

    async def principal(self, connection: HTTPConnection) -> Principal | None:
        """Whose session a request has; None when it has none, or when its cookie does not count."""
        name = _cookie(connection)
        if not name or not (_from_the_page(connection) or _has_ticket(connection, name)):
            return None
        key, now = _key(name), self._clock()
        session = self._open.get(key)
        if session is None or not self._is_open(session, now):
            return None
        self._open[key] = replace(session, seen=now)
        return await self._authenticator.holder(session.user_id, session.seal)

    def ticket(self, connection: HTTPConnection, path: str) -> str:
        """An address with which the browser itself, which sends no header of ours, may fetch `path` in this session."""
        if not path.startswith("/renderapi/v2/") or not _cookie(connection):
            raise InvalidRequest("Tickets are for addresses below /renderapi/v2/, in a session.")
        return f"{path}?{TICKET}={_ticket(_cookie(connection), path)}"

    def set_cookie(self, connection: HTTPConnection, response: Response, name: str) -> None:
        """Have the browser keep the session, or forget it when `name` is empty."""
        response.set_cookie(
            _cookie_name(connection),
            name,
            max_age=int(self._longest_s) if name else 0,
            path="/",
            secure=_is_secure(connection),
            httponly=True,
            samesite="strict",
        )

    def _is_open(self, session: Session, now: float) -> bool:
        return now < session.seen + self._idle_s and now < session.begun + self._longest_s

    def _drop_old(self, user_id: int) -> None:
        now = self._clock()
        self._open = {key: one for key, one in self._open.items() if self._is_open(one, now)}
        theirs = [key for key, one in self._open.items() if one.user_id == user_id]
        for key in [*theirs[: max(0, len(theirs) - MAX_OF_ONE + 1)], *list(self._open)[: -MAX_SESSIONS + 1]]:
            self._open.pop(key, None)

    async def _keep(self) -> None:
        async with self._turn:  # what is written last is the newest
            text = json.dumps({key: asdict(one) for key, one in self._open.items()})
            try:
                await asyncio.to_thread(private_write, self._file, text)
            except OSError as error:  # they hold until this RenderAPI ends
                log.warning("sessions can't be kept over a restart", file=str(self._file), reason=error.strerror)


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
    given = connection.query_params.get(TICKET, "")
    reads = connection.scope.get("method") in {"GET", "HEAD"}
    wanted = _ticket(name, str(connection.scope.get("path", "")))
    return reads and hmac.compare_digest(given.encode(), wanted.encode())


def _ticket(name: str, path: str) -> str:
    return hmac.new(name.encode(), path.encode(), hashlib.sha256).hexdigest()


def _key(name: str) -> str:
    """What is kept of a session's name: who reads the file can't use it."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _cookie(connection: HTTPConnection) -> str:
    return connection.cookies.get(_cookie_name(connection), "")[:100]


def _cookie_name(connection: HTTPConnection) -> str:
    """Cookies don't know ports, farms do: two of them on one computer must not log each other out."""
    port = connection.url.port or ""
    return f"{'__Host-' if _is_secure(connection) else ''}renderonline{port}"


def _is_secure(connection: HTTPConnection) -> bool:
    return connection.url.scheme == "https"
