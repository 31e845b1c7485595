"""How v2's endpoints take their caller and give their answers."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import orjson
from fastapi import Depends, Security
from fastapi.security import APIKeyHeader
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from renderonline.renderapi.auth import Principal
from renderonline.renderapi.routes.models import Problem
from renderonline.renderapi.services import Services, services_of

_EMAIL: Final = APIKeyHeader(name="email", auto_error=False, description="The account's e-mail.")
_TOKEN: Final = APIKeyHeader(name="token", auto_error=False, description="The account's token.")


async def _caller(
    request: Request,
    _email: Annotated[str | None, Security(_EMAIL)],
    _token: Annotated[str | None, Security(_TOKEN)],
) -> Principal:
    principal: Principal = request.state.principal  # the guard has put it there
    return principal


async def _services(request: Request) -> Services:
    return services_of(request)


Caller = Annotated[Principal, Depends(_caller)]
Center = Annotated[Services, Depends(_services)]


def answer(content: Mapping[str, Any], status: int = 200) -> Response:
    """JSON; the models of `responses` document it."""
    return Response(orjson.dumps(content), status, media_type="application/json")


def documented(model: type[BaseModel], status: int = 200) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of an endpoint's answers."""
    return {status: {"model": model}, "4XX": {"model": Problem, "description": "A problem (RFC 9457)."}}
