"""How a machine joins the farm: with a join code it gets a secret, and learns which certificate to trust (R12 Tokens).

A RenderAPI whose certificate the system trusts needs nothing more. One with a certificate of its own is named by its
fingerprint (`sha256:…`): the certificate is fetched, compared and stored, and from then on only this one is trusted.
"""

import hashlib
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from renderonline.farm.errors import InvalidRequest, NotAuthenticated, NotAvailable, RenderOnlineError
from renderonline.protocol.calls import Busy, Caller, Trust, no_renderapi
from renderonline.protocol.codec import encode, from_wire
from renderonline.protocol.link import LINK_PATH
from renderonline.sandbox.privacy import write_private
from renderonline.serving.directories import private_read
from renderonline.serving.web import is_loopback

log = structlog.get_logger(__name__)

ENROLL_PATH: Final = "/renderapi/v2/machines/enroll"
HEALTH_PATH: Final = "/healthz"
TIMEOUT_S: Final = 15.0
FILE: Final = "machine.json"


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
        if "https:" not in self.url:
            return None
        if not self.certificate:
            return ssl.create_default_context()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the certificate itself is pinned, whatever names it carries
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=self.certificate)
        return context

    def trust(self) -> Trust:
        """Which certificate RenderAPI must show."""
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate)).hexdigest() if self.certificate else ""
        return Trust(self.tls(), digest)

    def caller(self, **options: Any) -> Caller:
        """Calls RenderAPI; `options` as for `Caller`."""
        return Caller(self.url.split(","), self.trust(), **options)


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
        write_private(home / FILE, encode(identity))
    return identity


def enrol(home: Path, url: str, *, code: str, name: str, fingerprint: str = "") -> Identity:
    """Exchange a join code for this machine's secret and store it, readable by this user only. Blocks. Raises
    `NotAvailable` when no RenderAPI answers or its certificate is not trusted, `NotAuthenticated` for a wrong code."""
    caller = caller_of(url, fingerprint)
    body = json.dumps({"code": code, "name": name}).encode()
    try:
        pinned = caller.certificate(TIMEOUT_S) if fingerprint else None
        reply = caller.ask(
            "POST", ENROLL_PATH, body=body, headers={"Content-Type": "application/json"}, timeout_s=TIMEOUT_S
        )
        answer = reply.json()
        machine_id, secret = int(answer["machine_id"]), str(answer["secret"])
    except (KeyError, TypeError, ValueError) as error:
        raise no_renderapi("it did not answer with a secret") from error
    except RenderOnlineError as error:
        kind = type(error) if isinstance(error, (InvalidRequest, NotAuthenticated)) else NotAvailable
        raise kind(f"This machine could not join: {error.message}", code=error.reason_code) from error
    identity = Identity(caller.url, machine_id, secret, "" if pinned is None else ssl.DER_cert_to_PEM_cert(pinned))
    write_private(home / FILE, encode(identity))
    log.info("machine has joined the farm", url=identity.url, machine_id=machine_id)
    return identity


def caller_of(url: str, fingerprint: str = "") -> Caller:
    """Calls the RenderAPI at `url`, which this machine has not joined. `InvalidRequest` for what is no address, or no
    fingerprint."""
    addresses = base(url).split(",")
    if fingerprint and not all(address.startswith("https:") for address in addresses):
        raise InvalidRequest("A fingerprint only makes sense with an https address.")
    return Caller(addresses, Trust.of(fingerprint=fingerprint or None))


def version_at(caller: Caller) -> str:
    """The version of the RenderAPI that answers. `NotAvailable` when none does, or its certificate is not trusted.
    Blocking."""
    try:
        answer = caller.ask("GET", HEALTH_PATH, timeout_s=TIMEOUT_S).json()
        return str(answer["version"])[:50]
    except Busy as error:
        raise NotAvailable(f"RenderAPI at {caller.url} is not ready: {error.message}.") from error
    except (KeyError, TypeError) as error:
        raise no_renderapi("it does not say its version") from error


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
