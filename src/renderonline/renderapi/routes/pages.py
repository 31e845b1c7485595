"""The web page: its files, read once and sent compressed with a policy that lets nothing foreign in; and its sessions
(R11 Web authority). Programs send the headers email and token instead.

For those who run the farm: `/healthz`, `/metrics`, the page that documents the API, and where machines dial in.
"""

import asyncio
import gzip
import hashlib
import html
import mimetypes
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson
import prometheus_client as prometheus
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from renderonline import __version__
from renderonline.farm.accounts import Permission
from renderonline.farm.errors import NotFound
from renderonline.protocol.link import LINK_PATH
from renderonline.renderapi import task_views
from renderonline.renderapi.connected_machines import Machine
from renderonline.renderapi.services import (
    V2,
    Access,
    Json,
    Place,
    PlainRoute,
    PrincipalDep,
    Router,
    Sent,
    ServicesDep,
    declare,
    json_answer,
    services_of,
)
from renderonline.serving.admission import client_of, is_forwarded
from renderonline.serving.web import is_loopback, make_wheel, wheel_name

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


_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _StaticFile:
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
    index = _StaticFile("index.html", contents.pop("index.html").replace(_BASE, f"/web/{digest}/".encode()))
    files: Mapping[str, _StaticFile] = {name: _StaticFile(name, content) for name, content in contents.items()}

    async def page(request: Request) -> Response:
        return index.answer(request, "no-cache")

    async def page_file(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        return file.answer(request, _FOR_EVER if request.path_params["digest"] == digest else "no-cache")

    places = [PlainRoute(place, page, "GET", Access.OPEN) for place in _PLACES]
    return [*places, PlainRoute("/web/{digest}/{name:path}", page_file, "GET", Access.OPEN)]


class Credentials(Sent):
    email: str = Field(max_length=1_000)
    token: str = Field(max_length=1_000)


class TicketFor(Sent):
    path: Place


@router.call("POST", "/session", "Me", 201, needs=Access.OPEN)
async def log_in(request: Request, services: ServicesDep, body: Credentials) -> Response:
    """Begin a session of the web page: the answer sets its cookie."""
    principal, name = await services.sessions.log_in(request, body.email, body.token)
    await services.administration.used_on_the_page(body.token)
    response = json_answer(task_views.me(principal), 201)
    services.sessions.set_cookie(request, response, name)
    return response


@router.call("GET", "/session", "Login", needs=Access.OPEN)
async def logged_in(request: Request, services: ServicesDep) -> Json:
    """Whose session this is; null when nobody is logged in."""
    principal = await services.sessions.principal(request)
    return {"me": principal and task_views.me(principal)}


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


class Metrics:
    """The figures of one RenderAPI."""

    def __init__(self) -> None:
        self._registry = of = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=of)
        prometheus.GCCollector(registry=of)
        build = prometheus.Info("renderonline_build", "The version that runs.", registry=of)
        build.info({"version": __version__})
        labels = ("method", "endpoint", "status")
        self._requests = prometheus.Counter(
            "renderonline_requests", "Requests that were answered.", labels, registry=of
        )
        description = "Seconds until the head of the answer left."
        self._seconds = prometheus.Histogram(
            "renderonline_request_seconds", description, ("endpoint",), buckets=_BUCKETS, registry=of
        )

    def measured(self, app: ASGIApp) -> ASGIApp:
        """Middleware that counts requests, by the name of what answered them, and takes their time."""

        async def measure(scope: Scope, receive: Receive, send: Send) -> None:
            begun = time.perf_counter()

            async def sent(message: Message) -> None:
                if message["type"] == "http.response.start":
                    method = scope["method"] if scope["method"] in _METHODS else "other"
                    endpoint = getattr(scope.get("endpoint"), "__name__", "none")
                    self._requests.labels(method, endpoint, str(message["status"])).inc()
                    self._seconds.labels(endpoint).observe(time.perf_counter() - begun)
                await send(message)

            await app(scope, receive, sent if scope["type"] == "http" else send)

        return measure

    def _render(self, machines: Iterable[Machine], figures: Mapping[str, float]) -> bytes:
        """Everything in Prometheus' text form, with the machines and the farm's figures of now."""
        of = prometheus.CollectorRegistry()
        status = prometheus.Gauge("renderonline_machines", "Machines by status.", ("status",), registry=of)
        boxes = prometheus.Gauge("renderonline_boxes", "Machines by their box.", ("sandbox",), registry=of)
        description = "Files of tasks that a machine without the farm's directory began to fetch; their bytes."
        fetches = prometheus.Gauge("renderonline_input_downloads", description, ("machine",), registry=of)
        fetched = prometheus.Gauge("renderonline_input_bytes", description, ("machine",), registry=of)
        for machine in machines:
            status.labels(machine.status.value).inc()
            boxes.labels(machine.ability.sandbox.value).inc()
            if machine.fetches or machine.fetched_bytes:
                fetches.labels(str(machine.machine_id)).set(machine.fetches)
                fetched.labels(str(machine.machine_id)).set(machine.fetched_bytes)
        for name, value in figures.items():
            description = name.replace("_", " ").capitalize() + "."
            prometheus.Gauge(f"renderonline_{name}", description, registry=of).set(value)
        return bytes(prometheus.generate_latest(self._registry) + prometheus.generate_latest(of))

    async def metrics(self, request: Request) -> Response:
        """Figures for Prometheus: without a login on this computer, elsewhere for operators."""
        services = services_of(request)
        if not _is_local(request):
            (await services.callers.principal(request)).require(Permission.MACHINES)
        figures = self._render(services.farm.machines, services.dispatcher.figures())
        return Response(figures, media_type=prometheus.CONTENT_TYPE_LATEST)


def operation_routes(metrics: Metrics) -> list[BaseRoute]:
    """All of them."""
    calls = {
        "/install/{name}": _Wheel().answer,
        "/healthz": healthz,
        "/docs": to_docs,
        f"{V2}/docs": docs,
        f"{V2}/openapi.json": openapi,
    }
    opens = [PlainRoute(path, call, "GET", Access.OPEN) for path, call in calls.items()]
    return [*opens, PlainRoute("/metrics", metrics.metrics, "GET", Access.NEARBY), WebSocketRoute(LINK_PATH, link)]


class _Wheel:
    """This program, for computers that join; made when it is first asked for."""

    def __init__(self) -> None:
        self._name = wheel_name()
        self._made: asyncio.Task[bytes] | None = None

    async def answer(self, request: Request) -> Response:
        """The wheel of this version, for `pip install`."""
        if request.path_params["name"] != self._name:
            raise NotFound(f"There is {self._name or 'nothing'} to install here.")
        self._made = self._made or asyncio.create_task(asyncio.to_thread(make_wheel))
        return Response(await asyncio.shield(self._made), media_type="application/octet-stream")


async def healthz(request: Request) -> Response:
    """200 when the database answers and the dispatcher runs; says nothing about the farm."""
    well = await services_of(request).reading.healthy()
    content = {"status": "ok" if well else "database does not answer", "version": __version__}
    return json_answer(content, 200 if well else 503)


async def link(socket: WebSocket) -> None:
    """The link of one machine."""
    await services_of(socket).farm.links.endpoint(socket)


declare(link, Access.MACHINE)


def _is_local(request: Request) -> bool:
    """Whether a program on this computer asks: not for somebody behind a proxy, and not for a page in a browser whose
    own name was made to lead here."""
    return not is_forwarded(request) and is_loopback(client_of(request)) and is_loopback(request.url.hostname or "")


async def to_docs(_request: Request) -> Response:
    """The short address."""
    return RedirectResponse(f"{V2}/docs")


async def openapi(request: Request) -> Response:
    """The OpenAPI description."""
    return json_answer(request.app.openapi())


async def docs(request: Request) -> Response:
    """The OpenAPI description as one page that needs no script and no other server."""
    page = "".join(_page(request.app.openapi()))
    return HTMLResponse(page, headers={"Content-Security-Policy": _DOCS_POLICY})


_DOCS_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
details{border:1px solid #8884;border-radius:6px;margin:.4rem 0;padding:.3rem .8rem}summary{cursor:pointer}
code,pre{font:14px ui-monospace,monospace}b{display:inline-block;min-width:4.5rem}pre{overflow:auto}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#16181d}a{color:#8bf}}
"""


def _page(schema: Mapping[str, Any]) -> Iterator[str]:
    title = html.escape(schema["info"]["title"])
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
    yield f"<h1>{title}</h1><p>{html.escape(schema['info'].get('description', ''))}</p>"
    yield f'<p>Machine-readable: <a href="{V2}/openapi.json">openapi.json</a></p>'
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            yield from _operation(method, path, operation)
    yield "<h2>Shapes</h2>"
    for name, shape in sorted(schema["components"]["schemas"].items()):
        yield f"<details><summary><code>{html.escape(name)}</code></summary>{_json(shape)}</details>"


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<details><summary><b>{method.upper()}</b><code>{html.escape(path)}</code> "
    yield f"{html.escape(operation.get('summary', ''))}</summary><p>{html.escape(operation.get('description', ''))}</p>"
    for heading, key in (("Parameters", "parameters"), ("Body", "requestBody"), ("Answers", "responses")):
        if operation.get(key):
            yield f"<h4>{heading}</h4>{_json(operation[key])}"
    yield "</details>"


def _json(content: Any) -> str:
    return f"<pre>{html.escape(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())}</pre>"
