"""HTTP(S) calls to RenderAPI: its addresses in turn, proxies, pinned certificates, backoff, errors as classes.

The SDK, the enrolment of machines and the transfers of attempts all call through `Caller`. Standard library only.

A connection through a proxy (HTTPS_PROXY and its kin) is always a tunnel (CONNECT): certificates are checked, and
tokens sent, at its far end. Loopback addresses are never reached through a proxy.
"""

import base64
import contextlib
import hashlib
import hmac
import http.client
import ipaddress
import json
import os
import random
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from io import FileIO
from typing import Any, Final, NamedTuple, Self
from urllib.parse import SplitResult, unquote, urlsplit

from renderonline.farm import errors

STANDBY: Final = "standby"
"""The `reason_code` of `Busy` when another RenderAPI of the farm dispatches."""
UNREACHABLE: Final = "unreachable"
"""The `reason_code` of `NotAvailable` when nothing answered at the address."""
WRONG_CERTIFICATE: Final = "wrong_certificate"
NO_RENDERAPI: Final = "no_renderapi"
TIMEOUT_S: Final = 30.0
BODY_LIMIT: Final = 64 * 1024 * 1024
PROBLEM_LIMIT: Final = 1024 * 1024
LONGEST_MESSAGE: Final = 2000
"""Characters of an error message that are taken from an answer."""
LONGEST_RETRY_AFTER_S: Final = 30.0
_PROXY_PORT: Final = 80
"""The port of a proxy whose address names none."""
_SECURE: Final = frozenset({"https", "wss"})
_FAULTS: Final = (
    (TimeoutError, "it did not answer in time"),
    (ConnectionRefusedError, "nothing listens there"),
    (socket.gaierror, "the name of the host is not known"),
)
_ERRORS: Final[Mapping[int, type[errors.RenderOnlineError]]] = {
    kind.status: kind
    for kind in (
        errors.InvalidRequest, errors.NotAuthenticated, errors.NotAllowed, errors.NotFound, errors.Conflict,
        errors.TooLarge, errors.LimitReached, errors.NoSpace,
    )
}  # fmt: skip
_TRY_AGAIN: Final = frozenset({408, 425, 502, 503, 504})
Body = bytes | FileIO | Callable[[http.client.HTTPConnection], Iterable[bytes]] | None


class Busy(errors.NotAvailable):
    """RenderAPI can't answer now; `retry_after_s` says when to ask again (0: it did not say)."""

    retry_after_s = 0.0


class Advice(NamedTuple):
    """The end of the messages about a server that can't be reached, and about a certificate that is not trusted."""

    unreachable: str = ""
    untrusted: str = "Trust exactly this certificate with --fingerprint sha256:…"


@dataclass(frozen=True, slots=True)
class Trust:
    """Which certificates are accepted: the one whose SHA-256 is `digest` (hex), or, if that is "", all that `context`
    accepts. `context` None: no TLS."""

    context: ssl.SSLContext | None = None
    digest: str = ""

    @classmethod
    def of(cls, ca_file: str | None = None, fingerprint: str | None = None) -> Self:
        """Trust of the system's certificate authorities; of those in `ca_file` (PEM) instead; or of exactly the
        certificate with this fingerprint (`sha256:<hex>`, colons allowed). Raises `InvalidRequest` for one that is
        none, or a file that can't be read."""
        if fingerprint is not None:
            digest = fingerprint.strip().lower().removeprefix("sha256:").replace(":", "")
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise errors.InvalidRequest(
                    "A fingerprint is sha256: and 64 hexadecimal digits, as RenderAPI prints it at its start."
                )
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # `check` compares it
            return cls(context, digest)
        try:
            return cls(ssl.create_default_context(cafile=ca_file))
        except OSError as error:
            raise errors.InvalidRequest(f"{ca_file} can't be read as certificates (PEM): {error}") from None

    def check(self, url: str, certificate: bytes | None) -> None:
        """Raise `NotAvailable` unless `certificate` (DER), which `url` shows, is the pinned one, if one is pinned."""
        found = hashlib.sha256(certificate or b"").hexdigest()
        if self.digest and not hmac.compare_digest(found, self.digest):
            raise errors.NotAvailable(
                f"{url} shows another certificate than the one that is trusted: its fingerprint is sha256:{found}. "
                "Ask the farm's administrator whether it was renewed; if not, somebody may be in between.",
                code=WRONG_CERTIFICATE,
            )


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer."""

    status: int
    headers: Message
    body: bytes

    @classmethod
    def of(cls, response: http.client.HTTPResponse, limit: int = BODY_LIMIT) -> Self:
        """Read the whole answer. Raises `HTTPException` when it is cut or longer than `limit` bytes."""
        body = response.read(limit + 1)
        if len(body) > limit:
            raise http.client.HTTPException(f"an answer of more than {limit} bytes")
        response.read()  # raises when the body is cut, which a read with a limit does not
        if not body and response.length is None and not response.chunked:
            raise http.client.IncompleteRead(b"")  # cut within its headers, which `http.client` takes for their end
        return cls(response.status, response.headers, body)

    def json(self) -> Any:
        """The body's JSON. Raises `NotAvailable` when the server that answered is no RenderAPI."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise no_renderapi(f"status {self.status}, {self.headers.get('content-type', 'no type')}") from None


class Caller:
    """Calls to RenderAPI at one or several addresses, of which one dispatches (R10 Standby). Thread-safe.

    Of several addresses the one that answered last is asked first. The next is asked where nothing can have been done:
    when there was no connection, when RenderAPI stands by, and for GET after every fault of the network. Nothing is
    sent to a server whose certificate is not trusted.
    """

    def __init__(
        self, urls: Sequence[str], trust: Trust, *, blocksize: int = 16 * 1024, advice: Advice | None = None
    ) -> None:
        self._addresses = [urlsplit(url) for url in urls]
        self._address = self._addresses[0]
        self._trust, self._blocksize, self._advice = trust, blocksize, advice or Advice()
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """All addresses, separated by commas."""
        return ",".join(address.geturl() for address in self._addresses)

    @property
    def address(self) -> str:
        """The address that answered last."""
        return self._address.geturl()

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def ask(self, method: str, path: str, **options: Any) -> Reply:
        """The whole answer to one call; `options` as for `open`."""
        with self.open(method, path, **options) as response:
            return Reply.of(response)

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        body: Body = None,
        headers: Mapping[str, str | bytes] | None = None,
        keep: bool = False,
        timeout_s: float = TIMEOUT_S,
        watch: Callable[[http.client.HTTPConnection], object] = lambda _: None,
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to one call, to be read within the block.

        `body`: a function produces its blocks while they are sent. `keep`: use an idle connection, and leave this one
        idle afterwards; without it the call has a connection of its own. `watch` is called with the connection before
        it is opened and again before something is sent, and ends the call by raising.

        Raises the class of `farm.errors` that the answer stands for; `NotAvailable` with code `unreachable` for faults
        of the network, also while the answer is read. An OSError that names a file passes: it is the caller's own.
        """
        connection, response = self._answered(method, path, body, headers or {}, timeout_s, keep=keep, watch=watch)
        try:
            yield response
            if keep and response.isclosed() and not response.will_close:
                with self._lock:
                    self._idle.append(connection)
                return
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if isinstance(error, OSError) and error.filename is not None:
                raise
            raise self._unreachable(error) from error
        except BaseException:
            connection.close()
            raise
        connection.close()

    def certificate(self, timeout_s: float = TIMEOUT_S) -> bytes | None:
        """The certificate (DER) that the server shows now and that is trusted; None over plain HTTP. `NotAvailable`
        when it is not trusted or nothing answers."""
        address = self._address
        with contextlib.closing(self._new(address, timeout_s)) as connection:
            try:
                self._connect(connection, address)
            except OSError as error:
                raise self._unreachable(error) from error
            return _certificate_of(connection)

    def _answered(
        self,
        method: str,
        path: str,
        body: Body,
        headers: Mapping[str, str | bytes],
        timeout_s: float,
        *,
        keep: bool,
        watch: Callable[[http.client.HTTPConnection], object],
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The answer of the RenderAPI that dispatches, and its connection."""
        others = len(self._addresses)
        while True:
            others -= 1
            connection, address = self._taken(timeout_s) if keep else (None, self._address)
            untouched = connection is None
            connection = connection or self._new(address, timeout_s)
            try:
                watch(connection)
                if untouched:
                    self._connect(connection, address)
                    watch(connection)
                    untouched = False
                response = _exchange(connection, method, address.path + path, body, headers)
            except (OSError, http.client.HTTPException, errors.RenderOnlineError) as error:
                connection.close()
                raised = error if isinstance(error, errors.RenderOnlineError) else self._unreachable(error)
                if isinstance(raised, errors.NotAvailable):
                    self._turn_from(address)
                    harmless = untouched or method == "GET" or raised.reason_code == STANDBY
                    if others and harmless:
                        continue
                if raised is error:
                    raise
                raise raised from error
            except BaseException:
                connection.close()
                raise
            return connection, response

    def _turn_from(self, address: SplitResult) -> None:
        """Ask the next address first, unless another thread has turned to it meanwhile."""
        self.close()
        with self._lock:
            if self._address is address:
                self._address = self._addresses[self._addresses.index(address) - 1]

    def _taken(self, timeout_s: float) -> tuple[http.client.HTTPConnection | None, SplitResult]:
        """An idle connection, or None, and its address."""
        while True:
            with self._lock:
                idle, address = self._idle.pop() if self._idle else None, self._address
            if idle is None:
                return None, address
            if idle.sock is not None and not select.select([idle.sock], [], [], 0)[0]:
                idle.sock.settimeout(timeout_s)
                return idle, address
            idle.close()  # an idle connection with something to read was closed by the other side

    def _new(self, url: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
        """A connection, through the proxy if there is one, that is not open yet."""
        context = self._trust.context or ssl.create_default_context() if url.scheme == "https" else None
        proxy, host, port = proxy_of(url.geturl()), url.hostname or "", url.port or (443 if context else 80)
        place = (host, port) if proxy is None else (proxy.host, proxy.port)
        connection: http.client.HTTPConnection
        if context is None:
            connection = http.client.HTTPConnection(*place, timeout=timeout_s, blocksize=self._blocksize)
        else:
            connection = http.client.HTTPSConnection(
                *place, timeout=timeout_s, context=context, blocksize=self._blocksize
            )
        if proxy is not None:
            connection.set_tunnel(host if host.isascii() else host.encode("idna").decode(), port, proxy.headers)
        return connection

    def _connect(self, connection: http.client.HTTPConnection, address: SplitResult) -> None:
        connection.connect()
        if isinstance(connection.sock, ssl.SSLSocket):
            self._trust.check(address.geturl(), _certificate_of(connection))

    def _unreachable(self, error: Exception) -> errors.NotAvailable:
        if isinstance(error, ssl.SSLCertVerificationError):
            return errors.NotAvailable(
                f"The certificate of {self.url} is not trusted ({error.verify_message}). {self._advice.untrusted}",
                code=WRONG_CERTIFICATE,
            )
        why = next((text for kind, text in _FAULTS if isinstance(error, kind)), str(error) or type(error).__name__)
        place = f"{self.url}{by_proxy(self.address)}"
        return errors.NotAvailable(
            f"RenderAPI at {place} can't be reached: {why}. {self._advice.unreachable}".rstrip(), code=UNREACHABLE
        )


def error_of(response: http.client.HTTPResponse) -> errors.RenderOnlineError:
    """The error that an answer with a status of 300 or more stands for, from its problem document (RFC 9457)."""
    reply, status = Reply.of(response, PROBLEM_LIMIT), response.status
    if status < 400:
        place = reply.headers.get("location", "another address")
        return no_renderapi(f"it points to {place}; give that one with --url")
    message, code = f"RenderAPI answered {status} {response.reason}.", ""
    with contextlib.suppress(ValueError, AttributeError):
        problem = json.loads(reply.body)
        state = problem.get("status")  # /healthz sends {"status": "<what is wrong>"}, a problem document a number
        words = problem.get("detail") or problem.get("title") or (state if isinstance(state, str) else message)
        message = str(words)[:LONGEST_MESSAGE]
        code = str(problem.get("code") or "")[:50]
    if status == errors.NotFound.status and not code:
        return no_renderapi("it does not know this call; is it older than this program?")
    if status in _TRY_AGAIN:
        busy, after = Busy(message, code=code or None), reply.headers.get("retry-after", "")
        busy.retry_after_s = min(float(after), LONGEST_RETRY_AFTER_S) if after.isdecimal() else 0.0
        return busy
    other = errors.InvalidRequest if status < 500 else errors.RenderOnlineError
    return _ERRORS.get(status, other)(message, code=code or None)


def no_renderapi(why: str) -> errors.NotAvailable:
    """The error for an answer that no RenderAPI can have sent."""
    return errors.NotAvailable(f"What answers at this address is no RenderAPI ({why}).", code=NO_RENDERAPI)


def backoff(first_s: float, longest_s: float) -> Iterator[float]:
    """The pauses between tries, without end: each up to twice as long as the one before, with full jitter."""
    pause_s = first_s
    while True:
        yield random.uniform(0, pause_s)  # noqa: S311 - spreads load, guards nothing
        pause_s = min(pause_s * 2, longest_s)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `credentials`: the part of its address before the `@`, "" without one; never shown."""

    host: str
    port: int
    credentials: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """Host and port, without the credentials."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Its address, with its credentials."""
        return f"http://{self.credentials}@{self.name}" if self.credentials else f"http://{self.name}"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that authenticate at the proxy."""
        if not self.credentials:
            return {}
        return {"Proxy-Authorization": f"Basic {base64.b64encode(unquote(self.credentials).encode()).decode()}"}


def proxy_of(url: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy on the way to `url` (http, https, ws or wss), or None. Raises `InvalidRequest`, without showing the
    proxy's address, for one that can't be used."""
    parts = urlsplit(url)
    scheme = "https" if parts.scheme in _SECURE else "http"
    port = parts.port or (443 if scheme == "https" else 80)
    if not parts.hostname or _is_direct(parts.hostname, port, environment):
        return None
    for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"):
        if value := environment.get(name, "").strip():
            return _proxy(name, value)
    return None


def by_proxy(url: str) -> str:
    """A note for messages that names the proxy on the way to `url`; "" without one."""
    proxy = proxy_of(url)
    return "" if proxy is None else f" (through the proxy {proxy.name})"


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: Body, headers: Mapping[str, str | bytes]
) -> http.client.HTTPResponse:
    # when sending fails, the answer that explains it may already be here; if not, reading it fails in the same way
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, path, body(connection) if callable(body) else body, headers)
    response = connection.getresponse()
    if response.status >= 300:
        raise error_of(response)
    return response


def _certificate_of(connection: http.client.HTTPConnection) -> bytes | None:
    sock = connection.sock
    return sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None


def _proxy(name: str, value: str) -> Proxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname or "", parts.port or _PROXY_PORT
    except ValueError:
        host, port, parts = "", 0, urlsplit("")
    if parts.scheme != "http" or not host or not host.isprintable() or " " in host:
        raise errors.InvalidRequest(
            f"{name} in the environment is no proxy that can be used here. Write it like http://proxy.example:3128 (no "
            "https://, no socks5://), or name the farm in NO_PROXY to reach it without one.",
            code="bad_proxy",
        )
    credentials = parts.netloc.rpartition("@")[0]
    return Proxy(host, port, f"{credentials}:" if credentials and ":" not in credentials else credentials)


def _is_direct(host: str, port: int, environment: Mapping[str, str]) -> bool:
    address = _address(host)
    if address.is_loopback if address else host == "localhost" or host.endswith(".localhost"):
        return True
    written = environment.get("no_proxy", "") or environment.get("NO_PROXY", "")
    return any(_fits(entry, host, address) for entry in _entries(written.casefold(), port))


def _entries(written: str, port: int) -> Iterator[str]:
    """The hosts of a NO_PROXY list, without those that are named with another port."""
    for entry in written.replace(",", " ").split():
        host, colon, its_port = entry.rpartition(":")
        bare = host.strip("[]") if colon and its_port.isdigit() and (":" not in host or host.endswith("]")) else ""
        if not bare or int(its_port) == port:
            yield bare or entry.strip("[]")


def _fits(entry: str, host: str, address: "ipaddress.IPv4Address | ipaddress.IPv6Address | None") -> bool:
    if entry == "*":
        return True
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name = entry.removeprefix("*").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _address(host: str) -> "ipaddress.IPv4Address | ipaddress.IPv6Address | None":
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
