"""Before anything of a v2 request is read: who is asking, and how much they may send.

FastAPI reads a body before it looks at the caller; so this stands in front of it.
"""

from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from renderonline.farm.errors import RenderOnlineError, TooLarge
from renderonline.renderapi.errors import problem_of
from renderonline.renderapi.routes.bodies import MAX_BODY, content_length
from renderonline.renderapi.services import principal_of

V2: Final = "/renderapi/v2"
_OPEN: Final = frozenset({f"{V2}/machines/enroll", f"{V2}/openapi.json", f"{V2}/docs"})
_UPLOADS: Final = frozenset({f"{V2}/tasks"})


class Guard:
    """Middleware for `/renderapi/v2`: `request.state.principal` is there behind it, and bodies have an end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(f"{V2}/"):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            if scope["path"] not in _OPEN:
                request.state.principal = await principal_of(request)
            if scope["path"] not in _UPLOADS:
                if (content_length(request) or 0) > MAX_BODY:
                    raise TooLarge(f"The body of this request has at most {MAX_BODY} bytes.")
                receive = _bounded(receive)
        except RenderOnlineError as error:
            await problem_of(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _bounded(receive: Receive) -> Receive:
    """`receive` that gives up on bodies without a length when they become too long."""
    read = 0

    async def bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > MAX_BODY:
            raise TooLarge(f"The body of this request has at most {MAX_BODY} bytes.")
        return message

    return bounded
