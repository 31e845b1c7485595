"""What v2's clients send; unknown fields are mistakes. Everything of a `…Change` may be left out.

The routers of the API: who may call a route, and how v2's endpoints answer.

Every route declares who may call it; an application with a route that does not is never served. The check belongs to
the route that was chosen, its method included, and comes before the body is read: FastAPI reads a body before it looks
at the caller.
"""

import functools
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query, Security
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from renderonline.farm.accounts import Permission, Role
from renderonline.farm.frames import MAX_FRAMES
from renderonline.farm.machines import MOST_SLOTS
from renderonline.renderapi.attempt_transfers import Holder
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.services import Services, principal_of, services_of
from renderonline.serving.bodies import bounded
from renderonline.storage.staging import MOST_FILES

LARGEST: Final = 2**63 - 1
"""Larger numbers no database can look for. Every number that is sent has a bound at both ends."""

Id = Annotated[int, Path(ge=0, le=LARGEST)]
FileIndex = Annotated[int, Path(ge=0, lt=MOST_FILES, description="The file's place in the upload's list.")]
Limit = Annotated[int, Query(ge=1, le=500)]
LogOffset = Annotated[int, Query(ge=0, lt=10**16)]
UploadOffset = Annotated[str, Header(alias="upload-offset", pattern="^[0-9]{1,19}$")]
Cursor = Annotated[str | None, Query(max_length=100)]
Name = Annotated[str, Field(max_length=50)]
Named = Annotated[str, Field(min_length=1, max_length=100)]
Size = Annotated[str, Query(max_length=20, description="thumb or view")]
Slots = Annotated[int, Field(ge=0, le=MOST_SLOTS, description="Attempts at once; 0: four, or its cores if fewer.")]
Place = Annotated[str, Field(max_length=4096)]


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class UserChange(_Sent):
    email: str = Field("", min_length=3, max_length=255)
    first_name: Name = ""
    last_name: Name = ""
    subscription_id: int | None = Field(None, ge=0, le=2**31 - 1)
    role: Role = Field(Role.ARTIST, strict=False)
    is_active: bool = True


class UserBody(UserChange):
    email: str = Field(min_length=3, max_length=255)


class SubscriptionChange(_Sent):
    name: Name = ""
    queue_limit: int = Field(0, ge=0, le=1_000_000)
    share: int = Field(1, ge=1, le=1_000_000)
    running_limit: int = Field(0, ge=0, le=1_000_000)
    keep_days: int = Field(0, ge=0, le=1_000_000)
    keep_mib: int = Field(0, ge=0, le=1_000_000)
    names: str = Field("", max_length=200, description="What results are called, such as {scene}/{name}_{frame:04}.")


class NewSubscription(SubscriptionChange):
    name: Name
    queue_limit: int = Field(ge=0, le=1_000_000)


class EngineChange(_Sent):
    definition: str = Field("", max_length=64 * 1024, description="The TOML of an engine's definition.")
    download_path: Place = ""
    is_enabled: bool = True


class EngineBody(_Sent):
    definition: str = Field(max_length=64 * 1024, description="The TOML of an engine's definition.")
    download_path: Place | None = None


class NewArgType(_Sent):
    type: Annotated[str, Field(max_length=20)]
    regex: Place | None = None


class NewMachine(_Sent):
    ip_address: Annotated[str, Field(min_length=1, max_length=45)]
    port: int = Field(ge=1, le=65535)


class MachineChange(_Sent):
    wish: Literal["active", "draining", "disabled"] = "active"
    name: Named = "-"
    wish_reason: str = Field("", max_length=255, alias="reason")
    tags: list[Name] = Field([], max_length=16)
    pool: Name = ""
    hours: str = Field("", max_length=255, description="Such as Mon-Fri 18:00-08:00, Sat, Sun; empty: always.")
    slots_allowed: Slots = 0


class TaskChange(_Sent):
    name: str = Field("", max_length=255)
    priority: int = Field(50, ge=0, le=100)
    running_limit: int = Field(0, ge=0, le=MAX_FRAMES)


class FilmRequest(_Sent):
    film: str = Field("mp4", max_length=50, description="mp4 or webm, with frames per second if you like: webm@25.")


class Requeue(_Sent):
    chunks: list[Annotated[int, Field(ge=0, le=LARGEST)]] = Field(default=[], max_length=10_000)
    frames: str = Field(default="", max_length=65_536)


class Accept(_Sent):
    names: list[Annotated[str, Field(max_length=1000)]] = Field(
        default=[], max_length=10_000, description="Only these; none: all that were found altered or have no digest."
    )


class Credentials(_Sent):
    email: str = Field(max_length=1_000)
    token: str = Field(max_length=1_000)


class TicketFor(_Sent):
    path: Place


class Invitation(_Sent):
    uses: int = Field(1, ge=1, le=10_000)
    hours: float = Field(24, gt=0, le=8784, strict=False)
    slots: Slots = 0


class Enrolment(_Sent):
    code: Named
    name: Named


V2: Final = "/renderapi/v2"
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_NEEDS: Final = "needs"

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
    V1_ACCOUNT = "an account, by the headers email and token alone (R11 Web authority); `v1.routes` asks"
    MACHINE = "the secret of a machine, in its hello; its link asks"
    NEARBY = "nothing on this computer, from elsewhere the permission to look after machines; `ops.metrics` asks"


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

        async def guarded(request: Request) -> Response:
            await _let_in(request, needs)
            if self.body_field is not None:  # a handler that reads the body itself bounds it as well
                request = Request(request.scope, bounded(request, request.receive))
            return await answer(request)

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
        request.state.principal = principal = await principal_of(request)
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
        **more: Any,
    ) -> Callable[[Handler], Handler]:
        """Register a handler that returns JSON, None (204) or a response of its own. `shape`: the name of the answer's
        schema in `views.shapes`, or its media type. `needs`: who may call it."""

        def register(handler: Handler) -> Handler:
            @functools.wraps(handler)
            async def answered(**given: Any) -> Response:
                content = await handler(**given)
                if isinstance(content, Response):
                    return content
                if content is None:
                    return Response(status_code=204)
                return json_answer(content, status)

            declare(answered, needs)
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
