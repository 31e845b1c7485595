"""Reading bodies of requests, with bounds."""

from typing import Final

from starlette.requests import Request
from starlette.types import Message, Receive

from renderonline.farm.errors import TooLarge
from renderonline.renderapi.submissions import content_length

MAX_BODY: Final = 256 * 1024
"""The largest JSON body, in bytes."""


def bounded(request: Request, receive: Receive, most: int = MAX_BODY) -> Receive:
    """`receive` that raises `TooLarge` when the body becomes too long; at once if it is known to be."""
    too_large = TooLarge(f"The body of this request has at most {most} bytes.")
    if content_length(request.headers) > most:
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
