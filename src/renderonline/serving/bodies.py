"""Bodies of requests: small ones within a bound, large ones written by worker threads, so that the disk never blocks
the event loop. Memory is bounded, and a client that sends nothing occupies no thread.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from renderonline.farm.errors import InvalidRequest, TooLarge

Take = Callable[[memoryview], object]
"""Called in a worker thread with each piece of a body in turn. A true result stops the reading there; the rest of the
body is for another reader."""

THREADS: Final = "renderonline.threads"
"""The key in a request's state of the executor for the bytes of bodies; elsewhere the event loop's own is used."""
MAX_BODY: Final = 256 * 1024
"""The largest JSON body, in bytes."""
BATCH_BYTES: Final = 8 * 1024 * 1024
SHORT_BYTES: Final = 64 * 1024
GATHER_S: Final = 0.005
"""How long more is gathered after a piece of less than `SHORT_BYTES`, because a thread for each packet would cost more
than the packet itself."""


def content_length(headers: Mapping[str, str]) -> int:
    """Return the length that the client announced, or 0."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def bounded(request: Request, receive: Receive, most: int = MAX_BODY) -> Receive:
    """Return a `receive` that raises `TooLarge` once the body exceeds `most` bytes, or at once if so announced."""
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


async def disconnected(receive: Receive) -> None:
    """Return when the client has disconnected; for a request whose body was read, or that has none."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def receive_body(
    request: Request, handle: int, *, length: int, update: Callable[[memoryview], object] | None = None
) -> None:
    """Write the request's body, exactly `length` bytes, to the open file `handle` at its current position.

    `update` is called with every piece after it was written, in order, in the thread that wrote it. Raises
    `InvalidRequest` when the client sends less (what arrived before is written) or more, and the `OSError` of the disk.
    Nothing uses `handle` any more when this returns or raises, also when it is canceled.
    """
    await Body(request, length).read(writing(handle, update))


def writing(handle: int, update: Callable[[memoryview], object] | None = None) -> Callable[[memoryview], None]:
    """Return a function that writes a piece to the open file `handle` at its current position, then calls `update` with
    it."""
    waiting = 0

    def write(piece: memoryview) -> None:
        nonlocal waiting
        rest = piece
        while rest:
            rest = rest[os.write(handle, rest) :]
        if update is not None:
            update(piece)
        waiting += len(piece)
        if waiting >= BATCH_BYTES and hasattr(os, "posix_fadvise"):
            # Starts writing it to the disk now: a large backlog would delay everyone who syncs a small file.
            begins = os.lseek(handle, 0, os.SEEK_CUR) - waiting
            os.posix_fadvise(handle, begins, waiting, os.POSIX_FADV_DONTNEED)
            waiting = 0

    return write


class Body:
    """The body of one request: `length` bytes, or any number for None. It is read once: by `async for`, and from any
    piece on by `read`."""

    def __init__(self, request: Request, length: int | None) -> None:
        self._request = request
        self._left = length
        self._stream = self._counted()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._stream

    async def read(self, take: Take) -> bool:
        """Call `take` with every piece until it returns something true or the body ends; return whether it stopped.

        Raises what `take` raises, and `InvalidRequest` when the body is not as long as announced.
        """
        try:
            async for piece in self._stream:
                if piece and await in_thread(self._request, partial(take, memoryview(piece))):
                    return True
                if self._left and len(piece) < SHORT_BYTES:
                    await asyncio.sleep(GATHER_S)
        except ClientDisconnect as gone:
            raise _too_short() from gone
        if self._left:
            raise _too_short()
        return False

    async def _counted(self) -> AsyncIterator[bytes]:
        async for piece in self._request.stream():
            if self._left is not None:
                self._left -= len(piece)
                if self._left < 0:
                    raise InvalidRequest("The body is longer than announced.", code="wrong_length")
            yield piece


async def in_thread(request: Request, work: Callable[[], object]) -> object:
    """Run `work` in one of the server's threads for bodies. Also a canceled caller waits for its end, because it uses
    open files."""
    threads: ThreadPoolExecutor | None = request.scope.get("state", {}).get(THREADS)
    pending = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(pending)
    except asyncio.CancelledError:
        await asyncio.wait({pending})
        if not pending.cancelled():
            pending.exception()
        raise


def _too_short() -> InvalidRequest:
    return InvalidRequest("The connection ended before the whole body was sent. Send it again.", code="incomplete_body")
