"""`/renderapi/v2/session`: logging in and out of the web page (R11). Programs send the headers email and token."""

import orjson
from starlette.requests import Request
from starlette.responses import Response

from renderonline.renderapi import views
from renderonline.renderapi.routes.answers import Caller, Center, Json, Part
from renderonline.renderapi.routes.models import Credentials, TicketFor

router = Part(tags=["session"])


@router.call("POST", "/session", "Me", 201)
async def log_in(request: Request, center: Center, body: Credentials) -> Response:
    """Begin a session of the web page: the answer sets its cookie."""
    principal, name = await center.sessions.log_in(request, body.email, body.token)
    response = Response(orjson.dumps(views.me(principal)), 201, media_type="application/json")
    center.sessions.set_cookie(request, response, name)
    return response


@router.call("GET", "/session", "Login")
async def logged_in(request: Request, center: Center) -> Json:
    """Whose session this is; null when nobody is logged in."""
    principal = await center.sessions.principal(request)
    return {"me": principal and views.me(principal)}


@router.call("DELETE", "/session")
async def log_out(request: Request, center: Center) -> Response:
    """End the session."""
    await center.sessions.log_out(request)
    response = Response(status_code=204)
    center.sessions.set_cookie(request, response, "")
    return response


@router.call("POST", "/session/tickets", "Ticket", 201)
async def ticket(request: Request, _caller: Caller, center: Center, body: TicketFor) -> Json:
    """An address from which the browser itself can download a file, in this session only."""
    return {"url": center.sessions.ticket(request, body.path)}
