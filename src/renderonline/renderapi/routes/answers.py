"""How v2's endpoints take their caller and give their answers."""

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Depends, Security
from fastapi.security import APIKeyHeader
from starlette.requests import Request
from starlette.responses import Response

from renderonline.renderapi.attempt_transfers import Holder
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.routes.guard import Door, GuardedRoute, Needs, declare
from renderonline.renderapi.services import Services, services_of

_EMAIL: Final = APIKeyHeader(name="email", auto_error=False, description="The account's e-mail.")
_TOKEN: Final = APIKeyHeader(name="token", auto_error=False, description="The account's token.")

Handler = Callable[..., Awaitable[Any]]
Json = dict[str, Any]


async def _caller(
    request: Request, _email: Annotated[str | None, Security(_EMAIL)], _token: Annotated[str | None, Security(_TOKEN)]
) -> Principal:
    principal: Principal = request.state.principal  # the guard has put it there
    return principal


async def _holder(request: Request) -> Holder:
    holder: Holder = request.state.holder  # and this one
    return holder


async def _services(request: Request) -> Services:
    return services_of(request)


Caller = Annotated[Principal, Depends(_caller)]
Held = Annotated[Holder, Depends(_holder)]
Center = Annotated[Services, Depends(_services)]


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Anything that orjson knows how to write."""
    return Response(orjson.dumps(content), status, headers, "application/json")


class Part(APIRouter):
    """Some endpoints of v2."""

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
        """An endpoint whose handler gives JSON, None (204) or a response of its own. `shape`: the answer's name in
        `views.shapes`, or its media type. `needs`: who may call it (`guard.Needs`)."""

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
            more["dependencies"] = [] if isinstance(needs, Door) and needs is not Door.ACCOUNT else [Depends(_caller)]
            responses: dict[int | str, Json] = {status if shape else 204: _content(shape), "4XX": _content("Problem")}
            more.update(response_model=None, status_code=status if shape else 204)
            self.add_api_route(path, answered, methods=[method], responses=responses, **more)
            if "/" in shape and shape != "text/event-stream":  # which has no end, and no length
                self.add_api_route(path, answered, methods=["HEAD"], include_in_schema=False, **more)
            return handler

        return register


def _content(shape: str) -> Json:
    """What OpenAPI says of an answer."""
    if not shape:
        return {"description": "Done."}
    if "/" in shape:
        return {"description": "The bytes.", "content": {shape: {"schema": {"type": "string", "format": "binary"}}}}
    media_type = "application/problem+json" if shape == "Problem" else "application/json"
    return {"description": shape, "content": {media_type: {"schema": {"$ref": f"#/components/schemas/{shape}"}}}}
