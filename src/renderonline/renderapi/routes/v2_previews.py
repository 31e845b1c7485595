"""Previews of results: machines send them, the page shows them."""

from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from renderonline.renderapi.routes.answers import Caller, Center, Part
from renderonline.renderapi.routes.bodies import bounded
from renderonline.renderapi.routes.models import Id
from renderonline.renderapi.routes.v2_attempts import Held
from renderonline.storage.previews import LARGEST

router = Part(tags=["tasks"])

Size = Annotated[str, Query(max_length=20, description="thumb or view")]
Version = Annotated[str, Query(max_length=100, description="Any text, such as the result's digest: kept for good.")]


@router.call("PUT", "/attempts/{attempt_id}/previews/{name:path}", include_in_schema=False)
async def put_preview(
    request: Request, center: Center, held: Held, attempt_id: Id, name: str, size: Size = "thumb"
) -> None:
    """A machine sends the preview of a frame; its attempt's token is the authority."""
    body = Request(request.scope, bounded(request, request.receive, LARGEST))
    await center.previews.put(attempt_id, held, name, size, await body.body())


@router.call("GET", "/tasks/{task_id}/previews/{name:path}", "image/jpeg")
async def get_preview(
    request: Request, caller: Caller, center: Center, task_id: Id, name: str, size: Size = "thumb", v: Version = ""
) -> Response:
    """A small JPEG of a result (`thumb`), or one that a browser can show (`view`)."""
    found = await center.previews.get(caller, task_id, name, size)
    kept = "max-age=31536000, immutable" if v else "no-cache"
    headers = {"ETag": found.etag, "Cache-Control": f"private, {kept}", "X-Content-Type-Options": "nosniff"}
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    return Response(found.jpeg, 200, headers, "image/jpeg")
