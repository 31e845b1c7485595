"""`/renderapi/v2`: what is not small JSON. Plain handlers, nothing of a body is ever held in memory."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from renderonline.farm.accounts import Permission
from renderonline.farm.errors import InvalidRequest
from renderonline.renderapi import downloads
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.events import RESYNC, Event
from renderonline.renderapi.routes.bodies import incoming
from renderonline.renderapi.routes.guard import V2
from renderonline.renderapi.services import services_of
from renderonline.renderapi.task_requests import read_v2


def routes() -> list[BaseRoute]:
    """All of them."""
    return [
        Route(f"{V2}/tasks", submit, methods=["POST"]),
        Route(f"{V2}/tasks/{{task_id:int}}/download", download, methods=["GET"]),
        Route(f"{V2}/tasks/{{task_id:int}}/results/{{name:path}}", result, methods=["GET"]),
        Route(f"{V2}/attempts/{{attempt_id:int}}/log", attempt_log, methods=["GET"]),
        Route(f"{V2}/events", events, methods=["GET"]),
    ]


async def submit(request: Request) -> Response:
    """Submit a task: a part `request` and one file."""
    principal, services = _principal(request), services_of(request)
    task_id = await services.submissions.submit(incoming(request, principal), read_v2)
    task = await services.reading.task(principal, task_id)
    headers = {"Location": f"{V2}/tasks/{task_id}"}
    return Response(orjson.dumps(task), 201, headers, "application/json")


async def download(request: Request) -> Response:
    """The task's scene and results as a ZIP; ranges are answered."""
    task_id: int = request.path_params["task_id"]
    principal = _principal(request)
    content = await services_of(request).reading.archive(task_id, principal.tasks_of, f"task-{task_id}.zip")
    return downloads.answer(content, request.headers)


async def result(request: Request) -> Response:
    """One result as a file; ranges are answered."""
    parameters = request.path_params
    content = await services_of(request).reading.result_file(
        _principal(request), parameters["task_id"], parameters["name"]
    )
    return downloads.answer(content, request.headers)


async def attempt_log(request: Request) -> Response:
    """An attempt's log from a byte offset on; `X-Log-Size` says where it ends now."""
    text = request.query_params.get("offset", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 17):
        raise InvalidRequest("offset is a number of bytes.")
    attempt_id: int = request.path_params["attempt_id"]
    data, size = await services_of(request).reading.log(_principal(request), attempt_id, int(text))
    headers = {"X-Log-Size": str(size), "X-Content-Type-Options": "nosniff"}
    return Response(data, 200, headers, "text/plain; charset=utf-8")


async def events(request: Request) -> Response:
    """Everything that happens and may be seen, as server-sent events, without end."""
    principal = _principal(request)
    last = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    stream: AsyncIterator[bytes] = services_of(request).events.stream(last, lambda event: _may_see(principal, event))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, 200, headers, "text/event-stream")


def _may_see(principal: Principal, event: Event) -> bool:
    if event.type == RESYNC:
        return True
    if event.user_id is None:
        return principal.may(Permission.MACHINES)
    return principal.tasks_of in (None, event.user_id)


def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal  # the guard has put it there
    return principal


def _operation(
    summary: str, tag: str, parameters: list[dict[str, Any]], answers: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    problem = {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    return {
        "tags": [tag],
        "summary": summary,
        "parameters": parameters,
        "responses": {**answers, "4XX": {"description": "A problem (RFC 9457).", **problem}},
        "security": [{"APIKeyHeader": []}],
        **more,
    }


def _path(name: str, kind: str = "integer") -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": kind}}


def _binary(description: str, media_type: str) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}


_RANGE: Final[dict[str, Any]] = {"name": "Range", "in": "header", "schema": {"type": "string"}}
_KEY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 64},
    "description": "Made before the upload; the same key within 7 days gives the first answer again.",
}
_TASK: Final[dict[str, Any]] = {"application/json": {"schema": {"$ref": "#/components/schemas/Task"}}}

DOCUMENTED: Final[Mapping[str, Mapping[str, Any]]] = {
    f"{V2}/tasks": {
        "post": _operation(
            "Submit a task",
            "tasks",
            [_KEY],
            {"201": {"description": "The task.", "content": _TASK}},
            requestBody={
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "required": ["request", "file"],
                            "properties": {
                                "request": {
                                    "type": "object",
                                    "required": ["engine"],
                                    "properties": {
                                        "engine": {"type": ["string", "integer"], "description": "Name or number."},
                                        "arguments": {"type": "object", "additionalProperties": {"type": "string"}},
                                        "frames": {"type": ["string", "null"], "examples": ["1-24", "1-100x5,200"]},
                                        "name": {"type": "string", "maxLength": 255},
                                        "priority": {"type": "integer", "minimum": 0, "maximum": 100, "default": 50},
                                        "chunk_size": {"type": "integer", "default": 0},
                                        "paused": {"type": "boolean", "default": False},
                                        "waits_for": {"type": "array", "items": {"type": "integer"}},
                                    },
                                },
                                "file": {"type": "string", "format": "binary"},
                            },
                        }
                    }
                },
            },
        )
    },
    f"{V2}/tasks/{{task_id}}/download": {
        "get": _operation(
            "Scene and results as a ZIP",
            "tasks",
            [_path("task_id"), _RANGE],
            {"200": _binary("The ZIP.", "application/zip"), "206": _binary("A part of it.", "application/zip")},
        )
    },
    f"{V2}/tasks/{{task_id}}/results/{{name}}": {
        "get": _operation(
            "One result",
            "tasks",
            [_path("task_id"), _path("name", "string"), _RANGE],
            {"200": _binary("The file.", "application/octet-stream")},
        )
    },
    f"{V2}/attempts/{{attempt_id}}/log": {
        "get": _operation(
            "The log of an attempt",
            "tasks",
            [_path("attempt_id"), {"name": "offset", "in": "query", "schema": {"type": "integer", "default": 0}}],
            {"200": _binary("The log from the offset on; header X-Log-Size says where it ends.", "text/plain")},
        )
    },
    f"{V2}/events": {
        "get": _operation(
            "What happens, as server-sent events",
            "events",
            [{"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}}],
            {"200": _binary("Events task, result, progress, machine and resync.", "text/event-stream")},
        )
    },
}
"""What OpenAPI says of these handlers."""
