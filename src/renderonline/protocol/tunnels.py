"""The way out of a network: which proxy leads to an address, by HTTPS_PROXY and its kin.

Every connection through a proxy is a tunnel (CONNECT): certificates are checked, and tokens sent, at its far end.
Loopback is never sent through one. Standard library only.
"""

import base64
import http.client
import ipaddress
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from renderonline.farm.errors import InvalidRequest

_PORT: Final = 80
"""Of a proxy whose address names none."""
_SECURE: Final = frozenset({"https", "wss"})


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `credentials` are what its address holds before the `@`, "" for none; they are never shown."""

    host: str
    port: int
    credentials: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """What may be shown of it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Its address, with its credentials."""
        return f"http://{self.credentials}@{self.name}" if self.credentials else f"http://{self.name}"

    @property
    def headers(self) -> dict[str, str]:
        """What it wants to read before it lets anybody through."""
        if not self.credentials:
            return {}
        return {"Proxy-Authorization": f"Basic {base64.b64encode(unquote(self.credentials).encode()).decode()}"}


def proxy_of(url: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy on the way to `url` (http, https, ws or wss), None for none. `InvalidRequest` for one that can't be
    used; what its address holds is not shown."""
    parts = urlsplit(url)
    scheme = "https" if parts.scheme in _SECURE else "http"
    port = parts.port or (443 if scheme == "https" else 80)
    if not parts.hostname or _is_direct(parts.hostname, port, environment):
        return None
    for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"):
        if value := environment.get(name, "").strip():
            return _proxy(name, value)
    return None


def connection(
    url: SplitResult, timeout_s: float, context: ssl.SSLContext | None, **about: Any
) -> http.client.HTTPConnection:
    """A connection to the address, through its proxy if there is one, to be made when it is used. `context`: how its
    certificate is trusted, None without TLS."""
    proxy, host, port = proxy_of(url.geturl()), url.hostname or "", url.port or (443 if context else 80)
    place = (host, port) if proxy is None else (proxy.host, proxy.port)
    made: http.client.HTTPConnection
    if context is None:
        made = http.client.HTTPConnection(*place, timeout=timeout_s, **about)
    else:
        made = http.client.HTTPSConnection(*place, timeout=timeout_s, context=context, **about)
    if proxy is not None:
        made.set_tunnel(host if host.isascii() else host.encode("idna").decode(), port, proxy.headers)
    return made


def told(url: str) -> str:
    """Which way leads to `url`, to be put behind it in a message; "" for the direct one."""
    proxy = proxy_of(url)
    return "" if proxy is None else f" (through the proxy {proxy.name})"


def _proxy(name: str, value: str) -> Proxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname or "", parts.port or _PORT
    except ValueError:
        host, port, parts = "", 0, urlsplit("")
    if parts.scheme != "http" or not host or not host.isprintable() or " " in host:
        raise InvalidRequest(
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
    """The hosts that are named, those with another port left out."""
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
