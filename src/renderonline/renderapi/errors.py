"""Answers as JSON; errors as RFC 9457 problem JSON with a stable `code`, for everything but v1."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson
import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from renderonline.farm.errors import InvalidRequest, RenderOnlineError

log = structlog.get_logger(__name__)

_CODES: Final[Mapping[int, str]] = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Anything that orjson knows how to write."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def problem(
    status: int, detail: str, code: str, headers: Mapping[str, str] | None = None, told: Mapping[str, Any] | None = None
) -> Response:
    """An answer that says what went wrong and what to do; `told` is more of it for programs."""
    title = HTTPStatus(status).phrase
    content = {"type": f"urn:renderonline:{code}", "title": title, "status": status, "detail": detail, "code": code}
    content |= told or {}
    return Response(orjson.dumps(content), status, dict(headers or {}), "application/problem+json")


def problem_of(error: RenderOnlineError) -> Response:
    if error.status >= 500:
        log.warning("request failed", code=error.reason_code, reason=error.message)
    headers = {"Retry-After": "5"} if error.status == 503 else {}
    if "offset" in error.told:
        headers["Upload-Offset"] = str(error.told["offset"])
    return problem(error.status, error.message, error.reason_code, headers, error.told)


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


HANDLERS: Final[Mapping[Any, Any]] = dict.fromkeys(
    (RenderOnlineError, HTTPException, RequestValidationError, ClientDisconnect, Exception), _answer
)
