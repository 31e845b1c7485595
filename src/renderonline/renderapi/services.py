"""What the routes call: one object with every use case of a running RenderAPI, how it is made and how a request comes
to it.

Every route declares who may call it; an application with a route that does not is never served. The check belongs to
the route that was chosen, its method included, and comes before the body is read: FastAPI reads a body before it looks
at the caller.
"""

import functools
import hashlib
import re
import secrets
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, cast

import orjson
from fastapi import APIRouter, Depends, Query, Security
from fastapi import Path as PathParameter
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from renderonline.database.door import Database, IdBlocks
from renderonline.farm.accounts import Permission
from renderonline.farm.errors import RenderOnlineError
from renderonline.farm.settling import Patience, RetryPolicy
from renderonline.renderapi.administration import Administration
from renderonline.renderapi.attempt_transfers import AttemptTransfers, Holder
from renderonline.renderapi.auth import Authenticator, Callers, Principal, Sessions, Throttle
from renderonline.renderapi.connected_machines import Benching, Machines
from renderonline.renderapi.control import Control
from renderonline.renderapi.downloads import LandedFiles
from renderonline.renderapi.events import Announcer, Events, Notifier, Publisher
from renderonline.renderapi.existing import V1Machine, V1Machines
from renderonline.renderapi.greeting import LinkedMachines
from renderonline.renderapi.housekeeping import Deliverer, Housekeeping, Places
from renderonline.renderapi.intake import Intake
from renderonline.renderapi.machine_links import LinkedMachine
from renderonline.renderapi.memory import BackgroundWork, Clocks, Memory
from renderonline.renderapi.orders import AttemptFiles, Orders
from renderonline.renderapi.planner import Dispatcher, Leasing
from renderonline.renderapi.reports import Reports, Watching
from renderonline.renderapi.scene_checks import SceneChecks
from renderonline.renderapi.scene_surveys import SceneFacts
from renderonline.renderapi.settings import Settings
from renderonline.renderapi.submissions import Submissions
from renderonline.renderapi.task_views import Explanations, TaskViews
from renderonline.renderapi.uploads import Uploads
from renderonline.serving.bodies import bounded, packed
from renderonline.serving.message_sockets import take_messages
from renderonline.serving.web import TlsFiles
from renderonline.storage.attempt_logs import AttemptLogs
from renderonline.storage.images import PreviewFiles


class Dispatching:
    """Makes the parts that decide what runs where, and joins them; `dispatcher` starts and stops them."""

    def __init__(
        self,
        database: Database,
        ids: IdBlocks,
        events: Publisher,
        *,
        data_directory: Path,
        policy: RetryPolicy,
        reserve_mib: int,
        silence_s: float,
        return_s: float,
        patience: Patience,
        pool_sandbox: Mapping[str, str],
    ) -> None:
        self._database = database
        self.announcer = announcer = Announcer(events)
        self.clocks = clocks = Clocks()
        self.background = background = BackgroundWork()
        self.logs = logs = AttemptLogs(data_directory / "logs", reserve_mib << 20)
        self.previews = PreviewFiles(data_directory / "previews")
        self.landed = LandedFiles(database)
        self.memory = memory = Memory(database, background.wake, clocks, policy)
        self.machines = machines = Machines(announcer.machine, clocks, pool_sandbox)
        self.orders = Orders(database)
        self.files = AttemptFiles(database, background.keep)
        self.benching = Benching(database, machines, background, clocks, bench_s=policy.bench_s)
        self.checks = checks = SceneChecks(
            database,
            ids,
            memory=memory,
            machines=machines,
            orders=self.orders,
            files=self.files,
            background=background,
            clocks=clocks,
            changed=lambda states: self.reports.tasks_changed(states),
        )
        self.reports = Reports(
            database,
            policy,
            memory=memory,
            machines=machines,
            orders=self.orders,
            files=self.files,
            checks=checks,
            benching=self.benching,
            background=background,
            clocks=clocks,
            announcements=announcer,
            previewed=self.previews.there,
        )
        self.links = LinkedMachines(
            partial(
                LinkedMachine,
                memory=memory,
                machines=machines,
                reports=self.reports,
                checks=checks,
                background=background,
                clocks=clocks,
                announcements=announcer,
                logs=logs,
            ),
            database=database,
            memory=memory,
            machines=machines,
            files=self.files,
            reports=self.reports,
            checks=checks,
            background=background,
            clocks=clocks,
            logs=logs,
            take_messages=take_messages,
        )
        connect = partial(
            V1Machine,
            database=database,
            memory=memory,
            machines=machines,
            files=self.files,
            reports=self.reports,
            background=background,
            clocks=clocks,
            compare=self.landed.settle,
        )
        leasing = Leasing(
            database,
            ids,
            memory=memory,
            machines=machines,
            orders=self.orders,
            files=self.files,
            reports=self.reports,
            checks=checks,
            background=background,
            clocks=clocks,
        )
        self.dispatcher = Dispatcher(
            database,
            ids,
            leasing=leasing,
            memory=memory,
            machines=machines,
            files=self.files,
            reports=self.reports,
            benching=self.benching,
            watching=Watching(
                self.reports, memory, machines, silence_s=silence_s, return_s=return_s, patience=patience
            ),
            checks=checks,
            background=background,
            clocks=clocks,
            links=self.links,
            nodes=V1Machines(machines, connect),
        )
        self.control = Control(
            database,
            memory=memory,
            machines=machines,
            orders=self.orders,
            clocks=clocks,
            announcements=announcer,
            remove_log=logs.remove,
            remove_previews=self.previews.remove,
            changed=self.reports.tasks_changed,
        )

    def task_views(self) -> TaskViews:
        """What users may see of tasks."""
        return TaskViews(
            self._database,
            memory=self.memory,
            explanations=Explanations(self.memory, self.machines, self.clocks),
            logs=self.logs,
            previews=self.previews,
            landed=self.landed,
            leased=self.dispatcher.leased,
        )


class Services:
    """Every use case. `fingerprint`: `sha256:…` of the certificate that this server shows, "" without TLS."""

    def __init__(self, settings: Settings, database: Database, ids: IdBlocks) -> None:
        self.settings = settings
        self.fingerprint = _fingerprint(settings.certificate)
        self.events = Events(secrets.token_hex(4))
        self.notifier = Notifier(database, url=settings.public_url)
        self.farm = farm = Dispatching(
            database,
            ids,
            self.events,
            data_directory=settings.data_directory,
            policy=settings.retries,
            reserve_mib=settings.reserve_mib,
            silence_s=settings.silence_s,
            return_s=settings.return_s,
            patience=Patience(),
            pool_sandbox=settings.pool_boxes,
        )
        self.dispatcher, self.control = farm.dispatcher, farm.control
        self.deliverer = Deliverer(database, settings.delivery_roots, farm.announcer.task)
        self.events.followers = [self.notifier, self.deliverer]
        self.authenticator = Authenticator(database)
        self.throttle = Throttle()
        self.sessions = Sessions(
            self.authenticator,
            self.throttle,
            settings.data_directory / "sessions.json",
            idle_s=settings.session_idle_s,
            longest_s=settings.session_s,
        )
        self.callers = Callers(self.authenticator, self.throttle, self.sessions)
        places = Places(database, settings)
        self.housekeeping = Housekeeping(
            database,
            places,
            machines=farm.machines,
            delete=farm.control.delete,
            logs=farm.logs,
            previews=farm.previews,
            newest=lambda: farm.memory.newest,
        )
        self.uploads = Uploads(places, self.housekeeping)
        submissions = Submissions(
            database,
            ids,
            farm.dispatcher,
            sends_mail=bool(settings.notify_mail),
            strict=settings.strict_scenes,
            deliver_to=settings.delivery_roots,
        )
        self.intake = Intake(
            database,
            submissions,
            uploads=self.uploads,
            facts=SceneFacts(lambda: farm.machines, places.box, places.roots),
            places=places,
            housekeeping=self.housekeeping,
        )
        self.reading = farm.task_views()
        self.administration = Administration(
            database, self._changed, self.throttle, files=settings.files, data_directory=settings.data_directory
        )
        self.transfers = AttemptTransfers(
            database,
            places,
            machines=farm.machines,
            files=farm.files,
            reports=farm.reports,
            checks=farm.checks,
            landed=farm.landed,
            previews=farm.previews,
        )

    async def _changed(self) -> None:
        self.authenticator.forget()
        self.events.look_again()
        await self.dispatcher.refresh()


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


def services_of(connection: HTTPConnection) -> Services:
    """The use cases of the RenderAPI that this request came to."""
    return cast("Services", connection.app.state.services)


V2: Final = "/renderapi/v2"
LARGEST_ID: Final = 2**63 - 1
"""Larger numbers no database can look for. Every number that is sent has a bound at both ends."""

Id = Annotated[int, PathParameter(ge=0, le=LARGEST_ID)]
Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=100)]
Ids = Annotated[
    str, Query(pattern="^([0-9]{1,18}(,[0-9]{1,18}){0,199})?$", description="Only these, separated by commas.")
]
Place = Annotated[str, Field(max_length=4096)]
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_NEEDS: Final = "needs"
_READS: Final = "reads"

_EMAIL: Final = APIKeyHeader(name="email", auto_error=False, description="The account's e-mail.")
_TOKEN: Final = APIKeyHeader(name="token", auto_error=False, description="The account's token.")

Endpoint = Callable[[Request], Awaitable[Response]]
Handler = Callable[..., Awaitable[Any]]
Json = dict[str, Any]


class Access(Enum):
    """What a route requires instead of a permission."""

    OPEN = "nothing"
    ACCOUNT = "any active account"
    ATTEMPT = "the token of the attempt in its path"
    V1_ACCOUNT = "an account, by the headers email and token alone (R11 Web authority); `routes.existing` asks"
    MACHINE = "the secret of a machine, in its hello; its link asks"
    NEARBY = "nothing on this computer, from elsewhere the permission to look after machines; `routes.pages` asks"


Needs = Permission | Access


def declare(endpoint: Callable[..., object], needs: Needs) -> None:
    """Declare who may call this endpoint."""
    setattr(endpoint, _NEEDS, needs)


def needs_of(endpoint: object) -> Needs:
    """Return who may call this endpoint. Raises `TypeError` when that is not declared."""
    needs = getattr(endpoint, _NEEDS, None)
    if not isinstance(needs, Needs):
        raise TypeError(f"The route of {endpoint!r} does not declare who may call it.")
    return needs


def check_declared(routes: Sequence[BaseRoute]) -> None:
    """Raise `TypeError` unless every route declares who may call it, and checks that."""
    for context in iter_route_contexts(routes):
        needs_of(context.endpoint)
        if not isinstance(context.original_route, GuardedRoute | PlainRoute | WebSocketRoute):
            raise TypeError(f"The route {context.path} does not check who calls it.")


class GuardedRoute(APIRoute):
    """A route of v2 that checks its caller; FastAPI then reads the body, with a bound."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        answer, needs = super().get_route_handler(), needs_of(self.endpoint)
        reads: Endpoint | None = getattr(self.endpoint, _READS, None)

        async def guarded(request: Request) -> Response:
            await _let_in(request, needs)
            if reads is not None:
                return await reads(request)
            if self.body_field is not None:  # a handler that reads the body itself bounds it as well
                request = Request(request.scope, bounded(request, request.receive))
            return await packed(await answer(request), request)

        return guarded


class PlainRoute(Route):
    """A route without FastAPI that checks its caller."""

    def __init__(self, path: str, endpoint: Endpoint, method: str, needs: Needs) -> None:
        async def guarded(request: Request) -> Response:
            await _let_in(request, needs)
            return await endpoint(request)

        guarded.__name__ = endpoint.__name__
        declare(guarded, needs)
        super().__init__(path, guarded, methods=[method])


async def _let_in(request: Request, needs: Needs) -> None:
    """Return if the request is allowed; `request.state` then has its `principal`, or the `holder` of the attempt."""
    if needs is Access.ATTEMPT:
        number = request.path_params["attempt_id"]
        attempt_id = int(number) if _NUMBER.fullmatch(number) else 0
        request.state.holder = await services_of(request).transfers.holder(attempt_id, request)
    elif needs is Access.ACCOUNT or isinstance(needs, Permission):
        request.state.principal = principal = await services_of(request).callers.principal(request)
        if isinstance(needs, Permission):
            principal.require(needs)


async def _principal(
    request: Request, _email: Annotated[str | None, Security(_EMAIL)], _token: Annotated[str | None, Security(_TOKEN)]
) -> Principal:
    principal: Principal = request.state.principal  # set by `_let_in`
    return principal


async def _holder(request: Request) -> Holder:
    holder: Holder = request.state.holder  # set by `_let_in`
    return holder


async def _services(request: Request) -> Services:
    return services_of(request)


PrincipalDep = Annotated[Principal, Depends(_principal)]
HolderDep = Annotated[Holder, Depends(_holder)]
ServicesDep = Annotated[Services, Depends(_services)]


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Anything that orjson knows how to write."""
    return Response(orjson.dumps(content), status, headers, "application/json")


class Router(APIRouter):
    """A router of v2."""

    def __init__(self, *tags: str) -> None:
        super().__init__(tags=[*tags], route_class=GuardedRoute)

    def call(
        self,
        method: str,
        path: str,
        shape: str = "",
        status: int = 200,
        *,
        needs: Needs,
        reads: bool = False,
        **more: Any,
    ) -> Callable[[Handler], Handler]:
        """Register a handler that returns JSON, None (204) or a response of its own. `shape`: the name of the answer's
        schema in `views.shapes`, or its media type. `needs`: who may call it. `reads`: it reads its request itself, of
        which it is given nothing but the caller; FastAPI, which takes longer than some calls, only describes it."""

        def register(handler: Handler) -> Handler:
            @functools.wraps(handler)
            async def answered(**given: Any) -> Response:
                content = await handler(**given)
                if isinstance(content, Response):
                    return content
                if content is None:
                    return Response(status_code=204)
                return json_answer(content, status)

            async def read(request: Request) -> Response:
                return cast("Response", await handler(request, request.state.principal, services_of(request)))

            declare(answered, needs)
            setattr(answered, _READS, read if reads else None)
            has_account = needs is Access.ACCOUNT or isinstance(needs, Permission)
            more["dependencies"] = [Depends(_principal)] if has_account else []
            responses: dict[int | str, Json] = {status if shape else 204: _content(shape), "4XX": _content("Problem")}
            more.update(response_model=None, status_code=status if shape else 204)
            self.add_api_route(path, answered, methods=[method], responses=responses, **more)
            if "/" in shape and shape != "text/event-stream":  # which has no end, and no length
                self.add_api_route(path, answered, methods=["HEAD"], include_in_schema=False, **more)
            return handler

        return register


def _content(shape: str) -> Json:
    """Return the OpenAPI description of an answer."""
    if not shape:
        return {"description": "Done."}
    if "/" in shape:
        return {"description": "The bytes.", "content": {shape: {"schema": {"type": "string", "format": "binary"}}}}
    media_type = "application/problem+json" if shape == "Problem" else "application/json"
    return {"description": shape, "content": {media_type: {"schema": {"$ref": f"#/components/schemas/{shape}"}}}}


class Sent(BaseModel):
    """What v2's clients send; unknown fields are mistakes. Everything of a `…Change` may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True)
