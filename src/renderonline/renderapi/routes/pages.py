"""The web page: its files, read once and sent compressed with a policy that lets nothing foreign in; and its sessions
(R11 Web authority). Programs send the headers email and token instead."""

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from renderonline.renderapi import views
from renderonline.renderapi.routes.models import Credentials, TicketFor
from renderonline.renderapi.routes.router import (
    Access,
    Json,
    PlainRoute,
    PrincipalDep,
    Router,
    ServicesDep,
    json_answer,
)

router = Router("session")

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}
_PLACES: Final = ("/", "/login", "/submit", "/farm", "/admin", "/admin/{part}", "/tasks/{task_id:int}")
"""Addresses at which the page stands; what is shown there the page decides."""
_BASE: Final = b"/web/-/"
"""How the page names its files; the digest of all of them takes the place of the dash, so that they may be kept."""
_FOR_EVER: Final = "public, max-age=31536000, immutable"


class _File:
    def __init__(self, name: str, content: bytes) -> None:
        self.plain, self.packed = content, gzip.compress(content, 9, mtime=0)
        self.etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        self.media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if name.endswith(".js"):  # what the system says of it differs
            self.media_type = "text/javascript"

    def answer(self, request: Request, cache: str) -> Response:
        headers = {**_HEADERS, "ETag": self.etag, "Cache-Control": cache}
        if self.etag in {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}:
            return Response(status_code=304, headers=headers)
        body = self.plain
        if "gzip" in request.headers.get("accept-encoding", "") and len(self.packed) < len(body):
            body, headers = self.packed, {**headers, "Content-Encoding": "gzip"}
        return Response(body, headers=headers, media_type=self.media_type)


def routes(directory: Path) -> list[BaseRoute]:
    """The page in `directory`, its files read now."""
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    contents = {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}
    digest = hashlib.sha256(b"".join(name.encode() + content for name, content in contents.items())).hexdigest()[:16]
    index = _File("index.html", contents.pop("index.html").replace(_BASE, f"/web/{digest}/".encode()))
    files: Mapping[str, _File] = {name: _File(name, content) for name, content in contents.items()}

    async def page(request: Request) -> Response:
        return index.answer(request, "no-cache")

    async def page_file(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        return file.answer(request, _FOR_EVER if request.path_params["digest"] == digest else "no-cache")

    places = [PlainRoute(place, page, "GET", Access.OPEN) for place in _PLACES]
    return [*places, PlainRoute("/web/{digest}/{name:path}", page_file, "GET", Access.OPEN)]


@router.call("POST", "/session", "Me", 201, needs=Access.OPEN)
async def log_in(request: Request, services: ServicesDep, body: Credentials) -> Response:
    """Begin a session of the web page: the answer sets its cookie."""
    principal, name = await services.sessions.log_in(request, body.email, body.token)
    await services.administration.used_on_the_page(body.token)
    response = json_answer(views.me(principal), 201)
    services.sessions.set_cookie(request, response, name)
    return response


@router.call("GET", "/session", "Login", needs=Access.OPEN)
async def logged_in(request: Request, services: ServicesDep) -> Json:
    """Whose session this is; null when nobody is logged in."""
    principal = await services.sessions.principal(request)
    return {"me": principal and views.me(principal)}


@router.call("DELETE", "/session", needs=Access.OPEN)
async def log_out(request: Request, services: ServicesDep) -> Response:
    """End the session."""
    await services.sessions.log_out(request)
    response = Response(status_code=204)
    services.sessions.set_cookie(request, response, "")
    return response


@router.call("POST", "/session/tickets", "Ticket", 201, needs=Access.ACCOUNT)
async def ticket(request: Request, _caller: PrincipalDep, services: ServicesDep, body: TicketFor) -> Json:
    """An address from which the browser itself can download a file, in this session only."""
    return {"url": services.sessions.ticket(request, body.path)}
