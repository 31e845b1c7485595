"""How a machine joins a farm, and whether this computer is fit to render for one (`renderonline node --check`).

With a join code a machine gets its secret, and learns which certificate to trust (R12 Tokens). A certificate that the
system trusts needs nothing more. A RenderAPI with a certificate of its own is named by the fingerprint (`sha256:…`):
the certificate is fetched, compared and stored, and from then on only this one is trusted. The check changes nothing.
"""

import getpass
import hashlib
import json
import os
import shutil
import ssl
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import cycle
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import structlog
from websockets.asyncio.client import ClientConnection, connect

from renderonline.engines.discovery import FoundEngine
from renderonline.farm.errors import InvalidRequest, NotAuthenticated, NotAvailable, RenderOnlineError
from renderonline.farm.needs import BoxKind
from renderonline.hpcserver.card_rack import find_cards
from renderonline.hpcserver.settings import NodeSettings
from renderonline.protocol.calls import Busy, Caller, Trust, by_proxy, no_renderapi, proxy_of
from renderonline.protocol.link import LINK_PATH, encode, from_wire
from renderonline.sandbox.box import Found, NoBox, probe
from renderonline.sandbox.privacy import private_read, write_private
from renderonline.serving.web import is_loopback

log = structlog.get_logger(__name__)

ENROLL_PATH: Final = "/renderapi/v2/machines/enroll"
HEALTH_PATH: Final = "/healthz"
TIMEOUT_S: Final = 15.0
FILE: Final = "machine.json"
LINK: Final[dict[str, Any]] = {
    "max_size": 16 * 1024 * 1024, "compression": None,
    "open_timeout": 15.0, "ping_interval": 10.0, "ping_timeout": 20.0, "close_timeout": 2.0,
}  # fmt: skip
"""How the WebSocket of the link is opened."""
LITTLE_BYTES: Final = 1_000_000_000
"""The check warns of less free space than this."""
_OTHERS: Final = stat.S_IRGRP | stat.S_IROTH
"""File modes that `sandbox.privacy.private_read` refuses."""


@dataclass(frozen=True, slots=True)
class Identity:
    """This machine as a member of a farm. `url`: the address of RenderAPI; several, of which one dispatches (R10
    Standby), are separated by commas. `certificate`: the PEM text of a pinned certificate, "" without one."""

    url: str
    machine_id: int
    secret: str
    certificate: str = ""

    def turns(self) -> "Iterator[Identity]":
        """The same identity with one address only, for each address in turn, again and again."""
        return cycle([replace(self, url=url) for url in self.url.split(",")])

    def is_of(self, url: str) -> bool:
        """Whether the farm at these addresses is this one: one address in common is enough."""
        return not {*self.url.split(",")}.isdisjoint(base(url).split(","))

    @property
    def link_url(self) -> str:
        return self.url.replace("http", "ws", 1) + LINK_PATH

    @property
    def where(self) -> str:
        """Its URL, and the proxy in front of it if there is one."""
        return self.url + by_proxy(self.link_url)

    @asynccontextmanager
    async def dial(self) -> AsyncIterator[ClientConnection]:
        """The open link; a pinned certificate was checked. Raises OSError, `WebSocketException` and `NotAvailable`."""
        tls, proxy = self.tls(), proxy_of(self.link_url)
        async with connect(self.link_url, ssl=tls, proxy=None if proxy is None else proxy.url, **LINK) as socket:
            if tls is not None:
                certificate = socket.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
                self.trust().check(self.url, certificate)
            yield socket

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


def read_identity(home: Path) -> Identity | None:
    """The identity that an earlier enrolment stored; None without one. Raises `InvalidRequest` for a broken file, or
    one that others may read."""
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


def identity_at(home: Path, url: str) -> Identity | None:
    """The identity that an earlier enrolment at this RenderAPI stored, with the addresses in `url`; None without one.
    Raises `InvalidRequest` for a broken file."""
    identity = read_identity(home)
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
    """Calls the RenderAPI at `url`, which this machine has not joined. Raises `InvalidRequest` for a wrong address or
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
    """The address of a RenderAPI as scheme, host, port and path without a slash at the end; several stay separated by
    commas. Raises `InvalidRequest`."""
    if "," in url:
        return ",".join(dict.fromkeys(base(one) for one in url.split(",")))
    parts = urlsplit(url.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.username:
        raise InvalidRequest(f"{url} is not the address of a RenderAPI. Write it like https://farm.example:5000.")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        log.warning("no TLS: this machine's secret can be read on the network", url=url)
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


class Level(StrEnum):
    """How bad a finding is. With a warning the machine renders; with an error it does not."""

    OK = "ok"
    WARNING = "WARNING"
    ERROR = "ERROR"


class CheckResult(NamedTuple):
    """One line of the check."""

    subject: str
    text: str
    level: Level = Level.OK


def findings(
    settings: NodeSettings, engines: Sequence[FoundEngine], url: str = "", fingerprint: str = ""
) -> Iterator[CheckResult]:
    """The results of all checks, in the order in which people read them. `url`: the farm to ask, "": the farm that this
    machine has joined. Blocks; calls the farm once."""
    try:
        found = probe(settings.sandbox)
        yield CheckResult("sandbox", *_box(found))
    except NoBox as error:
        found = Found()
        yield CheckResult("sandbox", error.message, Level.ERROR)
    yield account()
    yield _secrets(settings.home, found)
    yield from _engines(settings, engines)
    yield _cards(settings)
    yield _disk(settings.home)
    yield _farm(settings.home, url, fingerprint)


def box_summary(found: Found) -> str:
    """What a box does, in one line."""
    if found.kind == BoxKind.BWRAP:
        return f"{found.version}: engines see their task only, no network"
    if found.kind == BoxKind.LANDLOCK:
        return f"{found.version}: engines open no files of others, no network, but see that other processes exist"
    return "none: any scene can read and write what this account can"


def account() -> CheckResult:
    """The account whose rights the box, and engines without a box, have."""
    if os.geteuid() == 0:
        return CheckResult("user", "root: make an account for renderers", Level.WARNING)
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # an account that has no name
        name = f"number {os.geteuid()}"
    return CheckResult("user", name)


def _box(found: Found) -> tuple[str, Level]:
    advice = f". {'Better' if found.kind != BoxKind.NONE else 'Mend it'}: {found.advice}" if found.advice else ""
    return box_summary(found) + advice, Level.WARNING if found.kind == BoxKind.NONE else Level.OK


def _secrets(home: Path, found: Found) -> CheckResult:
    """Whether others can read the machine's secret: other accounts by its mode, engines when they have no box."""
    path = home / FILE
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return CheckResult("secrets", "none yet: this machine has joined no farm")
    except OSError as error:
        return CheckResult("secrets", f"{path} can't be read: {error.strerror}", Level.ERROR)
    name = f"{path.name} {stat.S_IMODE(mode):04o}"
    if mode & _OTHERS:
        return CheckResult("secrets", f"{name}, others can read it: chmod 600 {path}", Level.ERROR)
    if found.kind == BoxKind.NONE:
        return CheckResult("secrets", f"{name}, but engines can read it: they have no box", Level.WARNING)
    return CheckResult("secrets", f"{name}, not visible to engines")


def _engines(settings: NodeSettings, engines: Sequence[FoundEngine]) -> Iterator[CheckResult]:
    for engine in engines:
        yield CheckResult("engine", f"{engine.name} {engine.version}".strip() + f": {engine.prefix[0]}")
    there = {engine.name.casefold() for engine in engines}
    for name, program in settings.engines.items():
        if name.casefold() not in there:
            text = f"{name} of the settings is not there or does not answer: {program}"
            yield CheckResult("engine", text, Level.WARNING)
    if not engines and not settings.engines:
        text = "none found: renderonline engine install blender, or name one with --engine NAME=PATH"
        yield CheckResult("engine", text, Level.WARNING)


def _cards(settings: NodeSettings) -> CheckResult:
    cards = find_cards(settings.cards).cards
    described = [f"{card.name} ({card.kind}{f', {card.memory_mib} MiB' if card.memory_mib else ''})" for card in cards]
    return CheckResult("cards", ", ".join(described) or "none found: Cycles renders on the processor")


def _disk(home: Path) -> CheckResult:
    place = next(path for path in (home, *home.parents) if os.path.exists(path))
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return CheckResult("disk", f"{place} can't be used: {error.strerror}", Level.ERROR)
    if not os.access(place, os.W_OK | os.X_OK):
        return CheckResult("disk", f"{place} can't be written by this account", Level.ERROR)
    text = f"{free / 1e9:.1f} GB free in {place}"
    return CheckResult("disk", text, Level.OK if free >= LITTLE_BYTES else Level.WARNING)


def _farm(home: Path, url: str, fingerprint: str) -> CheckResult:
    try:
        identity = read_identity(home)
        if url and (identity is None or not identity.is_of(url)):
            identity, caller = None, caller_of(url, fingerprint)
        elif identity is not None:
            caller = identity.caller()
        else:
            return CheckResult(
                "farm", "not joined yet: renderonline machine invite, on the farm, prints the line to type"
            )
        version = version_at(caller)
    except RenderOnlineError as error:
        return CheckResult("farm", error.message, Level.ERROR)
    joined = ", not joined yet" if identity is None else f", joined as machine {identity.machine_id}"
    return CheckResult("farm", f"{caller.url} answers (RenderOnline {version}){joined}")
