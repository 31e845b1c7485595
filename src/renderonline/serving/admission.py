"""Accepts connections, decides which are closed when there are too many (R14 Authority first), and determines the
client of a request behind a proxy.

Half of the file descriptors that the system allows are for connections, the other half for files, databases and child
processes. Connections are counted in groups: one for senders that have not authenticated, one for accounts, and a
reserve for the links of machines. A group that is too large closes connections of its own; no group can displace
another's. A new connection is accepted even if an older one of its group is closed for it: our clients authenticate
within milliseconds, so connections that were opened to stay silent are always the older ones.

Code that needs a request's client, scheme or host (limits, cookies, printed addresses, `/metrics`) asks Starlette, and
`Proxies` sets what Starlette answers. Headers of a proxy are only used if they come from an address of
`TrustedProxies`, because any other sender could forge them.
"""

import asyncio
import contextlib
import errno
import ipaddress
import re
import socket
import ssl
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from renderonline.farm.errors import InvalidRequest

log = structlog.get_logger(__name__)

GUEST: Final = "renderonline.guest"
"""The key in a request's state of the `Admission` and the `Guest` of its connection."""
IS_KNOWN: Final = "is_known"
"""The key in a request's state that is set when its sender has authenticated."""
MOST: Final = 16_384
"""The most connections, even with more descriptors, because each takes memory."""
DEFAULT_DESCRIPTORS: Final = 1024
_OPEN_MAX: Final = 10_240
HANDSHAKE_S: Final = 10.0
"""The longest TLS handshake; asyncio's default is a minute."""
AT_ONCE: Final = 64
"""Connections that are accepted before the event loop runs other tasks."""
PAUSE_S: Final = 0.05
"""How long accepting pauses when no descriptor is left, until closed connections have released theirs."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def raise_descriptors() -> None:
    """Raise this program's limit of open descriptors to the most that the system allows."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for limit in (hard, _OPEN_MAX):
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            except (OSError, ValueError):  # macOS reports an infinite hard limit and accepts no more than _OPEN_MAX
                continue
            return
        log.warning("the limit of open files can't be raised", limit=soft)


def most_connections() -> int:
    """Return how many connections this program's limit of descriptors allows."""
    soft = DEFAULT_DESCRIPTORS
    if sys.platform != "win32":
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        soft = 2 * MOST if soft == resource.RLIM_INFINITY else soft
    return max(16, min(soft // 2, MOST))


def source_of(address: str) -> str:
    """Return what counts as one address: for IPv6 its /64 network, in which one computer has any number of them."""
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))


@dataclass(eq=False, slots=True)
class Guest:
    """One connection. `who`: its authenticated account or machine, or "". `has_reserve`: it is the link of a machine,
    or comes from a trusted proxy with many clients. `is_busy`: whether we work on its request, instead of waiting for
    its sender. `end` closes it."""

    address: str
    socket: socket.socket
    who: str = ""
    has_reserve: bool = False
    is_busy: Callable[[], bool] = lambda: False
    end: Callable[[], None] = lambda: None
    crowds: "tuple[Crowd, ...]" = ()


Crowd = OrderedDict[Guest, None]
"""A group of connections that share a bound; the least recently used come first."""


class Admission:
    """All connections of one server, at most `most`; `is_proxy`: whether a trusted proxy has this address."""

    def __init__(self, most: int, is_proxy: Callable[[str], bool] = lambda _address: False) -> None:
        self._most = most
        self._is_proxy = is_proxy
        self._everybody, self._unknown, self._reserved = Crowd(), Crowd(), Crowd()
        self._addresses: defaultdict[str, Crowd] = defaultdict(Crowd)
        self._accounts: defaultdict[str, Crowd] = defaultdict(Crowd)

    def arrive(self, connection: socket.socket, address: str) -> Guest:
        """Count a new connection; an older one may be closed for it."""
        guest = Guest(source_of(address), connection, has_reserve=self._is_proxy(address))
        if guest.has_reserve:
            self._put(guest, self._reserved)
        else:
            neighbours = self._addresses[guest.address]
            self._put(guest, self._unknown, neighbours)
            self._shrink(neighbours, self._most // 4)
            self._shrink(self._unknown, self._most // 2)
        self._shrink_all()
        return guest

    def known(self, guest: Guest, who: str, *, is_link: bool) -> None:
        """Count a connection for its authenticated sender. `is_link`: it is the link of a machine."""
        if guest not in self._everybody:
            return
        if guest.has_reserve or guest.who == who:
            for crowd in guest.crowds:
                crowd.move_to_end(guest)
            return
        self.leave(guest)
        guest.who, guest.has_reserve = who, is_link
        if is_link:
            self._put(guest, self._reserved)
        else:
            crowd, most = self._accounts[who], self._most_of_accounts
            self._put(guest, crowd)
            self._shrink(crowd, most // 2)
            if sum(map(len, self._accounts.values())) > most:
                self._shrink(self._largest, len(self._largest) - 1)
        self._shrink_all()

    def leave(self, guest: Guest) -> None:
        """Remove a connection from its groups."""
        for crowd in guest.crowds:
            crowd.pop(guest, None)
        guest.crowds = ()
        if not self._addresses.get(guest.address, True):
            del self._addresses[guest.address]
        if not self._accounts.get(guest.who, True):
            del self._accounts[guest.who]

    def relieve(self) -> None:
        """Close one connection that has no reserve."""
        crowd = self._unknown or self._largest
        self._shrink(crowd, len(crowd) - 1)

    def end(self) -> None:
        """Close all connections."""
        for guest in list(self._everybody):
            guest.end()

    @property
    def _most_of_accounts(self) -> int:
        reserve = max(len(self._reserved), self._most // 8)
        return max(self._most // 8, self._most // 2 - reserve)

    @property
    def _largest(self) -> Crowd:
        return max(self._accounts.values(), key=len, default=Crowd())

    def _shrink_all(self) -> None:
        while len(self._everybody) > self._most and (self._unknown or self._accounts):
            self.relieve()

    def _shrink(self, crowd: Crowd, most: int) -> None:
        """Close the least recently used connections, those that are not busy first."""
        while crowd and len(crowd) > most:
            gone = next((guest for guest in crowd if not guest.is_busy()), next(iter(crowd)))
            self.leave(gone)
            gone.end()

    def _put(self, guest: Guest, *crowds: Crowd) -> None:
        guest.crowds = (self._everybody, *crowds)
        for crowd in guest.crowds:
            crowd[guest] = None


def let_in(connection: HTTPConnection, who: str, *, is_link: bool = False) -> None:
    """Note that the sender of this request has authenticated as the account or machine `who`, whose connections are
    counted together from now on. `is_link`: this is the WebSocket of a machine."""
    setattr(connection.state, IS_KNOWN, True)
    counted: Any = getattr(connection.state, GUEST, None)  # None under another server than ours
    if counted is not None:
        admission, guest = counted
        admission.known(guest, who, is_link=is_link)


class Acceptor:
    """Accepts connections of a listening socket and counts each from its first moment, also those that never finish
    their TLS handshake. When no descriptor is left it closes another connection. `make_protocol` returns the protocol
    that serves a guest."""

    def __init__(
        self,
        listener: socket.socket,
        admission: Admission,
        make_protocol: Callable[[Guest], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._listener, self._admission, self._make_protocol, self._tls = listener, admission, make_protocol, tls
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = self._loop.create_task(self._accept(), name="accept")
        self._reported = False

    def close(self) -> None:
        """Accept no further connections."""
        self._accepting.cancel()
        for task in self._tasks:
            task.cancel()

    async def _accept(self) -> None:
        while True:
            try:
                self._admit(*await self._loop.sock_accept(self._listener))
                with contextlib.suppress(BlockingIOError):
                    for _ in range(AT_ONCE):
                        self._admit(*self._listener.accept())
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._report(error)
                    self._admission.relieve()
                    await asyncio.sleep(PAUSE_S)
                # All other errors concern one connection, which is gone.

    def _report(self, error: OSError) -> None:
        if not self._reported:
            log.error("another connection can't be accepted", reason=error.strerror)
        self._reported = True

    def _admit(self, connection: socket.socket, peer: tuple[object, ...]) -> None:
        connection.setblocking(False)
        guest = self._admission.arrive(connection, str(peer[0]))
        guest.end = partial(_hang_up, connection)
        task = self._loop.create_task(self._join(guest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, guest: Guest) -> None:
        patience = HANDSHAKE_S if self._tls is not None else None
        try:
            await self._loop.connect_accepted_socket(
                partial(self._make_protocol, guest), guest.socket, ssl=self._tls, ssl_handshake_timeout=patience
            )
        except OSError:  # the handshake failed, so no answer can be sent
            self._admission.leave(guest)
        except BaseException:
            self._admission.leave(guest)
            raise


def _hang_up(connection: socket.socket) -> None:
    """Close a connection that has no protocol yet."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


FORWARDED: Final = "is_forwarded"
"""The key in a request's state: whether it came through a proxy, trusted or not."""
BELIEVED: Final = "is_believed"
"""The key in a request's state: whether it came from a trusted proxy."""
_PROXY_HEADERS: Final = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "x-real-ip", "via")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(\d{1,5}))?", re.ASCII)
_MOST_WARNINGS: Final = 8
MOST_HOPS: Final = 32
"""The most addresses of `X-Forwarded-For` that are examined, because a header can hold thousands."""


class Proxies:
    """The proxies whose headers are used: `trusted` addresses and networks. Raises `InvalidRequest` for others."""

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        try:
            self._networks = [ipaddress.ip_network(written.strip(), strict=False) for written in trusted]
        except ValueError as error:
            raise InvalidRequest(f"TrustedProxies takes addresses and networks like 10.0.0.0/8: {error}.") from error

    def trusts(self, address: str) -> bool:
        """Return whether a trusted proxy has this address."""
        found = _address(address) if self._networks else None
        return found is not None and any(found in network for network in self._networks)

    def believed(self, app: ASGIApp) -> ASGIApp:
        """Return `app` with a middleware that sets a request's client, scheme and host from the headers of trusted
        proxies."""
        warned: set[str] = set()

        async def believe(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                headers, peer = Headers(scope=scope), (scope.get("client") or ("",))[0]
                is_forwarded = any(name in headers for name in _PROXY_HEADERS)
                scope.setdefault("state", {})[FORWARDED] = is_forwarded
                scope["state"][BELIEVED] = self.trusts(peer)
                if self.trusts(peer):
                    scope = {**scope, **self._from_headers(scope, headers)}
                elif is_forwarded and peer not in warned and len(warned) < _MOST_WARNINGS:
                    warned.add(peer)
                    _warn(peer)
            await app(scope, receive, send)

        return believe

    def _from_headers(self, scope: Scope, headers: Headers) -> dict[str, Any]:
        """The request's client, scheme and host by the headers. Entries are read from the right, where our own trusted
        proxies wrote them; the first untrusted address is the client, and entries to its left may be forged."""
        place, found = 0, ""
        for number, hop in enumerate(reversed(_listed(headers, "x-forwarded-for")[-MOST_HOPS:])):
            if (address := _address(hop)) is None:
                break
            place, found = number, str(address)
            if not self.trusts(found):
                break
        changes: dict[str, Any] = {"client": (found, 0)} if found else {}
        scheme = _at(_listed(headers, "x-forwarded-proto"), place).casefold()
        if scheme in ("http", "https"):
            changes["scheme"] = scheme.replace("http", "ws") if scope["type"] == "websocket" else scheme
        host = _at(_listed(headers, "x-forwarded-host"), place)
        if is_host(host):
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            changes["headers"] = [(b"host", host.encode("ascii")), *others]
        return changes


def is_host(text: str) -> bool:
    """Return whether this can be the header `Host`: a name or an address, perhaps with a port."""
    match = _HOST.fullmatch(text)
    return match is not None and int(match[1] or 0) < 65_536


def is_forwarded(connection: HTTPConnection) -> bool:
    """Return whether any proxy passed this request on."""
    return bool(getattr(connection.state, FORWARDED, False))


def is_believed(connection: HTTPConnection) -> bool:
    """Return whether a trusted proxy passed this request on, so that its scheme and host are those of the client."""
    return bool(getattr(connection.state, BELIEVED, False))


def client_of(connection: HTTPConnection) -> str:
    """Return the address of the client of this request; "" if unknown."""
    return connection.client.host if connection.client is not None else ""


def _warn(peer: str) -> None:
    log.warning(
        "A proxy that is not trusted passes requests on: everybody behind it counts as one client, and cookies are not "
        "for HTTPS only. If it is yours, name its address in TrustedProxies.",
        proxy=peer,
    )


def _listed(headers: Headers, name: str) -> list[str]:
    return [entry.strip() for value in headers.getlist(name) for entry in value.split(",") if entry.strip()]


def _at(values: Sequence[str], place: int) -> str:
    """The value of the same proxy, counted from the right; a proxy may also replace all values by one."""
    return values[max(0, len(values) - 1 - place)] if values else ""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address as proxies write it, with or without a port, IPv6 perhaps in brackets; None if it is invalid."""
    match = re.fullmatch(r"\[(.*)\](:\d+)?|([^:]*):\d+", text)
    inner = (match[1] or match[3] or "") if match else text
    try:
        found = ipaddress.ip_address(inner.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
