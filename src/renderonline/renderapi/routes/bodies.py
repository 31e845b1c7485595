"""Reading bodies of requests, with bounds."""

from typing import Final

from starlette.requests import Request

from renderonline.farm.errors import TooLarge
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.submissions import Incoming

MAX_BODY: Final = 256 * 1024
"""The largest JSON body, in bytes."""


async def read_body(request: Request, most: int = MAX_BODY) -> bytes:
    """The whole body, or `TooLarge` as soon as it is known to be."""
    if (content_length(request) or 0) > most:
        raise TooLarge(f"The body of this request has at most {most} bytes.")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise TooLarge(f"The body of this request has at most {most} bytes.")
    return bytes(body)


def content_length(request: Request) -> int | None:
    """The body's length if the client says it."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def incoming(request: Request, principal: Principal) -> Incoming:
    """A submission, nothing of which has been read."""
    return Incoming(
        principal=principal,
        content_type=request.headers.get("content-type", ""),
        client_key=request.headers.get("idempotency-key", ""),
        length=content_length(request),
        expects_continue=request.headers.get("expect", "").casefold() == "100-continue",
        stream=request.stream(),
    )
