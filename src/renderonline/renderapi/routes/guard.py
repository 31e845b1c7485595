"""Before anything of a v2 request is read: who is asking, and how much they may send.

FastAPI reads a body before it looks at the caller; so this stands in front of it.
"""

import re
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from renderonline.farm.errors import RenderOnlineError
from renderonline.renderapi.errors import problem_of
from renderonline.renderapi.routes.bodies import bounded
from renderonline.renderapi.services import principal_of

V2: Final = "/renderapi/v2"
_OPEN: Final = frozenset({f"{V2}/machines/enroll", f"{V2}/session", f"{V2}/openapi.json", f"{V2}/docs"})
_OF_ATTEMPT: Final = re.compile(rf"{V2}/attempts/\d+/(inputs|outputs|previews)(/.*)?", re.ASCII | re.DOTALL)
"""Here the attempt's own token is the authority."""


def guard(app: ASGIApp) -> ASGIApp:
    """Middleware for `/renderapi/v2`: `request.state.principal` is there behind it, and bodies have an end."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path.startswith(f"{V2}/"):
            request = Request(scope)
            try:
                of_attempt = _OF_ATTEMPT.fullmatch(path)
                if path not in _OPEN and not of_attempt:
                    request.state.principal = await principal_of(request)
                # Those that take files bound their bodies themselves.
                if path != f"{V2}/tasks" and not path.startswith(f"{V2}/uploads") and not of_attempt:
                    receive = bounded(request, receive)
            except RenderOnlineError as error:
                await problem_of(error)(scope, receive, send)
                return
        await app(scope, receive, send)

    return guarded
