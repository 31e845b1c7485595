"""Who may call a route. Every route declares it; an application with a route that does not is never served.

The check belongs to the route that was chosen, its method included, and comes before the body is read: FastAPI reads
a body before it looks at the caller.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Final

from fastapi.routing import APIRoute, iter_route_contexts
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from renderonline.farm.accounts import Permission
from renderonline.renderapi.services import principal_of, services_of
from renderonline.serving.bodies import bounded

V2: Final = "/renderapi/v2"
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_NEEDS: Final = "needs"

Endpoint = Callable[[Request], Awaitable[Response]]


class Door(Enum):
    """What a route asks for that does not ask for a permission."""

    OPEN = "nothing"
    ACCOUNT = "any active account"
    ATTEMPT = "the token of the attempt in its path"
    V1_ACCOUNT = "an account, by the headers email and token alone (R11 Web authority); `v1.routes` asks"
    MACHINE = "the secret of a machine, in its hello; its link asks"
    NEARBY = "nothing on this computer, from elsewhere the permission to look after machines; `ops.metrics` asks"


Needs = Permission | Door


def declare(endpoint: Callable[..., object], needs: Needs) -> None:
    """Say who may call this endpoint."""
    setattr(endpoint, _NEEDS, needs)


def needs_of(endpoint: object) -> Needs:
    """Who may call this endpoint, or `TypeError` if nobody has said."""
    needs = getattr(endpoint, _NEEDS, None)
    if not isinstance(needs, Needs):
        raise TypeError(f"The route of {endpoint!r} does not declare who may call it.")
    return needs


def check_declared(routes: Sequence[BaseRoute]) -> None:
    """`TypeError` unless every route declares who may call it, and is one that asks."""
    for context in iter_route_contexts(routes):
        needs_of(context.endpoint)
        if not isinstance(context.original_route, GuardedRoute | PlainRoute | WebSocketRoute):
            raise TypeError(f"The route {context.path} does not ask who calls it.")


class GuardedRoute(APIRoute):
    """A route of v2 that lets in whom its endpoint declares; FastAPI then reads the body, with a bound."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        answer, needs = super().get_route_handler(), needs_of(self.endpoint)

        async def guarded(request: Request) -> Response:
            await _let_in(request, needs)
            if self.body_field is not None:  # who reads a body without FastAPI bounds it as well
                request = Request(request.scope, bounded(request, request.receive))
            return await answer(request)

        return guarded


class PlainRoute(Route):
    """A route past FastAPI that lets in whom it declares."""

    def __init__(self, path: str, endpoint: Endpoint, method: str, needs: Needs) -> None:
        async def guarded(request: Request) -> Response:
            await _let_in(request, needs)
            return await endpoint(request)

        guarded.__name__ = endpoint.__name__
        declare(guarded, needs)
        super().__init__(path, guarded, methods=[method])


async def _let_in(request: Request, needs: Needs) -> None:
    """Return when the caller may go on: `request.state` has their `principal`, or the `holder` of the attempt."""
    if needs is Door.ATTEMPT:
        number = request.path_params["attempt_id"]
        attempt_id = int(number) if _NUMBER.fullmatch(number) else 0
        request.state.holder = await services_of(request).transfers.holder(attempt_id, request)
    elif needs is Door.ACCOUNT or isinstance(needs, Permission):
        request.state.principal = principal = await principal_of(request)
        if isinstance(needs, Permission):
            principal.require(needs)
