"""`/renderapi/v2/attempts/{id}`: what machines without the farm's directory fetch and send, by the attempt's token."""

from starlette.requests import Request
from starlette.responses import Response

from renderonline.renderapi import downloads
from renderonline.renderapi.routes.answers import Center, Held, Json, Part
from renderonline.renderapi.routes.guard import Door
from renderonline.renderapi.routes.models import Id, Size
from renderonline.serving.bodies import bounded
from renderonline.storage.previews import LARGEST

router = Part("attempts")


@router.call("GET", "/attempts/{attempt_id}/inputs", "Inputs", needs=Door.ATTEMPT)
async def list_inputs(center: Center, held: Held) -> Json:
    """The files that the attempt's task was submitted with. For its machine: `Authorization: Attempt <token>`."""
    scene, files = await center.transfers.inputs(held)
    return {"scene": scene, "files": list(files)}


@router.call("GET", "/attempts/{attempt_id}/inputs/{name:path}", "application/octet-stream", needs=Door.ATTEMPT)
async def input_file(request: Request, center: Center, held: Held, name: str) -> Response:
    """One of these files; ranges are answered."""
    return downloads.answer(await center.transfers.input_file(held, name), request.headers)


@router.call("PUT", "/attempts/{attempt_id}/outputs/{name:path}", needs=Door.ATTEMPT)
async def send_output(request: Request, center: Center, attempt_id: Id, held: Held, name: str) -> None:
    """A finished file of the attempt, before it is reported; `X-Digest` is its BLAKE2b-256 in hex."""
    await center.transfers.receive(attempt_id, held, name, request)


@router.call("PUT", "/attempts/{attempt_id}/previews/{name:path}", needs=Door.ATTEMPT, include_in_schema=False)
async def put_preview(
    request: Request, center: Center, held: Held, attempt_id: Id, name: str, size: Size = "thumb"
) -> None:
    """A machine sends the preview of a frame; its attempt's token is the authority."""
    body = Request(request.scope, bounded(request, request.receive, LARGEST))
    await center.transfers.receive_preview(attempt_id, held, name, size, await body.body())
