"""How a machine becomes one of the farm's: a join code for a secret, and which certificate to trust (R12 Tokens).

A RenderAPI whose certificate the system knows needs nothing more. One with a certificate of its own is named by its
fingerprint (`sha256:…`): the certificate is fetched, compared, kept, and from then on exactly this one is trusted.
"""

import hashlib
import hmac
import http.client
import json
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from renderonline.farm.errors import InvalidRequest, NotAuthenticated, NotAvailable, RenderOnlineError
from renderonline.protocol import tunnels
from renderonline.protocol.codec import encode, from_wire
from renderonline.protocol.link import LINK_PATH
from renderonline.serving.directories import private_read, private_write
from renderonline.serving.web import is_loopback

log = structlog.get_logger(__name__)

ENROLL_PATH: Final = "/renderapi/v2/machines/enroll"
HEALTH_PATH: Final = "/healthz"
TIMEOUT_S: Final = 15.0
MAX_ANSWER: Final = 64 * 1024
FILE: Final = "machine.json"
_REFUSALS: Final[Mapping[int, type[RenderOnlineError]]] = {
    400: InvalidRequest, 401: NotAuthenticated, 403: NotAuthenticated
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Identity:
    """What this machine is in one farm. `url`: its RenderAPI; several, of which one dispatches (R10 Standby), are
    separated by commas. `certificate` is the PEM text of a pinned certificate, "" without one."""

    url: str
    machine_id: int
    secret: str
    certificate: str = ""

    def turns(self) -> "Iterator[Identity]":
        """The same with one address only, each in its turn, for ever."""
        return cycle([replace(self, url=url) for url in self.url.split(",")])

    def is_of(self, url: str) -> bool:
        """Whether the farm at these addresses is this one: one address in common is enough."""
        return not {*self.url.split(",")}.isdisjoint(base(url).split(","))

    @property
    def link_url(self) -> str:
        return self.url.replace("http", "ws", 1) + LINK_PATH

    def tls(self) -> ssl.SSLContext | None:
        """How to trust RenderAPI; None without TLS."""
        if not self.url.startswith("https:"):
            return None
        if not self.certificate:
            return ssl.create_default_context()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the certificate itself is pinned, whatever names it carries
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=self.certificate)
        return context

    def connection(self, timeout_s: float, **about: Any) -> http.client.HTTPConnection:
        """A connection to the address, to be made when it is used; `check_peer` is left to the caller."""
        return tunnels.connection(urlsplit(self.url), timeout_s, self.tls(), **about)

    def check_peer(self, peer: bytes | None) -> None:
        """Raise `NotAvailable` unless `peer` (DER) is the pinned certificate, if there is one."""
        if self.certificate:
            _compare(peer, hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate)).hexdigest())


def kept(home: Path) -> Identity | None:
    """What an earlier enrolment left; None without one. `InvalidRequest` for a file that is broken, or that others may
    read."""
    path = home / FILE
    try:
        text = private_read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidRequest(f"{path} can't be read: {error.strerror}.") from error
    try:
        return from_wire(Identity, json.loads(text))
    except (ValueError, InvalidRequest) as error:
        raise InvalidRequest(f"{path} can't be read ({error}). Delete it and join again with a new code.") from error


def stored(home: Path, url: str) -> Identity | None:
    """What an earlier enrolment at this RenderAPI left, with the addresses that are given now; None without one.
    `InvalidRequest` for a broken file."""
    identity = kept(home)
    if identity is None or not identity.is_of(url):
        return None
    if identity.url != (wanted := base(url)):
        identity = replace(identity, url=wanted)
        private_write(home / FILE, encode(identity))
    return identity


def enrol(home: Path, url: str, *, code: str, name: str, fingerprint: str = "") -> Identity:
    """Exchange a join code for this machine's secret and keep it, readable by this user only. Blocking. `NotAvailable`:
    no RenderAPI answers or its certificate is not trusted; `NotAuthenticated`: a wrong code."""
    addresses = base(url)
    *others, last = addresses.split(",")
    for address in others:
        with suppress(NotAvailable):
            identity = _enrolled(address, code, name, fingerprint)
            break
    else:
        identity = _enrolled(last, code, name, fingerprint)
    identity = replace(identity, url=addresses)
    private_write(home / FILE, encode(identity))
    log.info("machine has joined the farm", url=addresses, machine_id=identity.machine_id)
    return identity


def _enrolled(address: str, code: str, name: str, fingerprint: str) -> Identity:
    new = Identity(address, 0, "", fetch_certificate(address, fingerprint) if fingerprint else "")
    status, body = _ask(new, "POST", ENROLL_PATH, {"code": code, "name": name})
    try:
        answer = json.loads(body)
        if status // 100 == 2:
            return replace(new, machine_id=int(answer["machine_id"]), secret=str(answer["secret"]))
        detail = str(answer.get("detail") or f"status {status}")[:500]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotAvailable(f"{address} answered something that is not a RenderOnline farm ({status}).") from error
    raise _REFUSALS.get(status, NotAvailable)(f"This machine could not join: {detail}")


def asked_for_version(identity: Identity) -> str:
    """The version of the RenderAPI, or the first that answers of several. `NotAvailable` when none does, or its
    certificate is not trusted. Blocking."""
    *others, last = identity.url.split(",")
    for url in others:
        with suppress(NotAvailable):
            return _version(replace(identity, url=url))
    return _version(replace(identity, url=last))


def _version(identity: Identity) -> str:
    status, body = _ask(identity, "GET", HEALTH_PATH)
    try:
        answer = json.loads(body)
        said, version = str(answer["status"]), str(answer["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise NotAvailable(f"{identity.url} answered something that is not a RenderOnline farm ({status}).") from error
    if status != http.client.OK:
        raise NotAvailable(f"RenderAPI at {identity.url} is not ready: {said[:200]}.")
    return version[:50]


def base(url: str) -> str:
    """The address of a RenderAPI in one form: scheme, host, port and path without a slash at the end. Several keep
    their commas."""
    if "," in url:
        return ",".join(dict.fromkeys(base(one) for one in url.split(",")))
    parts = urlsplit(url.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.username:
        raise InvalidRequest(f"{url} is not the address of a RenderAPI. Write it like https://farm.example:5000.")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        log.warning("no TLS: everybody on the way can read this machine's secret", url=url)
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def fetch_certificate(url: str, fingerprint: str) -> str:
    """The PEM text of the server's certificate if it has this fingerprint. Nothing is sent to the server before."""
    parts = urlsplit(url)
    if parts.scheme != "https":
        raise InvalidRequest("A fingerprint only makes sense with an https address.")
    wanted = fingerprint.strip().lower().removeprefix("sha256:").replace(":", "")
    if not re.fullmatch("[0-9a-f]{64}", wanted):
        raise InvalidRequest(f"{fingerprint} is not a fingerprint. It looks like sha256: and 64 hexadecimal digits.")
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE  # only the certificate is wanted
    with closing(tunnels.connection(parts, TIMEOUT_S, anybody)) as connection:
        try:
            connection.connect()
        except OSError as error:
            raise _silent(url, error) from error
        assert isinstance(connection.sock, ssl.SSLSocket)
        certificate = connection.sock.getpeercert(binary_form=True) or b""
    _compare(certificate, wanted)
    return ssl.DER_cert_to_PEM_cert(certificate)


def _silent(url: str, error: Exception) -> NotAvailable:
    return NotAvailable(f"RenderAPI at {url}{tunnels.told(url)} does not answer: {error}.")


def _compare(peer: bytes | None, wanted: str) -> None:
    found = hashlib.sha256(peer or b"").hexdigest()
    if not hmac.compare_digest(found, wanted):
        raise NotAvailable(
            f"The server's certificate is not the expected one: its fingerprint is sha256:{found}."
            " Somebody may be in between; ask the farm's administrator for the right fingerprint.",
            code="wrong_certificate",
        )


def _ask(asking: Identity, method: str, path: str, content: dict[str, str] | None = None) -> tuple[int, bytes]:
    url, connection = asking.url, asking.connection(TIMEOUT_S)
    try:
        body = None if content is None else json.dumps(content)
        connection.request(method, urlsplit(url).path + path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER)
    except ssl.SSLCertVerificationError as error:
        raise NotAvailable(
            f"The certificate of {url} is not trusted ({error.verify_message}). Name it with --fingerprint.",
            code="wrong_certificate",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _silent(url, error) from error
    finally:
        connection.close()
