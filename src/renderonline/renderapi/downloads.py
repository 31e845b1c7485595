"""Sending what a task has: one file, or its whole directory as a ZIP that is never written anywhere.

Files are read in a thread, one piece ahead of the network, so that memory stays bounded and the event loop free.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import stat
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from renderonline.farm.errors import NotFound, RenderOnlineError
from renderonline.storage.archive import Member, StoredArchive, file_pieces, members_of

log = structlog.get_logger(__name__)

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


async def archive_of(directory: Path, file_name: str, known: Mapping[str, tuple[int, int]]) -> Content:
    """The ZIP of a directory. `known` has size and CRC-32 of the results that landed, by name.

    Raises `NotFound` when the directory is not there.
    """

    def crc_of(name: str, size: int) -> int | None:
        entry = known.get(name)
        return entry[1] if entry is not None and entry[0] == size else None

    def lay_out() -> StoredArchive:
        return StoredArchive(members_of(directory, crc_of))

    try:
        archive = await asyncio.to_thread(lay_out)
    except OSError as error:
        raise NotFound("The files of this task are not on the server any more.", code="files_gone") from error
    return Content(archive.size, archive.etag, "application/zip", file_name, archive.pieces)


async def file_of(path: Path, file_name: str) -> Content:
    """One regular file. Raises `NotFound` for everything else; a symbolic link is not followed."""
    try:
        status = await asyncio.to_thread(os.lstat, path)
    except OSError as error:
        raise NotFound(f"The file {file_name} is not on the server any more.", code="files_gone") from error
    if not stat.S_ISREG(status.st_mode):
        raise NotFound(f"{file_name} is not a file.", code="files_gone")
    member = Member(file_name, path, status.st_size, status.st_mtime_ns)
    version = f"{status.st_ino} {status.st_size} {status.st_mtime_ns}".encode()
    return Content(
        status.st_size,
        f'"{hashlib.blake2b(version, digest_size=16).hexdigest()}"',
        "application/octet-stream",
        file_name,
        lambda start, end: file_pieces(member, start, end),
        status.st_mtime_ns // 1_000_000_000,
    )


def whole(content: Content) -> Response:
    """Everything from the first byte, v1's way."""
    return _Streamed(
        content, 0, content.size, 200, {"Content-Disposition": f"attachment; filename={content.file_name}"}
    )


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
    if content.etag in _tags(headers.get("if-none-match", "")):
        return Response(status_code=304, headers=own)
    asked = headers.get("range")
    if asked is None or headers.get("if-range", content.etag) != content.etag:
        return _Streamed(content, 0, content.size, 200, own)
    span = _span(asked, content.size)
    if span is None:  # several ranges or a unit we don't know: the whole is always right
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
        self._content, self._start, self._end = content, start, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            gone = asyncio.create_task(_disconnected(receive))
            pieces = _read_ahead(self._content.pieces, self._start, self._end)
            try:
                async with contextlib.aclosing(pieces):
                    async for piece in pieces:
                        if gone.done():
                            return
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
            except RenderOnlineError as error:
                # The status is sent. What was promised can't be kept: without the end the connection is cut.
                log.warning("download was cut off", reason=error.message)
                return
            finally:
                gone.cancel()
        await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_ahead(
    pieces: Callable[[int, int], Iterator[bytes]], start: int, end: int
) -> AsyncGenerator[bytes, None]:
    if start >= end:
        return
    loop = asyncio.get_running_loop()
    iterator = pieces(start, end)
    ahead = loop.run_in_executor(None, next, iterator, None)
    try:
        while (piece := await asyncio.shield(ahead)) is not None:
            ahead = loop.run_in_executor(None, next, iterator, None)
            yield piece
    finally:
        if not ahead.done():
            await asyncio.wait({ahead})
        if not ahead.cancelled():
            ahead.exception()
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _span(asked: str, size: int) -> tuple[int, int] | None:
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


def _tags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _disposition(name: str) -> str:
    plain = re.sub(r'[^\x20-\x7e]|["\\]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name)}"
