"""Downloads: one file of a task, or its whole directory as a ZIP that is never written to the disk.

Files are read in a thread, one batch ahead of the network, so that memory stays bounded and the event loop free.

A result is sent as it landed, or not at all (R15 Served as landed). A change shows when the bytes are read: that
download is cut off, and `LandedFiles` refuses the next ones until the file is right again, its frames are rendered
again, or an operator accepts it as it is.
"""

import asyncio
import contextlib
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from renderonline.database import listing_rows
from renderonline.database.door import Connection, Database
from renderonline.database.report_rows import InPlace, take_in_place
from renderonline.database.submission_rows import list_inputs
from renderonline.farm.errors import Conflict, InvalidRequest, NotFound, RenderOnlineError
from renderonline.farm.tasks import Landed
from renderonline.serving.bodies import disconnected
from renderonline.storage.archive import (
    Altered,
    Compared,
    Member,
    StoredArchive,
    etag_of,
    file_pieces,
    is_as_known,
    members_of,
)
from renderonline.storage.disk import RESULT_SUMS, digest_file
from renderonline.storage.names import task_directory

log = structlog.get_logger(__name__)

BATCH_BYTES: Final = 2 * 1024 * 1024
"""Read at once; as much again is read while it is sent."""
_TASKS: Final = 1000
_FILES: Final = 1000
"""Altered files that are remembered of each of the last `_TASKS` tasks; others are found again."""
_NAMED: Final = 5
"""Altered files that an error names."""
COMPARED: Final = "compared"
NOT_COMPARED: Final = "not_compared"
ALTERED: Final = "altered"
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


Pieces = Callable[[int, int], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes of a known length, which can be read from any offset; `pieces(start, end)` blocks."""

    size: int
    etag: str
    media_type: str
    file_name: str
    pieces: Pieces
    modified_s: int | None = None


def whole(content: Content) -> Response:
    """The whole content, as v1 sends it."""
    headers = {"Content-Disposition": f"attachment; filename={content.file_name}"}
    return _Streamed(content, 0, content.size, 200, headers)


def answer(content: Content, headers: Mapping[str, str]) -> Response:
    """The answer to the request's `Range`, `If-Range` and `If-None-Match`."""
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
                # The status is sent already: without the last message the server closes the connection.
                log.warning("download was cut off", reason=error.message)
                return
        await send({"type": "http.response.body", "body": b""})

    async def _sent(self, receive: Receive, send: Send) -> bool:
        gone = asyncio.create_task(disconnected(receive))
        try:
            async with contextlib.aclosing(_read_ahead(self._pieces())) as batches:
                async for batch in batches:
                    if gone.done():
                        return False
                    if batch:
                        await send({"type": "http.response.body", "body": batch, "more_body": True})
        finally:
            gone.cancel()
        return True


async def _read_ahead(pieces: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    loop = asyncio.get_running_loop()
    ahead = loop.run_in_executor(None, _batch, pieces)
    try:
        while (batch := await asyncio.shield(ahead)) is not None:
            ahead = loop.run_in_executor(None, _batch, pieces)
            yield batch
    finally:
        await asyncio.wait({ahead})
        if not ahead.cancelled():
            ahead.exception()
        if isinstance(pieces, Generator):
            pieces.close()


def _batch(pieces: Iterator[bytes]) -> bytes | None:
    """The next pieces, about `BATCH_BYTES` together; None at the end. A source that is not ready yields an empty piece,
    which ends a batch."""
    batch, size = list[bytes](), 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if not piece or size >= BATCH_BYTES:
            break
    return b"".join(batch) if batch else None


def _span(requested: str, size: int) -> tuple[int, int] | None:
    """The bytes [start, end) of a `Range`. None, which means the whole, for no range, several, or another unit."""
    match = _RANGE.fullmatch(requested.replace(" ", ""))
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


class LandedFiles:
    """Which files of tasks were found altered. Everything that reads files of tasks shares `compared`."""

    def __init__(self, database: Database) -> None:
        self.compared = Compared()
        self._database = database
        self._altered: OrderedDict[int, dict[str, str]] = OrderedDict()

    def integrity(self, task_id: int, name: str, digest: str) -> str:
        """`compared`: the result is compared with its digest whenever it is sent; `not_compared`: it has no digest;
        `altered`: it was found to differ."""
        if not digest:
            return NOT_COMPARED
        return ALTERED if self._altered.get(task_id, {}).get(name) == digest else COMPARED

    def altered(self, task_id: int) -> Collection[str]:
        """The names of the files of a task that were found altered."""
        return tuple(self._altered.get(task_id, ()))

    async def archive(self, task_id: int, find: Callable[[], Sequence[Member]], name: str) -> Content:
        """Return the ZIP of the files of a task that `find` returns (it may block). Raises `Conflict` (`altered`) when
        one of them was found altered and still is, `NotFound` when they are missing."""

        def checked() -> StoredArchive:
            members = find()
            self.check(task_id, members)
            return StoredArchive(members, self.compared)

        try:
            archive = await asyncio.to_thread(checked)
        except OSError as error:
            raise NotFound("The files of this task are not on the server any more.", code="files_gone") from error
        pieces = self._noting(task_id, archive.pieces)
        return Content(archive.size, archive.etag, "application/zip", name, pieces)

    async def file(
        self, task_id: int, path: Path, name: str, known: Landed, sums: Callable[[], Any] = RESULT_SUMS
    ) -> Content:
        """The file `name` of a task, which lies at `path`. Raises what `archive` raises."""
        try:
            member = await asyncio.to_thread(self._member, task_id, path, name, known, sums)
        except OSError as error:
            raise NotFound(f"The file {path.name} is not on the server any more.", code="files_gone") from error
        pieces = self._noting(task_id, partial(file_pieces, member, compared=self.compared))
        modified_s = member.modified_ns // 1_000_000_000
        return Content(member.size, etag_of([member]), "application/octet-stream", path.name, pieces, modified_s)

    def _member(self, task_id: int, path: Path, name: str, known: Landed, sums: Callable[[], Any]) -> Member:
        there = Member.of(name, path)
        if not known.digest:
            return there
        when = there.modified_ns if known.landed_us is None else known.landed_us * 1000
        member = Member(name, path, known.size, when, known.crc32, known.digest, sums)
        if there.size != known.size:
            self._note(task_id, member)
        self.check(task_id, (member,))
        return member

    def check(self, task_id: int, members: Sequence[Member]) -> None:
        """Compare those again that were found altered. Raises `Conflict` (`altered`) when they still are. Blocks."""
        suspects, found = self._altered.get(task_id, {}), list[str]()
        for member in members if suspects else ():
            if len(found) > _NAMED:
                break
            if (name := member.landed_as) in suspects:
                if suspects[name] == member.digest and not is_as_known(member, self.compared):
                    found.append(name)
                else:
                    suspects.pop(name, None)
        if found:
            raise _refusal(task_id, found)

    def _noting(self, task_id: int, read: Pieces) -> Pieces:
        """The same pieces; a file that is found altered while they are read is noted."""

        def pieces(start: int, end: int) -> Iterator[bytes]:
            try:
                yield from read(start, end)
            except Altered as error:
                self._note(task_id, error.member)
                raise

        return pieces

    def _note(self, task_id: int, member: Member) -> None:
        log.warning("A file of a task is not what it was", task=task_id, name=member.landed_as)
        suspects = self._altered.setdefault(task_id, {})
        if len(suspects) < _FILES:
            suspects[member.landed_as] = member.digest
        if len(self._altered) > _TASKS:
            self._altered.popitem(last=False)

    async def accept(self, task_id: int, names: Collection[str] = ()) -> None:
        """Accept files of a task as they are on the disk: the named ones, or all that were found altered or have no
        digest. Raises `NotFound` when one is missing or belongs to the task's scene, `Conflict` when there is nothing
        to accept."""
        wanted = set(names) or {*self.altered(task_id)}
        taken = await self._take(task_id, wanted, unknown=not names)
        if missing := sorted(set(names) - taken):
            raise NotFound(f"Task {task_id} has no file {missing[0]} that can be accepted.")
        if not taken:
            raise Conflict(f"No file of task {task_id} was found altered, and all have a digest: nothing to accept.")

    async def settle(self, task_id: int) -> None:
        """Give a digest to the files that a node of the existing system wrote beside the scene: they are whole now."""
        await self._take(task_id, (), unknown=True)

    async def _take(self, task_id: int, wanted: Collection[str], *, unknown: bool) -> set[str]:
        def read(connection: Connection) -> tuple[listing_rows.SceneFile, dict[str, Landed], frozenset[str]]:
            inputs = frozenset(file.name for file in list_inputs(connection, task_id))
            return listing_rows.scene_file(connection, task_id), listing_rows.landed_files(connection, task_id), inputs

        scene, known, inputs = await self._database.read(read)
        if not has_directory(scene):
            return set()
        directory = task_directory(scene.file_path, scene.file_name)
        kept = inputs or {Path(scene.file_path).relative_to(directory).as_posix()}
        folder = f"{scene.results_in}/" if scene.results_in else ""

        def chosen(place: str) -> bool:
            name = place.removeprefix(folder)
            return place not in kept and (
                name in wanted or (unknown and (place not in known or not known[place].digest))
            )

        found = await asyncio.to_thread(_found, directory, scene.results_in, chosen)
        take = partial(take_in_place, task_id=task_id, files=found, now_us=time.time_ns() // 1000)
        await self._database.write(take)
        suspects = self._altered.get(task_id, {})
        for file in found:
            suspects.pop(file.name, None)
        return {file.name for file in found}


def has_directory(scene: listing_rows.SceneFile) -> bool:
    """Whether the task's file lies in a directory of its own, `<user_id>/<ticks>/`."""
    directory = task_directory(scene.file_path, scene.file_name)
    return directory.is_absolute() and directory.name.isdigit() and directory.parent.name == str(scene.user_id)


def _found(directory: Path, folder: str, chosen: Callable[[str], bool]) -> list[InPlace]:
    """The files of a task's directory that are `chosen` by their path in it. Where two have the same name, the file in
    the results' `folder` counts."""
    found: dict[str, InPlace] = {}
    for member in members_of(directory, {}) if directory.is_dir() else ():
        if chosen(member.name):
            try:
                now = digest_file(Path(member.path))
            except (OSError, InvalidRequest):  # it was deleted, or is still being written
                continue
            apart = bool(folder) and member.name.startswith(f"{folder}/")
            name = member.name.removeprefix(f"{folder}/") if apart else member.name
            if apart or name not in found:
                found[name] = InPlace(name, folder if apart else "", now.size, now.digest, now.crc32)
    return list(found.values())


def _refusal(task_id: int, names: Sequence[str]) -> Conflict:
    shown = ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")
    ways = f"Render the frames again (renderonline requeue {task_id} --frames …), or have an operator accept the files"
    message = f"Not as it landed: {shown}. Somebody has changed it on the server. {ways} as they are"
    return Conflict(f"{message} (renderonline accept {task_id}).", code=ALTERED, names=names[:_NAMED])
