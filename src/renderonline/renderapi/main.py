"""The program RenderAPI: serve until somebody says stop, and tell where.

Its one ASGI application: everything is made, joined and ended here; standing by (R10 Standby); errors as RFC 9457
problem JSON with a stable `code`, for everything but v1; the headers that every answer has; and how the API describes
itself.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, get_type_hints

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from renderonline import __version__
from renderonline.database import submission_rows, upkeep
from renderonline.database.administration_rows import JoinCode
from renderonline.database.door import Database, IdBlocks
from renderonline.database.listing_rows import AttemptView, ChunkView, ResultView, TaskView
from renderonline.database.standby import BEATS, LOOKS, Lease, Overtaken
from renderonline.database.submission_rows import EngineRow
from renderonline.engines.definition import Argument, FrameArguments
from renderonline.farm.accounts import Role, Subscription, User
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import Conflict, InvalidRequest, NotAvailable, RenderOnlineError
from renderonline.farm.needs import BoxKind
from renderonline.farm.tasks import AttemptState, ChunkKind, ChunkState, Outcome
from renderonline.renderapi.administration import announce_login, bootstrap
from renderonline.renderapi.requests import SubmitRequest, UploadRequest
from renderonline.renderapi.routes import existing, farm_routes, pages, task_routes
from renderonline.renderapi.services import V2, Services, check_declared, json_answer
from renderonline.renderapi.settings import Settings
from renderonline.renderapi.task_views import HIDDEN, shown_name
from renderonline.sandbox.box import probe
from renderonline.sandbox.privacy import keep_private, write_private
from renderonline.serving import web
from renderonline.serving.admission import raise_descriptors
from renderonline.serving.settings import configure_logs
from renderonline.serving.web import is_loopback
from renderonline.storage.confined import NewUpload
from renderonline.storage.disk import make_places

log = structlog.get_logger(__name__)

READY_FILE: Final = "renderapi.json"
"""In the data directory while RenderAPI answers: {url, pid}."""
FORGET_S: Final = 3600.0
"""How often old idempotency keys are removed."""
STANDBY: Final = "standby"
"""The code of an answer that says: ask the RenderAPI that dispatches."""
_OPEN: Final = "/renderapi/"
"""Below it pages of every origin may call, with the headers email and token (R11 Web authority); nowhere else."""
_EXPOSED: Final = ("Content-Disposition", "Content-Range", "ETag", "Location", "Upload-Offset", "X-Log-Size")
_STRICT: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_HTTPS_S: Final = 31_536_000
_CODES: Final[Mapping[int, str]] = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_HANDLED: Final = (RenderOnlineError, HTTPException, RequestValidationError, ClientDisconnect, Exception)


def run(settings: Settings, web_page: Path | None = None) -> None:
    """Run RenderAPI until SIGTERM or SIGINT, with the page of this directory at `/`. Raises one of `farm.errors` when
    it can't start."""
    configure_logs(json_lines=settings.log_json, level=settings.log_level)
    raise_descriptors()
    keep_private()
    box = probe(settings.sandbox)
    if box.kind == BoxKind.NONE:
        log.warning("NO BOX around what reads users' scenes and ZIPs", advice=box.advice)
    web.run(serve(settings, web_page))


async def serve(settings: Settings, web_page: Path | None = None) -> None:
    """`run` inside an event loop."""
    app = create_app(settings, web_page)
    standby: Standby = app.state.standby
    ready_file = settings.data_directory / READY_FILE
    announcing: list[asyncio.Task[None]] = []

    async def announce(url: str) -> None:
        if standby.why_not:
            log.info("RenderAPI stands by", url=url)
        await standby.begun.wait()
        announce_login(settings.data_directory, url)
        write_private(ready_file, json.dumps({"url": url, "pid": os.getpid()}))
        log.info("RenderAPI answers", url=url)

    if not web.is_loopback(settings.host) and settings.certificate is None:
        log.warning(
            "RenderAPI listens beyond this computer WITHOUT TLS: tokens and scenes travel in the clear. "
            "Give a certificate, or put a proxy with TLS in front and name its address in TrustedProxies.",
            host=settings.host,
        )
    try:
        await web.serve(
            app,
            host=settings.host,
            port=settings.port,
            certificate=settings.certificate,
            on_ready=lambda url: announcing.append(asyncio.create_task(announce(url))),
            on_stop=lambda: app.state.services.events.close() if standby.begun.is_set() else None,
            grace_s=settings.grace_s,
            is_proxy=settings.proxies.trusts,
        )
        if standby.failure is not None:
            raise standby.failure
    finally:
        for task in announcing:
            task.cancel()
        with contextlib.suppress(OSError, ValueError):
            if json.loads(ready_file.read_text(encoding="utf-8")).get("pid") == os.getpid():
                ready_file.unlink()
    log.info("RenderAPI has ended")


def create_app(settings: Settings, web: Path | None = None) -> FastAPI:
    """The application. Its lifespan opens the database, takes the lease and starts the dispatcher; what goes wrong
    there is raised as one of `farm.errors`. While another RenderAPI has the lease it stands by and takes over
    (R10 Standby). `web`: the directory of the page that stands at `/`."""
    metrics, believed = pages.Metrics(), settings.proxies.believed
    app = FastAPI(
        title="RenderOnline",
        version=__version__,
        description="The API of a render farm. Every call carries the headers email and token.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lambda app: _lifespan(app, settings),
        exception_handlers=dict.fromkeys(_HANDLED, _answer),
        middleware=[*map(Middleware, (believed, strict, shared, metrics.measured, only_dispatching))],
    )
    app.state.standby = Standby()
    app.router.routes += [
        *existing.routes(),
        *pages.operation_routes(metrics),
        *(pages.routes(web) if web is not None else []),
    ]
    for router in (task_routes.router, task_routes.upload_router, farm_routes.router, pages.router):
        app.include_router(router, prefix=V2)
    check_declared(app.routes)
    app.openapi = partial(_openapi, app, app.openapi)  # type: ignore[method-assign]
    return app


def problem(
    status: int, detail: str, code: str, headers: Mapping[str, str] | None = None, more: Mapping[str, Any] | None = None
) -> Response:
    """An answer that says what went wrong and what to do; `more` is for programs."""
    title = HTTPStatus(status).phrase
    content = {"type": f"urn:renderonline:{code}", "title": title, "status": status, "detail": detail, "code": code}
    content |= more or {}
    return Response(orjson.dumps(content), status, dict(headers or {}), "application/problem+json")


def problem_of(error: RenderOnlineError) -> Response:
    if error.status >= 500:
        log.warning("request failed", code=error.reason_code, reason=error.message)
    headers = {"Retry-After": "5"} if error.status == 503 else {}
    if "offset" in error.details:
        headers["Upload-Offset"] = str(error.details["offset"])
    return problem(error.status, error.message, error.reason_code, headers, error.details)


async def _answer(_request: Request, error: Exception) -> Response:
    match error:
        case RenderOnlineError():
            return problem_of(error)
        case HTTPException():  # Starlette's: no such path, no such method
            detail = error.detail if error.status_code != 404 else "There is nothing at this address."
            return problem(error.status_code, detail, _CODES.get(error.status_code, "error"), error.headers)
        case RequestValidationError():  # FastAPI's: which field, and what it should be
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"][1:]) or "body"
            return problem_of(InvalidRequest(f"{place}: {first['msg']}."))
        case ClientDisconnect():
            return Response(status_code=400)  # the client is gone; nobody reads this
        case _:  # a fault of ours; the server logs it whole
            return problem(500, "RenderAPI met an unexpected error; its log says more.", "internal_error")


def shapes() -> dict[str, Any]:
    """The shapes of all answers as JSON schemas by name: made when somebody asks for the documentation."""
    from pydantic import TypeAdapter, create_model
    from pydantic.json_schema import models_json_schema

    def shape(called: str, row: type | None = None, /, **more: Any) -> Any:
        hints = {key: hint for key, hint in get_type_hints(row).items() if key not in HIDDEN} if row else {}
        members = {shown_name(key): str | None if key.endswith("_us") else hint for key, hint in hints.items()} | more
        given: dict[str, Any] = {key: hint if isinstance(hint, tuple) else (hint, ...) for key, hint in members.items()}
        return create_model(called, **given)

    text, texts = str | None, list[str]
    offer: Any = shape("EngineOffer", name=str, version=str, renderers=texts)
    of_definition = {"label": str, "extensions": texts, "split": str, "frames": FrameArguments | None, "facts": str}
    slots = {"slots": int, "slots_claimed": int, "slots_allowed": int, "tags": texts, "own_tags": texts}
    at_work = {"engines": tuple[offer, ...], "attempts": list[int], **slots}
    result: Any = shape("Result", ResultView, preview=bool, integrity=str, called=str)
    part: Any = shape("UploadFile", name=str, size=int, offset=int, missing=(list[tuple[int, int]], []))
    of_scene = {"size": int, "version": str, "scenes": list[dict[str, Any]], "external": list[dict[str, Any]]}
    of_scene |= {"external_count": int, "unbaked": list[str]}
    limits = {"queue_limit": int, "keep_mib": int, "kept_bytes": int}
    address = {"kind": str, "ip_address": str, "port": int, "sandbox": str, "sandbox_advice": str}
    one = [
        shape("User", User),
        shape("Subscription", Subscription),
        shape("Engine", EngineRow, **of_definition, arguments=list[Argument]),
        shape("ArgType", ArgType),
        shape("Machine", None, machine_id=int, name=str, **address, status=str, wish=str, reason=str, **at_work),
        shape(
            "Task",
            TaskView,
            frames=text,
            progress=float,
            latest=result | None,
            integrity=text,
            missing_inputs=texts,
            stuck=text,
        ),
        shape("Chunk", ChunkView, kind=ChunkKind, state=ChunkState),
        shape("Attempt", AttemptView, state=AttemptState, outcome=Outcome | None, progress=float | None),
        result,
    ]
    others = [
        *(
            shape(f"{kind.__name__}s", items=list[kind], next=text)  # type: ignore[valid-type]  # a shape made here
            for kind in one
        ),
        shape("Upload", None, upload_id=str, files=list[part], complete=bool),
        shape("Me", User, role=Role, permissions=texts),
        shape("Account", User, role=Role, permissions=texts, sends_mail=bool, **limits),
        shape("UserWithToken", User, token=str),
        shape("Token", token=str),
        shape("Ticket", url=str),
        shape("Login", me=dict[str, Any] | None),
        shape("Invited", JoinCode, command=str, first=text, install=text),
        shape("SceneFacts", **of_scene, warnings=texts, missing_inputs=texts),
        shape("Inputs", scene=str, files=list[dict[str, Any]]),
        shape("Enrolled", machine_id=int, secret=str),
        shape("Reasons", reasons=texts),
        shape("Problem", type=str, title=str, status=int, detail=str, code=str),
    ]
    everything = [(kind, "serialization") for kind in (*one, *others)]
    place = "#/components/schemas/{model}"
    # Pydantic takes any type that it can describe; its signature says: models only.
    found = models_json_schema(everything, ref_template=place)[1]  # type: ignore[arg-type]
    taken: dict[str, Any] = {}
    for kind in (SubmitRequest, UploadRequest, NewUpload):
        schema = TypeAdapter(kind).json_schema(ref_template=place)
        taken |= schema.pop("$defs", {}) | {kind.__name__: schema}
    return {**found["$defs"], **taken}


def _openapi(app: FastAPI, generate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """FastAPI's description of the calls, with our shapes of the answers."""
    if app.openapi_schema is None:
        schema = generate()
        schema["components"]["schemas"] |= shapes()
        app.openapi_schema = schema
    return app.openapi_schema


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI, settings: Settings) -> AsyncIterator[None]:
    """Open everything in order, and close it in the opposite one whatever happens."""
    standby: Standby = app.state.standby
    loop = asyncio.get_running_loop()

    def lost() -> None:
        loop.call_soon_threadsafe(standby.lost)

    async with contextlib.AsyncExitStack() as stack:
        database = await _open_database(settings, stack)
        lease = Lease.of(database, "RenderAPI", lease_s=settings.lease_s, on_lost=lost)
        stack.callback(lease.release)
        begin = partial(_begin, app, settings, database, lease, stack)
        waiting = None
        if await asyncio.to_thread(lease.take):
            await begin()
        else:
            waiting = asyncio.create_task(standby.wait_for(lease, settings.lease_s, begin), name="standby")
        try:
            yield
        finally:
            if waiting is not None:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)


async def _begin(
    app: FastAPI,
    settings: Settings,
    database: Database,
    lease: Lease,
    stack: contextlib.AsyncExitStack,
) -> None:
    await asyncio.to_thread(_prepare, database, lease, settings)
    ids = await asyncio.to_thread(IdBlocks, database)
    looking = asyncio.create_task(_look_after(database, lease, ids, settings.lease_s / BEATS), name="look-after")
    stack.callback(looking.cancel)
    app.state.services = made = Services(settings, database, ids)
    stack.callback(made.events.close)
    stack.push_async_callback(made.notifier.close)
    await made.notifier.open(settings.notify, settings.notify_mail)
    stack.push_async_callback(made.intake.close)
    await made.housekeeping.sweep_uploads()
    stack.push_async_callback(made.dispatcher.stop)
    await made.dispatcher.start()
    keeping = asyncio.create_task(made.housekeeping.run(), name="housekeeping")
    stack.callback(keeping.cancel)
    delivering = asyncio.create_task(made.deliverer.run(), name="deliveries")
    stack.callback(delivering.cancel)
    app.state.standby.begin()


async def _open_database(settings: Settings, stack: contextlib.AsyncExitStack) -> Database:
    """The database; one that is not our own file only with the schema that we need."""
    await asyncio.to_thread(make_places, settings.data_directory.absolute(), settings.files, settings.files_mode)
    database = await asyncio.to_thread(Database.open, settings.database, idle_s=settings.lease_s)
    stack.push_async_callback(database.close)
    if database.dialect != "sqlite" and not await asyncio.to_thread(upkeep.is_current, database):
        raise Conflict(
            f"The database {database.place.label} does not have the schema of this version. "
            "Make a backup, then run: renderonline db migrate"
        )
    return database


def _prepare(database: Database, lease: Lease, settings: Settings) -> None:
    """Prepare the database: our own SQLite file gets the newest schema, and every farm an administrator."""
    if database.dialect == "sqlite":
        upkeep.migrate(database, lease=lease)
    bootstrap(database, files=settings.files, data_directory=settings.data_directory, now_us=time.time_ns() // 1000)


async def _look_after(database: Database, lease: Lease, ids: IdBlocks, every_s: float) -> None:
    """Keep the lease fresh and blocks of ids full for as long as we run."""
    forgotten = 0.0
    while True:
        await asyncio.sleep(every_s)
        try:
            await asyncio.to_thread(lease.verify)
            await ids.refill()
            if time.monotonic() - forgotten > FORGET_S:
                forgotten = time.monotonic()
                await database.write(partial(submission_rows.forget_old, now_us=time.time_ns() // 1000))
        except Overtaken:
            return  # `lost` ends this program
        except NotAvailable as error:
            log.warning("database does not answer", reason=error.message)


class Standby:
    """`why_not`: why this RenderAPI answers nobody, "" once it dispatches; `begun` is set then. `failure`: why it ends
    by itself."""

    def __init__(self) -> None:
        self.why_not = "RenderAPI is about to start."
        self.begun = asyncio.Event()
        self.failure: RenderOnlineError | None = None

    def begin(self) -> None:
        self.why_not = ""
        self.begun.set()

    def end(self, error: RenderOnlineError) -> None:
        """Answer nobody any more and end the program."""
        if self.failure is None:
            log.critical("this RenderAPI ends", reason=error.message)
            self.why_not, self.failure = error.message, error
            os.kill(os.getpid(), signal.SIGTERM)

    def lost(self) -> None:
        """Another RenderAPI has the lease."""
        self.end(Overtaken("Another RenderAPI has taken over the database while this one stood still."))

    async def wait_for(self, lease: Lease, lease_s: float, start: Callable[[], Awaitable[None]]) -> None:
        """Stand by until the lease is ours, then `start`."""
        try:
            while not await self._taken(lease):
                self.why_not = f"This RenderAPI stands by. {lease.holder} dispatches; ask that one."
                await asyncio.sleep(lease_s / LOOKS)
            log.info("this RenderAPI takes over", after=lease.holder)
            await start()
        except RenderOnlineError as error:
            self.end(error)
        except Exception as error:  # whatever fails must end this program: another one can take over
            log.exception("taking over failed")
            self.end(RenderOnlineError(f"Taking over failed: {error}."))

    async def _taken(self, lease: Lease) -> bool:
        try:
            return await asyncio.to_thread(lease.take)
        except NotAvailable as error:
            log.warning("database does not answer", reason=error.message)
            return False


def only_dispatching(app: ASGIApp) -> ASGIApp:
    """Middleware: while another RenderAPI dispatches, `/healthz` says `standby` and everything else is answered 503."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        standby: Standby = scope["app"].state.standby
        if not standby.why_not or scope["type"] == "lifespan":
            await app(scope, receive, send)
        elif scope["path"] == "/healthz" and standby.failure is None:
            await json_answer({"status": STANDBY, "version": __version__})(scope, receive, send)
        else:
            await problem(503, standby.why_not, STANDBY, {"Retry-After": "1"})(scope, receive, send)

    return answer


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
