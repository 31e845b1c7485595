"""`/renderapi/v2/uploads`: files that come in pieces and go on after any stop; a task is made of them in the end."""

from typing import Annotated, Final

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from renderonline.farm.accounts import Permission
from renderonline.farm.errors import InvalidRequest
from renderonline.renderapi.looks import client_of
from renderonline.renderapi.routes.models import FileIndex, UploadOffset
from renderonline.renderapi.routes.router import Json, PrincipalDep, Router, ServicesDep
from renderonline.serving.bodies import content_length

router = Router("uploads")

OWN: Final = Permission.OWN_TASKS

_BYTES: Final[Json] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_BODY: Final[Json] = {"requestBody": {"required": True, "content": _BYTES}}
_NEW: Final[Json] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/NewUpload"}}},
    }
}


@router.call("POST", "/uploads", "Upload", 201, needs=OWN, openapi_extra=_NEW)
async def create(request: Request, principal: PrincipalDep, services: ServicesDep) -> Json:
    """Announce files; the answer says what is to be sent of each."""
    return await services.submissions.uploads.create(principal.user_id, request, content_length(request.headers))


@router.call("GET", "/uploads/{upload_id}", "Upload", needs=OWN)
async def describe(request: Request, principal: PrincipalDep, services: ServicesDep, upload_id: str) -> Json:
    """What is there of each file, and what is to be sent."""
    return await services.submissions.uploads.describe(principal.user_id, upload_id, client_of(request))


@router.call("GET", "/uploads/{upload_id}/facts", "SceneFacts", needs=OWN)
async def facts(
    request: Request,
    principal: PrincipalDep,
    services: ServicesDep,
    upload_id: str,
    name: Annotated[str, Query(max_length=1000)],
) -> Json:
    """What a scene that is there says of itself: version, scenes (the active one first), files that it needs."""
    return await services.submissions.scene_facts(principal.user_id, upload_id, name, client_of(request))


@router.call("PATCH", "/uploads/{upload_id}/files/{index}", needs=OWN, openapi_extra=_BODY)
async def append(
    request: Request,
    principal: PrincipalDep,
    services: ServicesDep,
    upload_id: str,
    index: FileIndex,
    upload_offset: UploadOffset,
) -> Response:
    """Go on with a file that comes without chunks. `Upload-Offset` says from where, and in the answer how far it is."""
    uploads, length = services.submissions.uploads, _length(request)
    offset = await uploads.append(principal.user_id, upload_id, index, int(upload_offset), request, length)
    return Response(status_code=204, headers={"Upload-Offset": str(offset)})


@router.call("PUT", "/uploads/{upload_id}/pack", needs=OWN, openapi_extra=_BODY)
async def pack(request: Request, principal: PrincipalDep, services: ServicesDep, upload_id: str) -> None:
    """Send chunks: each a file's index and the chunk's (u32, little endian), then its bytes."""
    await services.submissions.uploads.put_pack(principal.user_id, upload_id, request, _length(request))


@router.call("DELETE", "/uploads/{upload_id}", needs=OWN)
async def delete(principal: PrincipalDep, services: ServicesDep, upload_id: str) -> None:
    """Give an upload up."""
    await services.submissions.uploads.delete(principal.user_id, upload_id)


def _length(request: Request) -> int:
    if "content-length" not in request.headers:
        raise InvalidRequest("Say how long the body is: Content-Length.", code="length_required")
    return content_length(request.headers)
