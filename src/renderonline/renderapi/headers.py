"""Headers that every answer has: what other origins may do with it, and what a browser may."""

from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from renderonline.serving.web import is_loopback

_OPEN: Final = "/renderapi/"
"""Below it pages of every origin may call, with the headers email and token (R11 Web authority); nowhere else."""
_EXPOSED: Final = ("Content-Disposition", "Content-Range", "ETag", "Location", "Upload-Offset", "X-Log-Size")
_STRICT: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_HTTPS_S: Final = 31_536_000


def shared(app: ASGIApp) -> ASGIApp:
    """Middleware: pages of other origins may use the API."""
    opened = CORSMiddleware(
        app, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], max_age=600, expose_headers=_EXPOSED
    )

    async def share(scope: Scope, receive: Receive, send: Send) -> None:
        await (opened if scope.get("path", "").startswith(_OPEN) else app)(scope, receive, send)

    return share


def strict(app: ASGIApp) -> ASGIApp:
    """Middleware: a browser runs nothing of an answer, frames it nowhere and guesses no type, unless the answer has a
    policy of its own; a name that was reached by HTTPS stays with it."""

    async def restrict(scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        keeps = scope.get("scheme") == "https" and not is_loopback(host.rpartition(":")[0] or host)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _STRICT.items():
                    headers.setdefault(name, value)
                if keeps:
                    headers.setdefault("Strict-Transport-Security", f"max-age={_HTTPS_S}")
            await send(message)

        await app(scope, receive, sent if scope["type"] == "http" else send)

    return restrict
