"""The use cases of uploads: announce files, send what is missing, continue after any stop; or a form with one file.

Only its user sees an upload. The server itself copies announced chunks that it finds in the same user's files. An
upload that was not touched for a week is deleted; the upload of a form ends with its request.
"""

import asyncio
import contextlib
import os
import re
import secrets
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson
from starlette.requests import Request

from renderonline.database.submission_rows import EngineRow
from renderonline.farm.errors import Conflict, InvalidRequest, NotFound, RenderOnlineError
from renderonline.farm.tasks import InputFile
from renderonline.renderapi.housekeeping import KEEP_UPLOADS_S, Housekeeping, Places
from renderonline.renderapi.requests import Prepared
from renderonline.renderapi.scene_surveys import Gone, Looks, client_of
from renderonline.serving.bodies import Body, Form, in_thread, receive_body, too_large, writing
from renderonline.serving.web import step_back
from renderonline.storage import confined, manifests, names, staging
from renderonline.storage.confined import SHORT_BYTES, Announcement
from renderonline.storage.disk import Sums, remove_tree
from renderonline.storage.staging import SmallFile, Stage, disk_errors, is_lacking

MOST_OPEN: Final = 32
"""Open uploads of a user; another one replaces the one that was not touched for longest."""
MOST_LOADED: Final = 64
MOST_LOADED_FILES: Final = 200_000
"""Files of all uploads in memory."""
_AT_ONCE: Final = 500
"""Files whose JSON is written at once."""
ASIDE_THREADS: Final = 2
"""They hash and copy gigabytes; in the default threads short work would have to wait for that."""
T = TypeVar("T")
Check = Callable[[Form], Awaitable[Prepared]]
"""Raises the error of the first rule that a form breaks, as far as it was read. Called when its file begins after a
part `request`, and again at the end if more parts were read."""
_disk_errors = partial(disk_errors, "This upload was removed. Announce its files again.")


@dataclass(slots=True)
class UploadSession:
    """An open upload. `appending`: the indexes of files that are being written; `putting`: the number of packs that are
    being received; `taken`: a task is being made of it."""

    upload_id: str
    stage: Stage
    aside: ThreadPoolExecutor
    appending: set[int] = field(default_factory=set)
    putting: int = 0
    taken: bool = False
    filling: asyncio.Task[None] | None = None
    adding: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def busy(self) -> bool:
        """Whether a request or a background job uses it."""
        copying = self.filling is not None and not self.filling.done()
        return bool(self.appending or self.putting or self.taken or self.adding or copying)

    def fill(self, found: Mapping[int, staging.Place]) -> None:
        """Copy chunks that the server has already, in the background."""
        self.filling = asyncio.create_task(self._quietly(partial(self.stage.fill, found)))

    def add_up(self, indexes: Collection[int]) -> None:
        """Hash what was received of files, in the background."""

        def add_all() -> None:
            for index in indexes:
                self.stage.add_up(index)

        task = asyncio.create_task(self._quietly(add_all))
        self.adding.add(task)
        task.add_done_callback(self.adding.discard)

    async def finished(self, stage: Stage) -> tuple[InputFile, ...]:
        """Every file of this upload, or of the ZIP that it is. Waits for its background jobs."""
        if self.filling is not None:
            await self.filling
        await asyncio.gather(*self.adding)
        with _disk_errors():
            return await asyncio.to_thread(stage.finish)

    async def _quietly(self, work: Callable[[], None]) -> None:
        """Run `work` in a background thread. Its failure shows when the upload is finished."""
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().run_in_executor(self.aside, work)

    def view(self) -> dict[str, Any]:
        """The upload as JSON for clients. Blocks."""
        written, complete = list[bytes](), True
        described = self.stage.described()
        while batch := list(islice(described, _AT_ONCE)):
            complete = complete and not any(map(is_lacking, batch))
            written.append(orjson.dumps(batch)[1:-1])
        files = orjson.Fragment(b"[" + b",".join(written) + b"]")
        return {"upload_id": self.upload_id, "files": files, "complete": complete}


class Uploads:
    """The open uploads."""

    def __init__(self, places: Places, housekeeping: Housekeeping) -> None:
        self._places = places
        self._housekeeping = housekeeping
        self._sessions: dict[tuple[int, str], UploadSession] = {}
        self._announcing: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._large = Looks("uploads", at_once=2)
        self._unpacking = Looks("unpacking", modest=True)
        self._aside = ThreadPoolExecutor(ASIDE_THREADS, "aside", step_back)

    async def create(self, user_id: int, request: Request, length: int) -> dict[str, Any]:
        """Announce files; returns what the client must send. Raises `Unfit`, `TooLarge`, `NoSpace`,
        `ClientDisconnect`."""
        root, upload_id = await self._places.staging(), secrets.token_hex(16)
        directory = root / names.INCOMING / f"{user_id}-{upload_id}"
        await asyncio.to_thread(self._places.check_disk, root, 3 * length)
        announcement = Announcement(directory.with_name(f"{upload_id}{names.PART}"))
        turn = self._announcing[user_id] if length > SHORT_BYTES else contextlib.nullcontext()
        try:
            async with turn:
                with _disk_errors():
                    await Body(request, length or None).read(announcement.take)
            await asyncio.to_thread(names.incoming_directory, root)
            with _disk_errors():
                stage = await self._in_turn(
                    user_id, client_of(request), partial(announcement.stage, directory), large=announcement.is_long
                )
            await self._admit(user_id, upload_id, root, sum(file.size for file in stage.files))
            session = await self._opened(user_id, upload_id, stage)
        except BaseException:
            await asyncio.to_thread(remove_tree, directory)
            raise
        finally:
            announcement.close()
        return await self._viewed(user_id, session, client_of(request))

    async def _admit(self, user_id: int, upload_id: str, root: Path, size: int) -> None:
        """Make room for `size` bytes, or refuse them."""
        if size > self._places.limit:
            raise too_large(self._places.limit)
        await self._housekeeping.surplus(user_id, size, upload_id=upload_id)
        await asyncio.to_thread(_make_room, root, user_id)
        await self._places.check_length(size)

    async def describe(self, user_id: int, upload_id: str, gone: Gone) -> dict[str, Any]:
        """What the server has of an upload, and what the client must send."""
        return await self._viewed(user_id, await self.find(user_id, upload_id), gone)

    async def _viewed(self, user_id: int, session: UploadSession, gone: Gone) -> dict[str, Any]:
        with _disk_errors():
            return await self._in_turn(user_id, gone, lambda _: session.view(), large=session.stage.is_large)

    async def _in_turn(self, user_id: int, gone: Gone, work: Callable[[threading.Event], T], *, large: bool) -> T:
        """Run `work` in a thread; a large one waits for the user's turn."""
        if large:
            return await self._large.look(user_id, work, gone)
        return await asyncio.to_thread(work, threading.Event())

    async def append(self, user_id: int, upload_id: str, index: int, offset: int, request: Request, length: int) -> int:
        """Append `length` bytes of a body to a file that is sent without chunks; returns its new offset."""
        session = await self.find(user_id, upload_id)
        stage = session.stage
        if index >= len(stage.files) or stage.files[index].count is not None:
            raise NotFound("The upload has no such file that comes without chunks.")
        if index in session.appending or session.taken:
            raise Conflict("Somebody else sends this file at the moment. Ask for its offset again.", code="busy")
        session.appending.add(index)
        try:
            with _disk_errors():
                there = await asyncio.to_thread(stage.offset, index)
                if offset != there:
                    raise WrongOffset(f"The file goes on at byte {there}.", offset=there)
                if length > stage.files[index].size - there:
                    raise InvalidRequest("This is more than was announced of the file.", code="too_long")
                await asyncio.to_thread(self._places.check_disk, stage.directory, length)
                handle = await asyncio.to_thread(stage.open, index)
                try:
                    watched = self._places.watched(stage.directory, len)
                    await receive_body(request, handle, length=length, update=watched)
                finally:
                    await asyncio.to_thread(os.close, handle)
                await asyncio.to_thread(stage.touch)
                return there + length
        finally:
            session.appending.discard(index)
            session.add_up((index,))

    async def put_pack(self, user_id: int, upload_id: str, request: Request, length: int) -> None:
        """Store a body of chunks, up to the first that is incomplete or not as announced."""
        session = await self.find(user_id, upload_id)
        if session.taken:
            raise Conflict("A task is being made of this upload.", code="busy")
        await asyncio.to_thread(self._places.check_disk, session.stage.directory, length)
        session.putting += 1
        reader = staging.PackReader(session.stage)
        try:
            with _disk_errors():
                await Body(request, length).read(self._places.watched(session.stage.directory, reader.take))
                reader.finish()
                await asyncio.to_thread(session.stage.touch)
        finally:
            session.putting -= 1
            session.add_up(reader.touched)

    async def delete(self, user_id: int, upload_id: str) -> None:
        """Delete an upload, unless a task is being made of it (`Conflict`)."""
        session = await self.find(user_id, upload_id)
        if session.taken:
            raise Conflict("A task is being made of this upload.", code="busy")
        await self.forget(user_id, session)

    async def forget(self, user_id: int, session: UploadSession) -> None:
        """Delete an upload and its files."""
        self._sessions.pop((user_id, session.upload_id), None)
        await asyncio.to_thread(remove_tree, session.stage.directory)

    @contextlib.asynccontextmanager
    async def receiving(
        self, request: Request, length: int, check: Check
    ) -> AsyncIterator[tuple[UploadSession, Prepared]]:
        """Receive a form as an upload of one file, which is deleted at the end. `length`: bytes of the body, 0 when
        unknown. Raises what `check` raises, `InvalidRequest`, `TooLarge`, `NoSpace`."""
        arriving = _Arriving(Form(request.headers.get("content-type", ""), limit=self._places.limit), self._places)
        try:
            with disk_errors():
                prepared = await arriving.receive(request, length, check)
            yield UploadSession(arriving.upload_id, arriving.stage(), self._aside), prepared
        finally:
            await asyncio.to_thread(arriving.remove)

    @contextlib.asynccontextmanager
    async def holding(self, file: SmallFile, engine: EngineRow) -> AsyncIterator[UploadSession]:
        """A small file as an upload that is deleted at the end, so that its scene can be read."""
        root, upload_id = self._places.root_of(engine), secrets.token_hex(16)
        directory = root / names.INCOMING / f"{upload_id}{names.PART}"

        def write() -> Stage:
            self._places.check_disk(root, len(file.content))
            names.incoming_directory(root)
            return file.stage(directory)

        try:
            with disk_errors():
                stage = await asyncio.to_thread(write)
            yield UploadSession(upload_id, stage, self._aside)
        finally:
            await asyncio.to_thread(remove_tree, directory)

    @contextlib.asynccontextmanager
    async def taking(
        self, user_id: int, upload_id: str, gone: Gone, *, unpack: bool = False
    ) -> AsyncIterator[tuple[UploadSession, Stage]]:
        """An upload of which a task is made, and its files, or with `unpack` those of the ZIP that it is; nothing else
        changes it meanwhile. Raises `Conflict` (`busy`), `NotFound`, `ClientDisconnect`, what `confined.unpacked`
        raises."""
        session = await self.find(user_id, upload_id)
        if session.taken or session.appending or session.putting:
            raise Conflict("Files of this upload are still being sent. Submit it when they are there.", code="busy")
        session.taken = True
        inside = session.stage.directory / "unpacked"
        try:
            yield session, await self._unpacked(user_id, session, inside, gone) if unpack else session.stage
        finally:
            session.taken = False
            if unpack:
                await asyncio.to_thread(remove_tree, inside)

    async def _unpacked(self, user_id: int, session: UploadSession, directory: Path, gone: Gone) -> Stage:
        if len(session.stage.files) != 1:
            raise InvalidRequest("Only an upload that is one ZIP can be unpacked.", code="broken_archive")
        await session.finished(session.stage)
        archive, most = session.stage.path(0), await self._places.room(session.stage.directory)
        most = min(most, self._housekeeping.limit(user_id) or most)

        def unpack(stopped: threading.Event) -> Stage:
            remove_tree(directory)
            return confined.unpacked(archive, directory, most, stopped, self._places.box())

        with _disk_errors():
            return await self._unpacking.look(user_id, unpack, gone)

    async def find(self, user_id: int, upload_id: str) -> UploadSession:
        """A user's open upload, from memory or the disk. Raises `NotFound`."""
        session = self._sessions.get((user_id, upload_id))
        if session is None:
            if not re.fullmatch(r"[0-9a-f]{32}", upload_id):
                raise NotFound(f"There is no upload {upload_id[:40]}.")
            roots = await self._places.roots()
            stage = await asyncio.to_thread(_load, roots, user_id, upload_id)
            session = self._sessions.get((user_id, upload_id)) or await self._opened(user_id, upload_id, stage)
        return session

    async def _opened(self, user_id: int, upload_id: str, stage: Stage) -> UploadSession:
        session = UploadSession(upload_id, stage, self._aside)
        found = await self._look_up(user_id, stage)
        known = self._sessions.get((user_id, upload_id))
        if known is not None:
            return known
        stage.promise(found)
        if found:
            session.fill(found)
        self._sessions[user_id, upload_id] = session
        self._unload()
        return session

    def _unload(self) -> None:
        """Keep only the newest uploads in memory; all are on the disk."""
        files = 0
        for place, (key, session) in enumerate(reversed(list(self._sessions.items()))):
            files += len(session.stage.files)
            if place and (place >= MOST_LOADED or files > MOST_LOADED_FILES) and not session.busy:
                del self._sessions[key]

    async def _look_up(self, user_id: int, stage: Stage) -> dict[int, staging.Place]:
        """Where the user's files contain missing chunks."""
        roots = await self._places.roots()

        def look() -> dict[int, staging.Place]:
            if not manifests.any_of(roots, user_id):  # an upload may have half a million chunks
                return {}
            wanted = {digest for _, digest in stage.wanted()}
            called = {file.name for file in stage.files} if wanted else set()
            places = manifests.look_up(roots, user_id, wanted, called) if wanted else {}
            return {number: places[digest] for number, digest in stage.wanted() if digest in places} if places else {}

        return await asyncio.to_thread(look)


class _Arriving:
    """A form whose file is being received."""

    def __init__(self, form: Form, places: Places) -> None:
        self.upload_id = secrets.token_hex(16)
        self._form = form
        self._places = places
        self._sums = Sums()
        self._directory: Path | None = None
        self._handle: int | None = None
        self._checked: tuple[int, int] | None = None
        self._prepared: Prepared | None = None

    async def receive(self, request: Request, length: int, check: Check) -> Prepared:
        """Read the form to its end, or until it may be refused; every rule was checked then."""
        form = self._form
        body = Body(request, length or None)
        stopped = await body.read(form.take)
        if form.file_names:
            root = await self._root(check)
            stopped = bool(await in_thread(request, partial(self._begin, root, length)))
            stopped = stopped or await body.read(self._watched())
        if not stopped:
            form.finish()
        await in_thread(request, self._close)
        if self._prepared is None or form.is_refused or self._checked != form.parts:
            self._prepared = await check(form)  # now that everything is known: the first broken rule is raised
        if form.refusal is not None:
            raise form.refusal
        return self._prepared

    def stage(self) -> Stage:
        """The files of this upload. Only after `receive`."""
        assert self._directory is not None
        return Stage(self._directory, self._sums.of(names.clean_file_name(self._form.file_names[0])))

    def remove(self) -> None:
        """Remove what was stored; the upload of a committed task was deleted already. Blocks."""
        self._close()
        if self._directory is not None:
            remove_tree(self._directory)

    async def _root(self, check: Check) -> Path | None:
        """Where to store the file that begins; None when the form breaks a rule already."""
        form = self._form
        if not form.requests:
            return await self._places.staging()
        self._checked = form.parts
        try:
            self._prepared = await check(form)
            return self._places.root_of(self._prepared.engine)
        except RenderOnlineError as error:
            form.refuse(error)
            return None

    def _begin(self, root: Path | None, length: int) -> bool:
        """Start storing the file, whose first bytes were read already; returns whether to stop reading."""
        if root is not None:
            self._places.check_disk(root, length)
            self._directory = names.incoming_directory(root) / f"{self.upload_id}{names.PART}"
            self._handle = staging.open_single(self._directory)
            self._form.store(writing(self._handle, self._sums.update))
        return self._form.go_on()

    def _watched(self) -> Callable[[memoryview], object]:
        take = self._form.take
        return take if self._directory is None else self._places.watched(self._directory, take)

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class WrongOffset(Conflict):
    code = "wrong_offset"


def _make_room(root: Path, user_id: int) -> None:
    incoming = names.incoming_directory(root)
    staging.sweep(incoming, KEEP_UPLOADS_S)
    for old in staging.staged(incoming, user_id)[:-MOST_OPEN]:
        remove_tree(old)


def _load(roots: set[Path], user_id: int, upload_id: str) -> Stage:
    for root in roots:
        with contextlib.suppress(OSError, ValueError):
            return Stage(root / names.INCOMING / f"{user_id}-{upload_id}")
    raise NotFound(f"There is no upload {upload_id}. Announce its files again.")
