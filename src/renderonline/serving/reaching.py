"""How other computers reach this server, and what must be changed first when they don't."""

import contextlib
import socket
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from renderonline.serving.web import is_loopback

_SOMEWHERE: Final = ("192.0.2.1", 9)
"""An address that is nobody's (RFC 5737). Asked for the way there, the system names our own; nothing is sent."""
USUAL_PORT: Final = 5000


class Reach(NamedTuple):
    """The address for other computers; `first`: why it does not work there yet, with the line that helps; "" when it
    does."""

    url: str
    first: str = ""


def reach(asked: str, *, public_url: str, listens: str, is_doubtful: bool = False) -> Reach:
    """The address for others, of a server that `listens` there and was asked by the address `asked`. `public_url`: what
    an administrator says it is, "" for nothing. `is_doubtful`: a proxy that is not trusted passed the request on."""
    if public_url:
        return Reach(public_url.rstrip("/"))
    url, there = asked.rstrip("/"), urlsplit(asked)
    if is_doubtful:
        return Reach(url, "A proxy that is not trusted passed this on: name it in TrustedProxies, or set PublicUrl.")
    if not is_loopback(there.hostname or ""):
        return Reach(url)
    if is_loopback(listens):
        port = f" --port {there.port}" if there.port not in (None, USUAL_PORT) else ""
        why = f"Only this computer itself reaches {url}. For others start the farm so that they do"
        return Reach(url, f"{why}: renderonline up --host 0.0.0.0{port}")
    return Reach(f"{there.scheme}://{_bracketed(_own_address())}{f':{there.port}' if there.port else ''}")


def _own_address() -> str:
    """The address by which others in the network reach this computer, as far as it knows; else its name."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(_SOMEWHERE)
        return str(asking.getsockname()[0])
    return socket.gethostname()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
