"""Who is the client: the other end of the connection, or whom a trusted proxy names.

Everything that asks for a request's client, scheme or host (limits, cookies, addresses that are printed, `/metrics`)
asks Starlette, and gets what stands here. Headers of a proxy count only when they come from an address of
`TrustedProxies`; anybody else could write them.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Any, Final

import structlog
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from renderonline.farm.errors import InvalidRequest

log = structlog.get_logger(__name__)

FORWARDED: Final = "is_forwarded"
"""What a request's state has when it came through a proxy, trusted or not."""
BELIEVED: Final = "is_believed"
"""What a request's state has when it came from a trusted proxy."""
_SIGNS: Final = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "x-real-ip", "via")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(\d{1,5}))?", re.ASCII)
_MOST_WARNINGS: Final = 8
MOST_HOPS: Final = 32
"""Addresses of `X-Forwarded-For` that are looked at; a header holds thousands."""


class Proxies:
    """The proxies whose word counts: `trusted` addresses and networks. `InvalidRequest` for what is neither."""

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        try:
            self._networks = [ipaddress.ip_network(one.strip(), strict=False) for one in trusted]
        except ValueError as error:
            raise InvalidRequest(f"TrustedProxies takes addresses and networks like 10.0.0.0/8: {error}.") from error

    def trusts(self, address: str) -> bool:
        """Whether a trusted proxy has this address."""
        found = _address(address) if self._networks else None
        return found is not None and any(found in network for network in self._networks)

    def believed(self, app: ASGIApp) -> ASGIApp:
        """Middleware: behind it client, scheme and host of a request are those of who sent it first."""
        warned: set[str] = set()

        async def believe(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                headers, peer = Headers(scope=scope), (scope.get("client") or ("",))[0]
                is_forwarded = any(sign in headers for sign in _SIGNS)
                scope.setdefault("state", {})[FORWARDED] = is_forwarded
                scope["state"][BELIEVED] = self.trusts(peer)
                if self.trusts(peer):
                    scope = {**scope, **self._told(scope, headers)}
                elif is_forwarded and peer not in warned and len(warned) < _MOST_WARNINGS:
                    warned.add(peer)
                    _warn(peer)
            await app(scope, receive, send)

        return believe

    def _told(self, scope: Scope, headers: Headers) -> dict[str, Any]:
        """What the proxies say of a request. The proxy next to the client counts: those nearer to us are trusted, and
        what stands further left somebody else may have written."""
        place, found = 0, ""
        for number, hop in enumerate(reversed(_listed(headers, "x-forwarded-for")[-MOST_HOPS:])):
            if (address := _address(hop)) is None:
                break
            place, found = number, str(address)
            if not self.trusts(found):
                break
        told: dict[str, Any] = {"client": (found, 0)} if found else {}
        scheme = _at(_listed(headers, "x-forwarded-proto"), place).casefold()
        if scheme in ("http", "https"):
            told["scheme"] = scheme.replace("http", "ws") if scope["type"] == "websocket" else scheme
        host = _at(_listed(headers, "x-forwarded-host"), place)
        if is_host(host):
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            told["headers"] = [(b"host", host.encode("ascii")), *others]
        return told


def is_host(text: str) -> bool:
    """Whether this can be the header `Host`: a name or an address, perhaps with a port."""
    match = _HOST.fullmatch(text)
    return match is not None and int(match[1] or 0) < 65_536


def is_forwarded(connection: HTTPConnection) -> bool:
    """Whether some proxy passed this request on."""
    return bool(getattr(connection.state, FORWARDED, False))


def is_believed(connection: HTTPConnection) -> bool:
    """Whether a trusted proxy passed this request on, so that its scheme and host are what the client used."""
    return bool(getattr(connection.state, BELIEVED, False))


def client_of(connection: HTTPConnection) -> str:
    """The address of who sent this request; "" when that can't be known."""
    return connection.client.host if connection.client is not None else ""


def _warn(peer: str) -> None:
    log.warning(
        "A proxy that is not trusted passes requests on: everybody behind it counts as one client, and cookies are not "
        "for HTTPS only. If it is yours, name its address in TrustedProxies.",
        proxy=peer,
    )


def _listed(headers: Headers, name: str) -> list[str]:
    return [one.strip() for value in headers.getlist(name) for one in value.split(",") if one.strip()]


def _at(values: Sequence[str], place: int) -> str:
    """What the same proxy wrote, counted from the right; a proxy may also write one value in place of all others."""
    return values[max(0, len(values) - 1 - place)] if values else ""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address as proxies write it: with or without a port, IPv6 perhaps in brackets."""
    match = re.fullmatch(r"\[(.*)\](:\d+)?|([^:]*):\d+", text)
    inner = (match[1] or match[3] or "") if match else text
    try:
        found = ipaddress.ip_address(inner.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
