"""One RenderAPI over HTTP(S): opening connections, trusting certificates, repeating safe calls, errors as classes."""

import contextlib
import hashlib
import hmac
import http.client
import json
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, urlencode, urlsplit

from renderonline.farm.errors import (
    Conflict,
    InvalidRequest,
    LimitReached,
    NoSpace,
    NotAllowed,
    NotAuthenticated,
    NotAvailable,
    NotFound,
    RenderOnlineError,
    TooLarge,
)

BASE: Final = "/renderapi/v2"
UNREACHABLE: Final = "unreachable"
"""The `reason_code` of `NotAvailable` when nothing answered at the address."""
REPEATED_STATUSES: Final = frozenset({502, 503, 504})
BODY_LIMIT: Final = 64 * 1024 * 1024
CONNECTION_FAULTS: Final = (OSError, http.client.HTTPException)
ERRORS: Final[Mapping[int, type[RenderOnlineError]]] = {
    error.status: error
    for error in (
        InvalidRequest,
        NotAuthenticated,
        NotAllowed,
        NotFound,
        Conflict,
        TooLarge,
        LimitReached,
        NotAvailable,
        NoSpace,
    )
}


class Busy(NotAvailable):
    """RenderAPI answered that it can't answer now; `retry_after_s` says when to ask again (0: it did not say)."""

    def __init__(self, message: str, *, code: str | None, retry_after: str) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = min(float(retry_after), 30.0) if retry_after.isdecimal() else 0.0


@dataclass(frozen=True, slots=True)
class Login:
    """Where a RenderAPI is and as whom to speak to it.

    `ca_file` replaces the system's certificate authorities; `fingerprint` (`sha256:<hex>`, colons allowed) trusts
    exactly the certificate with that digest and no other, whoever signed it.
    """

    url: str
    email: str = ""
    token: str = field(default="", repr=False)
    ca_file: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        """The body's JSON; `NotAvailable` when what answered is no RenderAPI."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise _no_renderapi(f"status {self.status}, {self.headers.get('content-type', 'no type')}") from None


class Connection:
    """Calls to one RenderAPI. Not for use by several threads at once; each thread makes its own.

    Calls that change nothing (`repeat=True`) are repeated with backoff for `patience_s` seconds when the network
    or RenderAPI fails for a moment; the others are sent once, each on a connection of its own, so that a call that
    was carried out is never carried out twice.
    """

    def __init__(
        self,
        login: Login,
        *,
        timeout_s: float = 30.0,
        patience_s: float = 5.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.login = login
        self.patience_s = patience_s
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._address = _address(login.url)
        self._context = _context(login) if self._address.scheme == "https" else None
        self._kept: http.client.HTTPConnection | None = None

    @property
    def url(self) -> str:
        """The address without a slash at its end."""
        return f"{self._address.scheme}://{self._address.netloc}{self._address.path}"

    def close(self) -> None:
        """Let the kept connection go."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        data: object = None,
        headers: Mapping[str, str] | None = None,
        repeat: bool | None = None,
    ) -> Reply:
        """Call `path` below `/renderapi/v2`; statuses of 400 and more are raised as `farm.errors` classes."""
        body = None if data is None else json.dumps(data).encode()
        extra = {**(headers or {}), **({} if body is None else {"content-type": "application/json"})}
        target = path + _query(query)
        safe = method in {"GET", "HEAD"} if repeat is None else repeat

        def once() -> Reply:
            with self.open(method, target, body=body, headers=extra, keep=safe) as response:
                return Reply(response.status, lower_case(response), _read(response))

        return self.patiently(once) if safe else once()

    def patiently(self, action: Callable[[], Any], *, patience_s: float | None = None) -> Any:
        """Run `action` again while the network or RenderAPI fails for a moment, with backoff and full jitter."""
        deadline = time.monotonic() + (self.patience_s if patience_s is None else patience_s)
        delay = 0.2
        while True:
            try:
                return action()
            except NotAvailable as error:
                asked = error.retry_after_s if isinstance(error, Busy) else 0.0
                wait = max(random.uniform(0, delay), asked)  # noqa: S311 - spreads load, guards nothing
                if time.monotonic() + wait > deadline:
                    raise
            self._sleep(wait)
            delay = min(delay * 2, 5.0)

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        keep: bool = False,
        timeout_s: float | None = None,
        send: Callable[[http.client.HTTPConnection], None] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to one call, to be read as it comes. `send` writes the body itself.

        Raises the class of `farm.errors` that the answer names; `NotAvailable` with code `unreachable` for faults
        of the network, also for those that happen while the answer is read.
        """
        connection = self._take(timeout_s or self._timeout_s, keep=keep)
        reusable = False
        try:
            try:
                response = self._exchange(connection, method, path, body, headers or {}, send)
                if response.status >= 300:
                    raise error_of(response)
                yield response
            except CONNECTION_FAULTS as error:
                raise self._unreachable(error) from error
            reusable = keep and response.isclosed() and not response.will_close
        finally:
            if reusable:
                self._kept = connection
            else:
                connection.close()

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        send: Callable[[http.client.HTTPConnection], None] | None,
    ) -> http.client.HTTPResponse:
        connection.putrequest(method, self._address.path + BASE + path, skip_accept_encoding=True)
        for name, value in self._identity().items() | headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        elif send is None and method not in {"GET", "HEAD"}:
            connection.putheader("content-length", "0")
        connection.endheaders(body)
        if send is not None:
            send(connection)
        return connection.getresponse()

    def _identity(self) -> dict[str, str]:
        identity = {"email": self.login.email, "token": self.login.token}
        return {name: value for name, value in identity.items() if value}

    def _take(self, timeout_s: float, *, keep: bool) -> http.client.HTTPConnection:
        kept, self._kept = (self._kept, None) if keep else (None, self._kept)
        if kept is not None:
            if kept.sock is not None and not _is_readable(kept.sock):
                return kept
            kept.close()
        host, port = self._address.hostname or "", self._address.port
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        return _TlsConnection(host, port, timeout=timeout_s, context=self._context, fingerprint=self.login.fingerprint)

    def _unreachable(self, error: Exception) -> NotAvailable:
        if isinstance(error, ssl.SSLCertVerificationError):
            return NotAvailable(
                f"The certificate of {self.url} is not trusted ({error.verify_message}). "
                "Give its authority with --ca-file, or trust exactly this certificate with --fingerprint sha256:…",
                code="wrong_certificate",
            )
        if isinstance(error, TimeoutError):
            why = "it did not answer in time"
        elif isinstance(error, ConnectionRefusedError):
            why = "nothing listens there"
        elif isinstance(error, socket.gaierror):
            why = "the name of the host is not known"
        else:
            why = str(error) or type(error).__name__
        return NotAvailable(
            f"RenderAPI at {self.url} can't be reached: {why}. "
            "Is it running? Start one here with `renderonline up`, or give its address with --url.",
            code=UNREACHABLE,
        )


class _TlsConnection(http.client.HTTPSConnection):
    """HTTPS that can insist on one certificate, before anything (a token above all) is sent."""

    def __init__(
        self, host: str, port: int | None, *, timeout: float, context: ssl.SSLContext, fingerprint: str | None
    ) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._fingerprint = fingerprint

    def connect(self) -> None:
        super().connect()
        if self._fingerprint is None:
            return
        found = hashlib.sha256(self.sock.getpeercert(binary_form=True) or b"").hexdigest()
        if not hmac.compare_digest(found, _hex_of(self._fingerprint)):
            self.close()
            raise NotAvailable(
                f"{self.host} shows another certificate (sha256:{found}) than the one that is trusted. "
                "Ask who runs the farm whether it was renewed; if not, somebody stands between.",
                code="wrong_certificate",
            )


def error_of(response: http.client.HTTPResponse) -> RenderOnlineError:
    """The error that an answer of 300 and more stands for."""
    headers, body = lower_case(response), _read(response, 1024 * 1024)
    if response.status < 400:
        return _no_renderapi(f"it points to {headers.get('location', 'another address')}; give that one with --url")
    try:
        problem = json.loads(body)
        message, code = str(problem.get("detail") or problem["title"]), str(problem["code"])
    except (ValueError, KeyError, TypeError, AttributeError):
        if response.status == NotFound.status:
            return _no_renderapi("it does not know this call; is it older than this program?")
        message, code = f"RenderAPI answered {response.status} {response.reason}.", ""
    if response.status in REPEATED_STATUSES:
        return Busy(message, code=code or None, retry_after=headers.get("retry-after", ""))
    kind = ERRORS.get(response.status)
    if kind is None and response.status < 500:
        kind = InvalidRequest
    return (kind or RenderOnlineError)(message, code=code or None)


def lower_case(response: http.client.HTTPResponse) -> dict[str, str]:
    """The headers of an answer, names in lower case."""
    return {name.lower(): value for name, value in response.getheaders()}


def _read(response: http.client.HTTPResponse, limit: int = BODY_LIMIT) -> bytes:
    body = response.read(limit + 1)
    if len(body) > limit:
        raise http.client.HTTPException(f"an answer of more than {limit} bytes")
    response.read()
    return body


def _address(url: str) -> SplitResult:
    text = url.strip() if "://" in url else f"http://{url.strip()}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise InvalidRequest(f"{url!r} is no address of a RenderAPI; write it like http://farm:5000 .")
    path = re.sub(r"(/renderapi(/v\d+)?)?/*$", "", parts.path)
    return parts._replace(path=path, netloc=parts.netloc.rpartition("@")[2])


def _context(login: Login) -> ssl.SSLContext:
    if login.fingerprint is not None:
        _hex_of(login.fingerprint)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # _TlsConnection compares the one certificate that is trusted
        return context
    try:
        return ssl.create_default_context(cafile=login.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(f"{login.ca_file} can't be read as certificates (PEM): {error}") from None


def _hex_of(fingerprint: str) -> str:
    digits = fingerprint.strip().lower().removeprefix("sha256:").replace(":", "")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise InvalidRequest("A fingerprint is sha256: and 64 hexadecimal digits, as RenderAPI prints it at its start.")
    return digits


def _is_readable(sock: socket.socket) -> bool:
    """Whether an idle connection has something to say: then the other side has closed it."""
    timeout = sock.gettimeout()
    sock.settimeout(0)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except (OSError, ValueError):  # ValueError: TLS sockets take no flags; those are not kept
        return True
    finally:
        sock.settimeout(timeout)
    return True


def _query(query: Mapping[str, object] | None) -> str:
    wanted = {name: value for name, value in (query or {}).items() if value is not None and value != ""}
    return f"?{urlencode(wanted)}" if wanted else ""


def _no_renderapi(why: str) -> NotAvailable:
    return NotAvailable(f"What answers at this address is no RenderAPI ({why}).", code="no_renderapi")
