"""One RenderAPI over HTTP(S): opening connections, trusting certificates, repeating safe calls, errors as classes."""

import contextlib
import hashlib
import hmac
import http.client
import json
import random
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Final, Self, TypeVar
from urllib.parse import SplitResult, urlencode, urlsplit

from renderonline.farm import errors
from renderonline.protocol import tunnels

BASE: Final = "/renderapi/v2"
STANDBY: Final = "standby"
"""The `reason_code` of `Busy` when another RenderAPI of the farm dispatches."""
UNREACHABLE: Final = "unreachable"
"""The `reason_code` of `NotAvailable` when nothing answered at the address."""
TIMEOUT_S: Final = 30.0
BODY_LIMIT: Final = 64 * 1024 * 1024
FAULTS: Final = (
    (TimeoutError, "it did not answer in time"),
    (ConnectionRefusedError, "nothing listens there"),
    (socket.gaierror, "the name of the host is not known"),
)
REFUSALS = (errors.InvalidRequest, errors.NotAuthenticated, errors.NotAllowed, errors.NotFound, errors.Conflict)
LIMITS = (errors.TooLarge, errors.LimitReached, errors.NoSpace)
ERRORS: Final[Mapping[int, type[errors.RenderOnlineError]]] = {kind.status: kind for kind in REFUSALS + LIMITS}
Body = bytes | Callable[[http.client.HTTPConnection], Iterable[bytes]] | None
T = TypeVar("T")


class Busy(errors.NotAvailable):
    """RenderAPI answered that it can't answer now; `retry_after_s` says when to ask again (0: it did not say)."""

    retry_after_s = 0.0


@dataclass(frozen=True, slots=True)
class Login:
    """Where a RenderAPI is and as whom to speak to it.

    `url` may name several, separated by commas, of which one dispatches while the others stand by (R10 Standby).
    `ca_file` replaces the system's certificate authorities; `fingerprint` (`sha256:<hex>`, colons allowed) trusts
    exactly the certificate with that digest and no other, whoever signed it.

    Spaces and line ends around the e-mail and the token are dropped. `InvalidRequest` when they can't be sent; what the
    token is, is never said.
    """

    url: str
    email: str = ""
    token: str = field(default="", repr=False)
    ca_file: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        for name in ("email", "token"):
            object.__setattr__(self, name, getattr(self, name).strip())
        if not self.email.isprintable():
            raise errors.InvalidRequest(
                "The e-mail holds a line break or another sign that can't be seen. Type it again."
            )
        odd = next((place for place, sign in enumerate(self.token, 1) if not "\x20" <= sign <= "\x7e"), 0)
        if odd:
            raise errors.InvalidRequest(
                f"The token can't be right: character {odd} of {len(self.token)} is no ASCII letter, digit or "
                "sign. Perhaps a program put curly quotes or a line break there. Copy it again."
            )


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer."""

    status: int
    headers: Message
    body: bytes

    @classmethod
    def of(cls, response: http.client.HTTPResponse, limit: int = BODY_LIMIT) -> Self:
        """The whole of an answer."""
        body = response.read(limit + 1)
        if len(body) > limit:
            raise http.client.HTTPException(f"an answer of more than {limit} bytes")
        response.read()
        if not body and response.length is None and not response.chunked:
            raise http.client.IncompleteRead(b"")  # cut within its headers, which `http.client` takes for their end
        return cls(response.status, response.headers, body)

    def json(self) -> Any:
        """The body's JSON; `NotAvailable` when what answered is no RenderAPI."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise _no_renderapi(f"status {self.status}, {self.headers.get('content-type', 'no type')}") from None


class Connection:
    """Calls to one farm's RenderAPI. Not for use by several threads at once; each thread makes its own.

    Of several addresses the one that answered last is asked first. The next is asked where nothing can have been done:
    when there was no connection, when RenderAPI stands by, and for GET after every fault of the network.

    GET is repeated with backoff for `patience_s` seconds when the network or RenderAPI fails for a moment; the others
    are sent once, each on a connection of its own, so that what was carried out is never carried out twice; but for
    submissions, which their key makes count once.
    """

    def __init__(self, login: Login, *, patience_s: float = 5.0, sleep: Callable[[float], None] = time.sleep) -> None:
        self.login = login
        self._patience_s = patience_s
        self._sleep = sleep
        self._addresses = [_address(url) for url in login.url.split(",")]
        self._address = self._addresses[0]
        self._context = _context(login) if any(one.scheme == "https" for one in self._addresses) else None
        self._kept: http.client.HTTPConnection | None = None

    @property
    def url(self) -> str:
        """The address without a slash at its end; several are separated by commas."""
        return ",".join(one.geturl() for one in self._addresses)

    @property
    def address(self) -> str:
        """The one of the addresses that answered last."""
        return self._address.geturl()

    def close(self) -> None:
        """Let the kept connection go."""
        if self._kept is not None:
            self._kept.close()

    def call(self, method: str, path: str, *, query: Mapping[str, object] | None = None, data: object = None) -> Reply:
        """Call `path` below `/renderapi/v2`; statuses of 300 and more are raised as `farm.errors` classes."""
        wanted = {name: value for name, value in (query or {}).items() if value not in (None, "")}
        target = f"{path}?{urlencode(wanted)}" if wanted else path
        body = None if data is None else json.dumps(data).encode()
        headers = {} if data is None else {"content-type": "application/json"}
        safe = method == "GET"

        def once() -> Reply:
            return self.ask(method, target, body=body, headers=headers, keep=safe)

        return self.patiently(once) if safe else once()

    def ask(self, method: str, path: str, **how: Any) -> Reply:
        """The whole answer to one call; `how` as for `open`."""
        with self.open(method, path, **how) as response:
            return Reply.of(response)

    def patiently(self, action: Callable[[], T], *, patience_s: float | None = None) -> T:
        """Run `action` again while the network or RenderAPI fails for a moment, with backoff and full jitter."""
        deadline = time.monotonic() + (self._patience_s if patience_s is None else patience_s)
        delay = 0.2
        while True:
            try:
                return action()
            except errors.NotAvailable as error:
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
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        keep: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to one call, to be read as it comes. `body` may make its blocks while they are sent.

        Raises the class of `farm.errors` that the answer names; `NotAvailable` with code `unreachable` for faults
        of the network, also for those that happen while the answer is read.
        """
        identity = {"email": self.login.email.encode(), "token": self.login.token.encode()}
        known = {name: value for name, value in identity.items() if value} | dict(headers or {})
        connection, response = self._ask(method, path, body, known, timeout_s, keep=keep)
        try:
            try:
                yield response
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from error
            if keep and response.isclosed() and not response.will_close:
                self._kept = connection
        finally:
            if self._kept is not connection:
                connection.close()

    def _ask(
        self, method: str, path: str, body: Body, headers: Mapping[str, str | bytes], timeout_s: float, *, keep: bool
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The answer of the RenderAPI that dispatches, and its connection."""
        others = len(self._addresses)
        while True:
            connection, others = self._take(timeout_s, keep=keep), others - 1
            untouched = connection.sock is None
            try:
                if untouched:
                    connection.connect()
                    self._check_certificate(connection)
                    untouched = False
                response = self._exchange(connection, method, self._address.path + BASE + path, body, headers)
                if response.status >= 300:
                    raise error_of(response)
            except (OSError, http.client.HTTPException, errors.RenderOnlineError) as error:
                connection.close()
                told = error if isinstance(error, errors.RenderOnlineError) else self._unreachable(error)
                harmless = untouched or method == "GET" or told.reason_code == STANDBY
                if isinstance(told, errors.NotAvailable):
                    self._address = self._addresses[self._addresses.index(self._address) - 1]
                    if others and harmless:
                        continue
                if told is error:
                    raise
                raise told from error
            return connection, response

    def _take(self, timeout_s: float, *, keep: bool) -> http.client.HTTPConnection:
        if keep and self._kept is not None:
            kept, self._kept = self._kept, None
            if kept.sock is not None and not select.select([kept.sock], [], [], 0)[0]:
                kept.sock.settimeout(timeout_s)
                return kept
            kept.close()  # an idle connection with something to say was closed by the other side
        context = self._context if self._address.scheme == "https" else None
        return tunnels.connection(self._address, timeout_s, context)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Body,
        headers: Mapping[str, str | bytes],
    ) -> http.client.HTTPResponse:
        # when sending fails, the answer that explains it may already be here; if not, reading it fails in the same way
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, body(connection) if callable(body) else body, headers)
        return connection.getresponse()

    def certificate(self) -> bytes | None:
        """The certificate (DER) that the farm shows now and the login trusts; None over plain HTTP. `NotAvailable` when
        it is not trusted or nobody answers."""
        with contextlib.closing(self._take(self._patience_s, keep=False)) as connection:
            try:
                connection.connect()
            except OSError as error:
                raise self._unreachable(error) from error
            self._check_certificate(connection)
            sock = connection.sock
            return sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None

    def _check_certificate(self, connection: http.client.HTTPConnection) -> None:
        """Insist on the one certificate that is trusted, before anything (a token above all) is sent."""
        sock = connection.sock
        if self.login.fingerprint is None or not isinstance(sock, ssl.SSLSocket):
            return
        found = hashlib.sha256(sock.getpeercert(binary_form=True) or b"").hexdigest()
        if not hmac.compare_digest(found, _hex_of(self.login.fingerprint)):
            raise errors.NotAvailable(
                f"{self.url} shows another certificate (sha256:{found}) than the one that is trusted. "
                "Ask who runs the farm whether it was renewed; if not, somebody stands between.",
                code="wrong_certificate",
            )

    def _unreachable(self, error: Exception) -> errors.NotAvailable:
        if isinstance(error, ssl.SSLCertVerificationError):
            return errors.NotAvailable(
                f"The certificate of {self.url} is not trusted ({error.verify_message}). "
                "Give its authority with --ca-file, or trust exactly this certificate with --fingerprint sha256:…",
                code="wrong_certificate",
            )
        why = next((text for kind, text in FAULTS if isinstance(error, kind)), str(error) or type(error).__name__)
        return errors.NotAvailable(
            f"RenderAPI at {self.url}{tunnels.told(self.address)} can't be reached: {why}. "
            "Is it running? Start one here with `renderonline up`, or give its address with --url.",
            code=UNREACHABLE,
        )


def error_of(response: http.client.HTTPResponse) -> errors.RenderOnlineError:
    """The error that an answer of 300 and more stands for."""
    reply, status = Reply.of(response, 1024 * 1024), response.status
    if status < 400:
        place = reply.headers.get("location", "another address")
        return _no_renderapi(f"it points to {place}; give that one with --url")
    try:
        problem = json.loads(reply.body)
        message, code = str(problem.get("detail") or problem["title"]), str(problem["code"])
    except (ValueError, KeyError, TypeError, AttributeError):
        if status == errors.NotFound.status:
            return _no_renderapi("it does not know this call; is it older than this program?")
        message, code = f"RenderAPI answered {status} {response.reason}.", ""
    if status in {502, 503, 504}:
        busy, after = Busy(message, code=code or None), reply.headers.get("retry-after", "")
        busy.retry_after_s = min(float(after), 30.0) if after.isdecimal() else 0.0
        return busy
    other = errors.InvalidRequest if status < 500 else errors.RenderOnlineError
    return ERRORS.get(status, other)(message, code=code or None)


def _address(url: str) -> SplitResult:
    text = url.strip() if "://" in url else f"http://{url.strip()}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise errors.InvalidRequest(f"{url!r} is no address of a RenderAPI; write it like http://farm:5000 .")
    path = re.sub(r"(/renderapi(/v\d+)?)?/*$", "", parts.path)
    return parts._replace(path=path, netloc=parts.netloc.rpartition("@")[2])


def _context(login: Login) -> ssl.SSLContext:
    if login.fingerprint is not None:
        _hex_of(login.fingerprint)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # _check_certificate compares it
        return context
    try:
        return ssl.create_default_context(cafile=login.ca_file)
    except OSError as error:
        raise errors.InvalidRequest(f"{login.ca_file} can't be read as certificates (PEM): {error}") from None


def _hex_of(fingerprint: str) -> str:
    digits = fingerprint.strip().lower().removeprefix("sha256:").replace(":", "")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        words = "A fingerprint is sha256: and 64 hexadecimal digits, as RenderAPI prints it at its start."
        raise errors.InvalidRequest(words)
    return digits


def _no_renderapi(why: str) -> errors.NotAvailable:
    return errors.NotAvailable(f"What answers at this address is no RenderAPI ({why}).", code="no_renderapi")
