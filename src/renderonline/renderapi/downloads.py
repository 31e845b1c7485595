"""Sending what a task has: one file, or its whole directory as a ZIP that is never written anywhere.

Files are read in a thread, one piece ahead of the network, so that memory stays bounded and the event loop free.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from typing import Final
from urllib.parse import quote

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from renderonline.farm.errors import NotFound, RenderOnlineError
from renderonline.storage.archive import StoredArchive, etag_of
from renderonline.storage.landed import Compared, Member, file_pieces

log = structlog.get_logger(__name__)

BATCH_BYTES: Final = 2 * 1024 * 1024
"""What is read in one go; as much again is read while it is sent."""
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes of a known length that can be read from anywhere; `pieces(start, end)` blocks."""

    size: int
    etag: str
    media_type: str
    file_name: str
    pieces: Callable[[int, int], Iterator[bytes]]
    modified_s: int | None = None


async def archive_of(find: Callable[[], Sequence[Member]], file_name: str, compared: Compared) -> Content:
    """The ZIP of the files that `find` (which may block) finds. `NotFound` when they are not there."""
    try:
        archive = await asyncio.to_thread(lambda: StoredArchive(find(), compared))
    except OSError as error:
        raise NotFound("The files of this task are not on the server any more.", code="files_gone") from error
    return Content(archive.size, archive.etag, "application/zip", file_name, archive.pieces)


def content_of(member: Member, file_name: str, compared: Compared) -> Content:
    """One file, compared while it is sent."""
    modified_s = member.modified_ns // 1_000_000_000
    pieces = partial(file_pieces, member, compared=compared)
    return Content(member.size, etag_of([member]), "application/octet-stream", file_name, pieces, modified_s)


def whole(content: Content) -> Response:
    """Everything from the first byte, v1's way."""
    headers = {"Content-Disposition": f"attachment; filename={content.file_name}"}
    return _Streamed(content, 0, content.size, 200, headers)


def answer(content: Content, headers: Mapping[str, str]) -> Response:
    """What the request's `Range`, `If-Range` and `If-None-Match` ask for."""
    own = {
        "ETag": content.etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": _disposition(content.file_name),
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    if content.modified_s is not None:
        own["Last-Modified"] = formatdate(content.modified_s, usegmt=True)
    if content.etag in {tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")}:
        return Response(status_code=304, headers=own)
    current = headers.get("if-range", content.etag) == content.etag
    span = _span(headers.get("range", ""), content.size) if current else None
    if span is None:
        return _Streamed(content, 0, content.size, 200, own)
    start, end = span
    if start >= end:
        return Response(status_code=416, headers={**own, "Content-Range": f"bytes */{content.size}"})
    own["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    return _Streamed(content, start, end, 206, own)


class _Streamed(Response):
    """A response of known length whose pieces are read one ahead in a thread."""

    def __init__(self, content: Content, start: int, end: int, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status_code=status, headers=headers, media_type=content.media_type)
        self.headers["Content-Length"] = str(end - start)
        self._pieces = partial(content.pieces, start, end)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            try:
                if not await self._sent(receive, send):
                    return
            except RenderOnlineError as error:
                # The status is sent. What was promised can't be kept: without the end the connection is cut.
                log.warning("download was cut off", reason=error.message)
                return
        await send({"type": "http.response.body", "body": b""})

    async def _sent(self, receive: Receive, send: Send) -> bool:
        gone = asyncio.create_task(_disconnected(receive))
        try:
            async with contextlib.aclosing(_read_ahead(self._pieces())) as batches:
                async for batch in batches:
                    for piece in filter(None, batch):
                        if gone.done():
                            return False
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                    if gone.done():
                        return False
        finally:
            gone.cancel()
        return True


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_ahead(pieces: Iterator[bytes]) -> AsyncGenerator[list[bytes], None]:
    loop = asyncio.get_running_loop()
    ahead = loop.run_in_executor(None, _batch, pieces)
    try:
        while batch := await asyncio.shield(ahead):
            ahead = loop.run_in_executor(None, _batch, pieces)
            yield batch
    finally:
        await asyncio.wait({ahead})
        if not ahead.cancelled():
            ahead.exception()
        if isinstance(pieces, Generator):
            pieces.close()


def _batch(pieces: Iterator[bytes]) -> list[bytes]:
    """The next pieces, about `BATCH_BYTES` in all; none at the end. An empty piece, sent by a source that is not ready,
    ends a batch."""
    batch, size = list[bytes](), 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if not piece or size >= BATCH_BYTES:
            break
    return batch


def _span(asked: str, size: int) -> tuple[int, int] | None:
    """The bytes [first, behind) of a `Range`; None for none, several, or a unit that we don't know: the whole then."""
    match = _RANGE.fullmatch(asked.replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if len(first) > 19 or len(last) > 19:
        return size, size
    if not first:
        return max(size - int(last), 0), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size


def _disposition(name: str) -> str:
    plain = re.sub(r'[^\x20-\x7e]|["\\]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name)}"
