"""RenderAPI as one ASGI application: everything is made, joined and ended here."""

import asyncio
import contextlib
import hashlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import WebSocketRoute

from renderonline import __version__
from renderonline.database import Database, migrating, submissions
from renderonline.database.ids import IdBlocks
from renderonline.database.lease import BEATS, Lease, Overtaken
from renderonline.farm.errors import Conflict, NotAvailable, RenderOnlineError
from renderonline.protocol.link import LINK_PATH
from renderonline.renderapi import errors, views
from renderonline.renderapi.administration import Administration
from renderonline.renderapi.attempt_transfers import AttemptTransfers
from renderonline.renderapi.auth import Authenticator
from renderonline.renderapi.bootstrap import bootstrap
from renderonline.renderapi.control import Control
from renderonline.renderapi.dispatch import Dispatcher
from renderonline.renderapi.enrolments import Enrolments
from renderonline.renderapi.events import Events
from renderonline.renderapi.metrics import MeasuredRequests, Metrics
from renderonline.renderapi.notifying import Notifier
from renderonline.renderapi.previews import Previews
from renderonline.renderapi.reading import Reading
from renderonline.renderapi.routes import (
    ops,
    pages,
    v1,
    v2_attempts,
    v2_farm,
    v2_previews,
    v2_session,
    v2_tasks,
    v2_uploads,
)
from renderonline.renderapi.routes.guard import V2, Guard
from renderonline.renderapi.services import Services
from renderonline.renderapi.sessions import Sessions
from renderonline.renderapi.settings import Settings
from renderonline.renderapi.standby import OnlyDispatching, Standby
from renderonline.renderapi.submissions import Submissions
from renderonline.serving.web import TlsFiles

log = structlog.get_logger(__name__)

FORGET_S: Final = 3600.0
"""How often old idempotency keys are removed."""

_OPEN: Final[dict[str, Any]] = {"allow_origins": ["*"], "allow_methods": ["*"], "allow_headers": ["*"], "max_age": 600}
_EXPOSED: Final = ("Content-Disposition", "Content-Range", "ETag", "Location", "Upload-Offset", "X-Log-Size")


def create_app(settings: Settings, web: Path | None = None) -> FastAPI:
    """The application. Its lifespan opens the database, takes the lease and starts the dispatcher; what goes wrong
    there is raised as one of `farm.errors`. While another RenderAPI has the lease it stands by and takes over (R10).
    `web`: the directory of the page that stands at `/`."""
    metrics = Metrics()
    app = FastAPI(
        title="RenderOnline",
        version=__version__,
        description="The API of a render farm. Every call carries the headers email and token.",
        openapi_url=f"{V2}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lambda app: _lifespan(app, settings, metrics),
        exception_handlers=dict(errors.HANDLERS),
        middleware=[
            Middleware(CORSMiddleware, expose_headers=_EXPOSED, **_OPEN),
            Middleware(MeasuredRequests, metrics=metrics),
            Middleware(OnlyDispatching),
            Middleware(Guard),
        ],
    )
    app.state.standby = Standby()
    app.router.routes += [*v1.routes(), *ops.routes(), *(pages.routes(web) if web is not None else [])]
    for part in (v2_tasks, v2_uploads, v2_attempts, v2_previews, v2_farm, v2_session):
        app.include_router(part.router, prefix=V2)
    app.openapi = partial(_openapi, app, app.openapi)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI, generate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """FastAPI's description of the calls, with our shapes of the answers."""
    if app.openapi_schema is None:
        schema = generate()
        schema["components"]["schemas"] |= views.shapes()
        app.openapi_schema = schema
    return app.openapi_schema


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI, settings: Settings, metrics: Metrics) -> AsyncIterator[None]:
    """Open everything in order, and close it in the opposite one whatever happens."""
    standby: Standby = app.state.standby
    loop = asyncio.get_running_loop()

    def lost() -> None:
        loop.call_soon_threadsafe(standby.lost)

    async with contextlib.AsyncExitStack() as stack:
        database = await _open_database(settings, stack)
        lease = Lease.of(database, "RenderAPI", lease_s=settings.lease_s, on_lost=lost)
        stack.callback(lease.release)

        async def begin() -> None:
            await _begin(app, settings, metrics, database, lease, stack)
            standby.begin()

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
    metrics: Metrics,
    database: Database,
    lease: Lease,
    stack: contextlib.AsyncExitStack,
) -> None:
    """The lease is ours: dispatch and answer."""
    await asyncio.to_thread(_prepare, database, lease, settings)
    ids = await asyncio.to_thread(IdBlocks, database)
    looking = asyncio.create_task(_look_after(database, lease, ids, settings.lease_s / BEATS), name="look-after")
    stack.callback(looking.cancel)
    events = Events(secrets.token_hex(4))
    stack.callback(events.close)
    notifier = Notifier(events, database, url=settings.public_url)
    stack.push_async_callback(notifier.close)
    await notifier.open(settings.notify, settings.notify_mail)
    dispatcher = Dispatcher(
        database,
        ids,
        notifier,
        settings=settings,
        policy=settings.retries,
        silence_s=settings.silence_s,
        grace_s=settings.return_s,
    )
    app.state.services = made = _services(settings, database, ids, events, dispatcher, metrics)
    stack.push_async_callback(made.submissions.close)
    await made.submissions.sweep()
    stack.push_async_callback(dispatcher.stop)
    await dispatcher.start()
    keeping = asyncio.create_task(made.submissions.housekeeping.run(), name="housekeeping")
    stack.callback(keeping.cancel)
    app.router.routes.append(WebSocketRoute(LINK_PATH, dispatcher.link))


def _services(
    settings: Settings, database: Database, ids: IdBlocks, events: Events, dispatcher: Dispatcher, metrics: Metrics
) -> Services:
    authenticator = Authenticator(database)
    submitting = Submissions(database, ids, dispatcher, settings)

    async def changed() -> None:
        authenticator.forget()
        submitting.forget()
        await dispatcher.refresh()

    administration = Administration(database, settings.files, changed)
    return Services(
        authenticator=authenticator,
        sessions=Sessions(
            authenticator,
            settings.data_directory / "sessions.json",
            idle_s=settings.session_idle_s,
            longest_s=settings.session_s,
        ),
        submissions=submitting,
        reading=Reading(database, dispatcher),
        control=Control(database, dispatcher),
        administration=administration,
        enrolments=Enrolments(administration),
        dispatcher=dispatcher,
        transfers=AttemptTransfers(dispatcher, submitting.places),
        previews=Previews(database, dispatcher),
        events=events,
        metrics=metrics,
        fingerprint=_fingerprint(settings.certificate),
    )


async def _open_database(settings: Settings, stack: contextlib.AsyncExitStack) -> Database:
    """The database; one that is not our own file only with the schema that we need."""
    settings.data_directory.mkdir(parents=True, exist_ok=True)
    database = await asyncio.to_thread(Database.open, settings.database, silence_s=settings.lease_s)
    stack.push_async_callback(database.close)
    if database.dialect != "sqlite" and not await asyncio.to_thread(migrating.is_current, database):
        raise Conflict(
            f"The database {database.place.label} does not have the schema of this version. "
            "Make a backup, then run: renderonline db migrate"
        )
    return database


def _prepare(database: Database, lease: Lease, settings: Settings) -> None:
    """What a database needs before work begins: our own file the newest schema, each somebody who may administer."""
    if database.dialect == "sqlite":
        migrating.migrate(database, lease=lease)
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
                await database.write(partial(submissions.forget_old, now_us=time.time_ns() // 1000))
        except Overtaken:
            return  # the writer has told everybody
        except NotAvailable as error:
            log.warning("database does not answer", reason=error.message)


def _fingerprint(files: TlsFiles | None) -> str:
    """What a machine may pin: the SHA-256 of the certificate that this server shows."""
    if files is None:
        return ""
    try:
        pem = files.fullchain_pem_path.read_text(encoding="ascii")
        first = pem[pem.index(ssl.PEM_HEADER) : pem.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)]
        return f"sha256:{hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()}"
    except (OSError, ValueError) as error:
        raise RenderOnlineError(f"The certificate {files.fullchain_pem_path} can't be read: {error}.") from error
