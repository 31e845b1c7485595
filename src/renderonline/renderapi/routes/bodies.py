"""Reading bodies of requests, with bounds."""

from typing import Final

from starlette.requests import Request
from starlette.types import Message, Receive

from renderonline.farm.errors import TooLarge
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.submissions import Incoming

MAX_BODY: Final = 256 * 1024
"""The largest JSON body, in bytes."""


def bounded(request: Request, receive: Receive, most: int = MAX_BODY) -> Receive:
    """`receive` that raises `TooLarge` when the body becomes too long; at once if it is known to be."""
    too_large = TooLarge(f"The body of this request has at most {most} bytes.")
    if (content_length(request) or 0) > most:
        raise too_large
    read = 0

    async def received() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise too_large
        return message

    return received


def content_length(request: Request) -> int | None:
    """The body's length if the client says it."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def incoming(request: Request, principal: Principal) -> Incoming:
    """A submission, nothing of which has been read."""
    headers = request.headers
    return Incoming(
        principal=principal,
        content_type=headers.get("content-type", ""),
        client_key=headers.get("idempotency-key", ""),
        length=content_length(request),
        expects_continue=headers.get("expect", "").casefold() == "100-continue",
        stream=request.stream(),
    )
