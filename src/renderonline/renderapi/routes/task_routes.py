"""`/renderapi/v2/tasks`: submit tasks, look at them, act on them, fetch what they made. `/renderapi/v2/attempts`: what
machines without the farm's directory fetch and send, by the attempt's token. No large body is held in memory.

`/renderapi/v2/uploads`: files that come in pieces and go on after any stop; a task is made of them in the end.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Annotated, Any, Final

from fastapi import Header, Path, Query
from pydantic import Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from renderonline.farm.accounts import Permission
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.frames import MAX_FRAMES
from renderonline.farm.result_names import Film
from renderonline.farm.tasks import chooser
from renderonline.renderapi import downloads, task_views
from renderonline.renderapi.control import Control
from renderonline.renderapi.events import TaskEvent
from renderonline.renderapi.requests import read_v2
from renderonline.renderapi.scene_surveys import client_of
from renderonline.renderapi.services import (
    LARGEST_ID,
    V2,
    Access,
    Cursor,
    Handler,
    HolderDep,
    Id,
    Ids,
    Json,
    Limit,
    PrincipalDep,
    Router,
    Sent,
    ServicesDep,
    json_answer,
)
from renderonline.serving.bodies import bounded, content_length
from renderonline.storage.images import LARGEST
from renderonline.storage.staging import MOST_FILES

router = Router("tasks")

OWN: Final = Permission.OWN_TASKS
"""Whose tasks they may see and change says `Principal.tasks_of`."""

FileIndex = Annotated[int, Path(ge=0, lt=MOST_FILES, description="The file's place in the upload's list.")]
LogOffset = Annotated[int, Query(ge=0, lt=10**16)]
UploadOffset = Annotated[str, Header(alias="upload-offset", pattern="^[0-9]{1,19}$")]
Size = Annotated[str, Query(max_length=20, description="thumb or view")]
LastHeader = Annotated[str | None, Header(alias="last-event-id")]
Last = Annotated[str | None, Query(alias="last_event_id")]
Word = Annotated[str, Query(max_length=200)]
Frames = Annotated[str, Query(max_length=10_000, description="A range such as 1-24 or 1-100x5,200.")]
Names = Annotated[
    Sequence[Annotated[str, StringConstraints(max_length=1000)]],
    Query(max_length=100, description="And files called like one of these; * and ? stand for anything."),
]
Version = Annotated[str, Query(max_length=100, description="Any text, such as the result's digest: kept for good.")]
Key = Annotated[str | None, Header(max_length=64, description="The same key within 7 days gives the first answer.")]

_FORM: Final[Json] = {
    "request": {"$ref": "#/components/schemas/SubmitRequest"},
    "file": {"type": "string", "format": "binary"},
}
_SCHEMA: Final = {"type": "object", "required": ["request", "file"], "properties": _FORM}
_CONTENT: Final[Json] = {
    "multipart/form-data": {"schema": _SCHEMA},
    "application/json": {"schema": {"$ref": "#/components/schemas/UploadRequest"}},
}
_UPLOAD: Final = {"requestBody": {"required": True, "content": _CONTENT}}


class TaskChange(Sent):
    name: str = Field("", max_length=255)
    priority: int = Field(50, ge=0, le=100)
    running_limit: int = Field(0, ge=0, le=MAX_FRAMES)


class FilmRequest(Sent):
    film: str = Field("mp4", max_length=50, description="mp4 or webm, with frames per second if you like: webm@25.")


class Requeue(Sent):
    chunks: list[Annotated[int, Field(ge=0, le=LARGEST_ID)]] = Field(default=[], max_length=10_000)
    frames: str = Field(default="", max_length=65_536)


class Accept(Sent):
    names: list[Annotated[str, Field(max_length=1000)]] = Field(
        default=[], max_length=10_000, description="Only these; none: all that were found altered or have no digest."
    )


@router.call("GET", "/me", "Account", needs=Access.ACCOUNT)
async def me(principal: PrincipalDep, services: ServicesDep) -> Json:
    """Who I am, what I may do, how many tasks I may have in the queue, and how much they take and may take; and
    whether this farm sends mail to those who ask for it."""
    farm = {"sends_mail": bool(services.settings.notify_mail)}
    return task_views.me(principal) | await services.administration.limits(principal.user) | farm


@router.call("GET", "/tasks", "Tasks", needs=OWN)
async def list_tasks(
    principal: PrincipalDep,
    services: ServicesDep,
    limit: Limit = 50,
    cursor: Cursor = None,
    status: Word = "",
    engine: Word = "",
    search: Word = "",
    *,
    everybody: Annotated[bool, Query(alias="all")] = False,
) -> Json:
    """Tasks, newest first: my own, or with `all=1` everybody's that I may see."""
    page = {"limit": limit, "cursor": cursor}
    return await services.reading.tasks(
        principal, page, everybody=everybody, status=status, engine=engine, search=search
    )


@router.call("POST", "/tasks", "Task", 201, needs=OWN, reads=True, openapi_extra=_UPLOAD)
async def submit(
    request: Request, principal: PrincipalDep, services: ServicesDep, idempotency_key: Key = None
) -> Response:
    """Submit a task: a part `request` and one file, or JSON that names an upload."""
    if request.headers.get("content-type", "").partition(";")[0].strip().casefold() == "application/json":
        body = await Request(request.scope, bounded(request, request.receive)).body()
        task_id = await services.intake.submit_upload(principal, request.headers, body, client_of(request))
    else:
        task_id = await services.intake.submit_form(principal, request, read_v2)
    task = await services.reading.submitted(principal, task_id)
    return json_answer(task, 201, {"Location": f"{V2}/tasks/{task_id}"})


@router.call("GET", "/tasks/{task_id}", "Task", needs=OWN)
async def get_task(principal: PrincipalDep, services: ServicesDep, task_id: Id) -> Json:
    """One task."""
    return await services.reading.task(principal, task_id)


def _parts(what: str) -> Handler:
    async def parts(
        principal: PrincipalDep,
        services: ServicesDep,
        task_id: Id,
        limit: Limit = 100,
        cursor: Cursor = None,
        ids: Ids = "",
    ) -> Json:
        only = [int(number) for number in ids.split(",")] if ids else []
        return await services.reading.parts(principal, task_id, what, limit, cursor, only)

    parts.__name__ = f"list_{what}"
    return parts


for _what, _description in (
    ("chunks", "The pieces that a task was cut into."),
    ("attempts", "Every try of every chunk, newest first."),
    ("results", "The files that have landed."),
):
    router.call("GET", f"/tasks/{{task_id}}/{_what}", _what.capitalize(), needs=OWN, description=_description)(
        _parts(_what)
    )


@router.call("GET", "/tasks/{task_id}/explain", "Reasons", needs=OWN)
async def explain(principal: PrincipalDep, services: ServicesDep, task_id: Id) -> Json:
    """Why the task is not running, or not faster."""
    return {"reasons": await services.reading.explain(task_id, user_id=principal.tasks_of)}


def _acting(act: Any) -> Handler:
    async def acting(principal: PrincipalDep, services: ServicesDep, task_id: Id) -> Json:
        await act(services.control, task_id, user_id=principal.tasks_of)
        return await services.reading.task(principal, task_id)

    acting.__name__ = act.__name__
    return acting


for _act, _description in (
    (Control.cancel, "Take a task from the queue and stop what runs of it."),
    (Control.resume, "Undo a pause."),
    (Control.retry, "Render again what failed or was canceled."),
):
    router.call("POST", f"/tasks/{{task_id}}/{_act.__name__}", "Task", needs=OWN, description=_description)(
        _acting(_act)
    )


@router.call("POST", "/tasks/{task_id}/pause", "Task", needs=OWN)
async def pause(principal: PrincipalDep, services: ServicesDep, task_id: Id, *, now: bool = False) -> Json:
    """Start nothing new of a task; what runs goes on, or with `now=1` is stopped and waits, without a failure."""
    await services.control.pause(task_id, now=now, user_id=principal.tasks_of)
    return await services.reading.task(principal, task_id)


@router.call("POST", "/tasks/{task_id}/requeue", "Task", needs=OWN)
async def requeue(principal: PrincipalDep, services: ServicesDep, task_id: Id, body: Requeue | None = None) -> Json:
    """Render a task again, or only some chunks (ids) and frames (a range); what there is stays until it is replaced."""
    await services.control.requeue(task_id, **(body.model_dump() if body else {}), user_id=principal.tasks_of)
    return await services.reading.task(principal, task_id)


@router.call("POST", "/tasks/{task_id}/accept", "Task", needs=Permission.ALL_TASKS)
async def accept(principal: PrincipalDep, services: ServicesDep, task_id: Id, body: Accept | None = None) -> Json:
    """Take a task's files as they lie on the server from now on, although they are not those that landed."""
    await services.reading.accept(principal, task_id, body.names if body else ())
    return await services.reading.task(principal, task_id)


@router.call("POST", "/tasks/{task_id}/film", "Task", needs=OWN)
async def make_film(
    principal: PrincipalDep, services: ServicesDep, task_id: Id, body: FilmRequest | None = None
) -> Json:
    """Have a film made of the frames that are there, and another one when the task has ended; it becomes a result."""
    film = Film.parse(body.film if body else "mp4")
    await services.control.film(task_id, film, user_id=principal.tasks_of)
    return await services.reading.task(principal, task_id)


@router.call("PATCH", "/tasks/{task_id}", "Task", needs=OWN)
async def change(principal: PrincipalDep, services: ServicesDep, task_id: Id, body: TaskChange) -> Json:
    """Change a task's name, priority, or how many of its chunks run at once."""
    await services.control.change(task_id, body.model_dump(exclude_unset=True), user_id=principal.tasks_of)
    return await services.reading.task(principal, task_id)


@router.call("DELETE", "/tasks/{task_id}", needs=OWN)
async def delete(principal: PrincipalDep, services: ServicesDep, task_id: Id) -> None:
    """Stop a task and delete it with all its files."""
    await services.control.delete(task_id, user_id=principal.tasks_of)


@router.call("GET", "/tasks/{task_id}/download", "application/zip", needs=OWN)
async def download(
    request: Request,
    principal: PrincipalDep,
    services: ServicesDep,
    task_id: Id,
    frames: Frames = "",
    name: Names = (),
    *,
    results: bool = False,
) -> Response:
    """The task's scene and results as a ZIP, or only some of them (`results`: not the scene); ranges are answered."""
    chosen = await asyncio.to_thread(chooser, frames, name) if frames or name else None
    own, called = principal.tasks_of, f"task-{task_id}.zip"
    content = await services.reading.archive(task_id, own, called, chosen, only_results=results)
    return downloads.answer(content, request.headers)


@router.call("GET", "/tasks/{task_id}/results/{name:path}", "application/octet-stream", needs=OWN)
async def result(request: Request, principal: PrincipalDep, services: ServicesDep, task_id: Id, name: str) -> Response:
    """One result as a file; ranges are answered."""
    return downloads.answer(await services.reading.result_file(principal, task_id, name), request.headers)


@router.call("GET", "/tasks/{task_id}/previews/{name:path}", "image/jpeg", needs=OWN)
async def get_preview(
    request: Request,
    principal: PrincipalDep,
    services: ServicesDep,
    task_id: Id,
    name: str,
    size: Size = "thumb",
    v: Version = "",
) -> Response:
    """A small JPEG of a result (`thumb`), or one that a browser can show (`view`)."""
    jpeg, etag = await services.reading.preview(principal, task_id, name, size)
    kept = "max-age=31536000, immutable" if v else "no-cache"
    headers = {"ETag": etag, "Cache-Control": f"private, {kept}", "X-Content-Type-Options": "nosniff"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(jpeg, 200, headers, "image/jpeg")


@router.call("GET", "/attempts/{attempt_id}/log", "text/plain", needs=OWN)
async def attempt_log(
    principal: PrincipalDep, services: ServicesDep, attempt_id: Id, offset: LogOffset = 0
) -> Response:
    """An attempt's log from a byte offset on; `X-Log-Size` says where it ends now."""
    data, size = await services.reading.log(principal, attempt_id, offset)
    headers = {"X-Log-Size": str(size), "X-Content-Type-Options": "nosniff"}
    return Response(data, 200, headers, "text/plain; charset=utf-8")


@router.call("GET", "/events", "text/event-stream", needs=Access.ACCOUNT, tags=["events"])
async def events(
    request: Request,
    principal: PrincipalDep,
    services: ServicesDep,
    last_event_id: LastHeader = None,
    since: Last = None,
) -> Response:
    """Everything that happens and may be seen (task, result, progress, machine, resync), as server-sent events."""
    may_see_farm, tasks_of = principal.may(Permission.MACHINES), principal.tasks_of

    def may_see(event: TaskEvent) -> bool:
        return may_see_farm if event.user_id is None else tasks_of in (None, event.user_id)

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    stream = services.events.stream(
        last_event_id or since, may_see, partial(services.callers.may_stay, request, principal)
    )
    return _EventStream(stream, 200, headers, "text/event-stream", seat=services.events.seat(principal.user_id))


class _EventStream(StreamingResponse):
    """A stream that has a seat among those of its account from its first to its last moment."""

    def __init__(self, *about: Any, seat: AbstractContextManager[None]) -> None:
        super().__init__(*about)
        self._seat = seat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._seat:
            await super().__call__(scope, receive, send)


@router.call("GET", "/attempts/{attempt_id}/inputs", "Inputs", needs=Access.ATTEMPT)
async def list_inputs(services: ServicesDep, held: HolderDep) -> Json:
    """The files that the attempt's task was submitted with. For its machine: `Authorization: Attempt <token>`."""
    scene, files = await services.transfers.inputs(held)
    return {"scene": scene, "files": list(files)}


@router.call("GET", "/attempts/{attempt_id}/inputs/{name:path}", "application/octet-stream", needs=Access.ATTEMPT)
async def input_file(request: Request, services: ServicesDep, held: HolderDep, name: str) -> Response:
    """One of these files; ranges are answered."""
    return downloads.answer(await services.transfers.input_file(held, name), request.headers)


@router.call("PUT", "/attempts/{attempt_id}/outputs/{name:path}", needs=Access.ATTEMPT)
async def send_output(request: Request, services: ServicesDep, attempt_id: Id, held: HolderDep, name: str) -> None:
    """A finished file of the attempt, before it is reported; `X-Digest` is its BLAKE2b-256 in hex."""
    await services.transfers.receive(attempt_id, held, name, request)


@router.call("PUT", "/attempts/{attempt_id}/previews/{name:path}", needs=Access.ATTEMPT, include_in_schema=False)
async def put_preview(
    request: Request, services: ServicesDep, held: HolderDep, attempt_id: Id, name: str, size: Size = "thumb"
) -> None:
    """A machine sends the preview of a frame; its attempt's token is the authority."""
    body = Request(request.scope, bounded(request, request.receive, LARGEST))
    await services.transfers.receive_preview(attempt_id, held, name, size, await body.body())


upload_router = Router("uploads")

_BYTES: Final[Json] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_BODY: Final[Json] = {"requestBody": {"required": True, "content": _BYTES}}
_NEW: Final[Json] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/NewUpload"}}},
    }
}


@upload_router.call("POST", "/uploads", "Upload", 201, needs=OWN, openapi_extra=_NEW)
async def create(request: Request, principal: PrincipalDep, services: ServicesDep) -> Json:
    """Announce files; the answer says what is to be sent of each."""
    return await services.uploads.create(principal.user_id, request, content_length(request.headers))


@upload_router.call("GET", "/uploads/{upload_id}", "Upload", needs=OWN)
async def describe(request: Request, principal: PrincipalDep, services: ServicesDep, upload_id: str) -> Json:
    """What is there of each file, and what is to be sent."""
    return await services.uploads.describe(principal.user_id, upload_id, client_of(request))


@upload_router.call("GET", "/uploads/{upload_id}/facts", "SceneFacts", needs=OWN)
async def facts(
    request: Request,
    principal: PrincipalDep,
    services: ServicesDep,
    upload_id: str,
    name: Annotated[str, Query(max_length=1000)],
) -> Json:
    """What a scene that is there says of itself: version, scenes (the active one first), files that it needs."""
    return await services.intake.scene_facts(principal.user_id, upload_id, name, client_of(request))


@upload_router.call("PATCH", "/uploads/{upload_id}/files/{index}", needs=OWN, openapi_extra=_BODY)
async def append(
    request: Request,
    principal: PrincipalDep,
    services: ServicesDep,
    upload_id: str,
    index: FileIndex,
    upload_offset: UploadOffset,
) -> Response:
    """Go on with a file that comes without chunks. `Upload-Offset` says from where, and in the answer how far it is."""
    uploads, length = services.uploads, _length(request)
    offset = await uploads.append(principal.user_id, upload_id, index, int(upload_offset), request, length)
    return Response(status_code=204, headers={"Upload-Offset": str(offset)})


@upload_router.call("PUT", "/uploads/{upload_id}/pack", needs=OWN, openapi_extra=_BODY)
async def pack(request: Request, principal: PrincipalDep, services: ServicesDep, upload_id: str) -> None:
    """Send chunks: each a file's index and the chunk's (u32, little endian), then its bytes."""
    await services.uploads.put_pack(principal.user_id, upload_id, request, _length(request))


@upload_router.call("DELETE", "/uploads/{upload_id}", needs=OWN)
async def delete_upload(principal: PrincipalDep, services: ServicesDep, upload_id: str) -> None:
    """Give an upload up."""
    await services.uploads.delete(principal.user_id, upload_id)


def _length(request: Request) -> int:
    if "content-length" not in request.headers:
        raise InvalidRequest("Say how long the body is: Content-Length.", code="length_required")
    return content_length(request.headers)
