"""`/renderapi/v1`: exactly C2 RenderAPI, and the keys that we add."""

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from renderonline.farm.errors import InvalidRequest, LimitReached, NotAuthenticated, RenderOnlineError, TooLarge
from renderonline.protocol import existing
from renderonline.renderapi import downloads
from renderonline.renderapi.requests import SubmitRequest, V1Request, checked_key
from renderonline.renderapi.services import Access, PlainRoute, json_answer, services_of
from renderonline.serving.bodies import bounded

MAX_JSON: Final = 64 * 1024


def routes() -> list[BaseRoute]:
    """All of v1."""
    calls = (enqueue, dequeue, download, delete)
    posts = [PlainRoute(f"{existing.BASE_PATH}/{call.__name__}", call, "POST", Access.V1_ACCOUNT) for call in calls]
    return [PlainRoute(f"{existing.BASE_PATH}/info", info, "GET", Access.V1_ACCOUNT), *posts]


async def info(request: Request) -> Response:
    """The user and their newest tasks."""
    principal = await services_of(request).callers.by_headers(request)
    if principal is None:
        return Response(status_code=401)
    return json_answer(existing.pascal(await services_of(request).reading.info(principal)))


async def enqueue(request: Request) -> Response:
    """Submit a task."""
    principal = await services_of(request).callers.by_headers(request)
    if principal is None:
        return json_answer(existing.enqueue_answer(existing.UNAUTHORIZED), 401)
    try:
        task_id = await services_of(request).intake.submit_form(principal, request, read_v1)
    except RenderOnlineError as error:
        status, message = _enqueue_refusal(error)
        return json_answer(existing.enqueue_answer(message), status)
    return json_answer(existing.enqueue_answer(existing.ENQUEUED, task_id))


def read_v1(part: bytes | None, client_key: str) -> SubmitRequest:
    """The request in v1's part `request`; `InvalidRequest` with the contract's message."""
    sent = existing.parse_enqueue(part)
    key = checked_key(client_key or sent.client_key)
    return V1Request(sent.engine_id, dict(sent.arguments), client_key=key)


def _enqueue_refusal(error: RenderOnlineError) -> tuple[int, str]:
    """Status and message of v1 for what went wrong with a submission."""
    if isinstance(error, LimitReached):
        return 403, error.message
    if isinstance(error, NotAuthenticated):  # switched off since we looked
        return 401, existing.UNAUTHORIZED
    if error.reason_code == "not_multipart":
        return 400, existing.NO_FILES
    if error.reason_code in ("broken_multipart", "field_too_large"):
        return 400, existing.INVALID_ENQUEUE
    return error.status, error.message


async def dequeue(request: Request) -> Response:
    """Take a task from the queue."""
    return await _on_task(request, services_of(request).control.dequeue, existing.dequeue_answer, existing.DEQUEUED)


async def delete(request: Request) -> Response:
    """Delete a task with its files."""
    return await _on_task(request, services_of(request).control.delete, existing.delete_answer, existing.DELETED)


async def download(request: Request) -> Response:
    """The task's directory as a ZIP."""

    async def whole(task_id: int, *, user_id: int) -> Response:
        reading = services_of(request).reading
        return downloads.whole(await reading.archive(task_id, user_id, f"{uuid.uuid4()}.zip"))

    def refusal(message: str, *, done: bool) -> dict[str, Any]:
        assert not done
        return existing.download_refusal(message)

    return await _on_task(request, whole, refusal, "")


async def _on_task(
    request: Request, act: Callable[..., Awaitable[Any]], answer: Callable[..., dict[str, Any]], message: str
) -> Response:
    """What dequeue, download and delete share: authority, the body, the contract's refusals."""
    principal = await services_of(request).callers.by_headers(request)
    if principal is None:
        return Response(status_code=401)
    try:
        task_id = await _task_id(request)
    except InvalidRequest as error:
        return json_answer(answer(error.message, done=False), 400)
    if task_id > existing.LARGEST_TASK_ID:
        return json_answer(answer(existing.task_not_found(task_id), done=False), 400)
    messages = {"not_found": existing.task_not_found(task_id), "not_in_queue": existing.task_not_queued(task_id)}
    try:
        done = await act(task_id, user_id=principal.user_id)
    except RenderOnlineError as error:
        status = error.status if error.status >= 500 else 400
        return json_answer(answer(messages.get(error.reason_code, error.message), done=False), status)
    return done if isinstance(done, Response) else json_answer(answer(message, done=True))


async def _task_id(request: Request) -> int:
    try:
        body = await Request(request.scope, bounded(request, request.receive, MAX_JSON)).body()
    except TooLarge:
        body = b""
    return existing.parse_task_id(request.headers.get("content-type"), body)
