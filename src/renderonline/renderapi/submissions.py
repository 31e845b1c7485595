"""The use case: submit a task. v1 and v2 alike: receive the file once, check, commit, tell the dispatcher (R4).

Nothing is left of a refused submission; a committed one has its file on the disk before the answer leaves.
"""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import structlog

from renderonline.database import Connection, Database, engines, submissions
from renderonline.database.engines import EngineRow
from renderonline.database.ids import IdBlocks
from renderonline.database.submissions import NewChunk, NewTask
from renderonline.engines.loading import parse_definition
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import InvalidRequest, NoSpace, NotAvailable, RenderOnlineError
from renderonline.farm.frames import first_last_middle
from renderonline.protocol import v1
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.dispatch import Dispatcher
from renderonline.renderapi.settings import Settings
from renderonline.renderapi.task_requests import Prepared, TaskRequest, checked_key, prepare
from renderonline.storage import names
from renderonline.storage.uploads import Received, Upload, disk_error, too_large

log = structlog.get_logger(__name__)

EARLY_CHECK_BYTES: Final = 16 * 1024 * 1024
"""Bodies larger than this are compared with the free disk before their first byte is read."""
SMALL_BYTES: Final = 1024 * 1024
"""Smaller ones are received before the database is asked anything: the commit checks the same."""
CATALOG_S: Final = 5.0
"""For so long what was changed by hand in the tables of engines and argument types may not count (R3.4)."""


ReadRequest = Callable[[bytes | None, str], TaskRequest]
"""Reads the part `request` (None: there was none) with the key of the headers."""


class Repeated(RenderOnlineError):
    """Not a fault: this submission was made before, and the first answer is given again."""

    code = "repeated"
    status = 200

    def __init__(self, task_id: int) -> None:
        super().__init__(f"This is task {task_id}, submitted before.")
        self.task_id = task_id


@dataclass(frozen=True, slots=True)
class _Catalog:
    """Engines and argument types as they were read at `at` (monotonic)."""

    engines: tuple[EngineRow, ...]
    argtypes: Mapping[str, ArgType]
    at: float


class Submissions:
    """Submits tasks. `forget` when engines or argument types were changed."""

    def __init__(self, database: Database, ids: IdBlocks, dispatcher: Dispatcher, settings: Settings) -> None:
        self._database = database
        self._ids = ids
        self._dispatcher = dispatcher
        self._files = settings.files
        self._limit = settings.max_upload_bytes
        self._reserve = settings.reserve_mib * 1024 * 1024
        self._sends_mail = bool(settings.notify_mail)
        self._parse = lru_cache(100)(parse_definition)
        self._catalog: _Catalog | None = None

    async def submit(
        self, principal: Principal, headers: Mapping[str, str], stream: AsyncIterator[bytes], read_request: ReadRequest
    ) -> int:
        """Receive and commit one task; its id. Raises the first rule that is broken; then nothing is stored."""
        key = checked_key(headers.get("idempotency-key", ""))
        length = content_length(headers)
        waits = headers.get("expect", "").casefold() == "100-continue"  # the client waits to be asked for the body
        if (waits or length > EARLY_CHECK_BYTES) and (known := await self._known(principal.user_id, key)) is not None:
            if not waits:
                async for _ in stream:
                    pass
            return known
        await self._check_length(length)
        upload = Upload(headers.get("content-type", ""), limit=self._limit)
        gate = _Gate(self, principal.user_id, key, length, read_request)
        try:
            received = await upload.receive(stream, gate)
            await self._ids.refill(len(gate.prepared.ranges))
            new = self._new_task(principal, gate.prepared, received)
        except Repeated as repeated:
            await upload.discard()
            return repeated.task_id
        except BaseException:
            await upload.discard()
            raise
        # Whoever goes away now, the commit and what follows from it happen together.
        return await asyncio.shield(asyncio.create_task(self._commit(new, gate.prepared.engine, upload)))

    async def _commit(self, new: NewTask, engine: EngineRow, upload: Upload) -> int:
        try:
            submitted = await self._dispatcher.submit(new, engine)
        except (NotAvailable, asyncio.CancelledError):
            raise  # whether it was committed is not known: the next start's sweep finds out
        except BaseException:
            await upload.discard()
            raise
        if submitted.repeated:
            await upload.discard()
        else:
            upload.keep()
        return submitted.task_id

    async def sweep(self) -> None:
        """Remove what a killed process left: staged files, and directories that no committed task names."""
        for root in {self._files, *await self._roots()}:
            await asyncio.to_thread(names.sweep_incoming, root)
            for directory in await asyncio.to_thread(names.marked, root):
                if await self._database.read(partial(submissions.names_directory, directory=str(directory))):
                    names.keep(directory)
                else:
                    await asyncio.to_thread(names.discard, directory)
                    log.info("upload that was never committed is removed", directory=str(directory))

    async def _roots(self, *, enabled: bool = False) -> set[Path]:
        """The download paths of the engines, or of those that are enabled."""
        rows = await self._database.read(engines.list_engines)
        return {Path(row.download_path) for row in rows if row.is_enabled or not enabled}

    async def _check_length(self, length: int) -> None:
        """Refuse a body that can't be stored before its first byte is read."""
        if length > EARLY_CHECK_BYTES:
            if length > self._limit:
                raise too_large(self._limit)
            roots = await self._roots() or {self._files}
            self._check_room(await asyncio.to_thread(lambda: max(map(_free_bytes, roots))), length)

    def _check_room(self, free: int, length: int) -> None:
        if free - length < self._reserve:
            raise NoSpace("The server has no room for a file of this size. Delete tasks that are not needed any more.")

    async def _known(self, user_id: int, client_key: str) -> int | None:
        return await self._database.read(partial(_known, user_id=user_id, client_key=client_key))

    async def prepared(self, request: TaskRequest, user_id: int, sent_file_name: str) -> Prepared:
        """Ask the database in the contract's order: the user's limit, the engine, the rules of arguments.

        `Repeated` when this user's task with this key is there already.
        """

        def look(connection: Connection) -> Prepared:
            if (known := _known(connection, user_id, request.client_key)) is not None:
                raise Repeated(known)
            submissions.check_limit(connection, user_id)
            return self._checked(request, _read_catalog(connection), sent_file_name)

        return await self._database.read(look)

    def _checked(self, request: TaskRequest, catalog: _Catalog, sent_file_name: str) -> Prepared:
        engine = _engine(catalog.engines, request)
        if request.notify and not self._sends_mail:
            raise InvalidRequest("This farm sends no mail: submit without notify, or an administrator sets NotifyMail.")
        definition = None if engine.definition is None else self._parse(engine.definition)
        return prepare(request, engine, definition, catalog.argtypes, sent_file_name)

    def forget(self) -> None:
        """Engines or argument types were changed."""
        self._catalog = None

    async def admitted(self, request: TaskRequest, user_id: int, sent_file_name: str) -> tuple[Prepared, Path] | None:
        """A small submission, checked by what is known of engines, and its directory; None when it can't be admitted
        in this way: then `prepared` finds the rule to name."""
        catalog = self._catalog
        if catalog is None or time.monotonic() - catalog.at > CATALOG_S:
            self._catalog = catalog = await self._database.read(_read_catalog)

        def admit() -> tuple[Prepared, Path] | None:
            try:
                prepared = self._checked(request, catalog, sent_file_name)
            except RenderOnlineError:
                return None
            return prepared, self._make_directory(prepared.engine, user_id, SMALL_BYTES)

        return await asyncio.to_thread(admit)

    async def staging(self) -> Path:
        """The download path that all engines share, or else our own."""
        roots = await self._roots(enabled=True)
        return roots.pop() if len(roots) == 1 else self._files

    async def place(self, engine: EngineRow, user_id: int, length: int) -> Path:
        """Make a task's directory below the engine's download path."""
        return await asyncio.to_thread(self._make_directory, engine, user_id, length)

    def _make_directory(self, engine: EngineRow, user_id: int, length: int) -> Path:
        root = Path(engine.download_path)
        if not root.is_absolute():
            message = f"The download path of engine {engine.name} must be absolute. Ask an administrator."
            raise RenderOnlineError(message, code="bad_engine")
        self._check_room(_free_bytes(root), length)
        try:
            return names.make_task_directory(root, user_id, names.ticks_of(datetime.now().astimezone()))
        except OSError as error:
            raise disk_error(error) from error

    def _new_task(self, principal: Principal, prepared: Prepared, received: Received) -> NewTask:
        assert received.path is not None
        request, now, scene = prepared.request, datetime.now(UTC), str(received.path)
        ids = self._ids.next_chunk_ids(len(prepared.ranges))
        ordered = first_last_middle(len(prepared.ranges))
        return NewTask(
            user_id=principal.user_id,
            engine_id=prepared.engine.engine_id,
            file_name=received.path.name,
            file_path=scene,
            file_size=received.size,
            arguments=prepared.argument_line(scene),
            values=json.dumps(dict(prepared.values)),
            template=json.dumps(list(prepared.words)),
            queue_us=int(now.timestamp() * 1_000_000),
            queue_time=now.astimezone().replace(tzinfo=None),
            chunks=[NewChunk(ids[index], prepared.ranges[index]) for index in ordered],
            frames=prepared.written_frames,
            frames_total=len(prepared.frames),
            chunk_size=prepared.chunk_size,
            name=request.name or received.path.name,
            priority=request.priority,
            paused=request.paused,
            client_key=request.client_key,
            waits_for=request.waits_for,
            notify=request.notify,
            needs=prepared.needs,
            running_limit=request.running_limit,
        )


@dataclass(slots=True)
class _Gate:
    """The rules of one submission, asked while it arrives; once a check has passed, `prepared` is there."""

    owner: Submissions
    user_id: int
    client_key: str
    length: int
    read_request: ReadRequest
    prepared: Prepared = field(init=False)
    directory: Path | None = None

    async def check(self, received: Received) -> None:
        """The contract's checks from top to bottom."""
        if not received.file_names:
            raise InvalidRequest(v1.NO_FILES, code="no_file")
        request = self.read_request(received.request, self.client_key)
        if len(received.file_names) > 1:
            raise InvalidRequest(v1.ONE_FILE, code="two_files")
        name = received.file_names[0]
        if received.path is None and 0 < self.length < SMALL_BYTES:
            admitted = await self.owner.admitted(request, self.user_id, name)
            if admitted is not None:
                self.prepared, self.directory = admitted
                return
        self.prepared = await self.owner.prepared(request, self.user_id, name)

    async def place(self) -> Path:
        """The task's directory."""
        return self.directory or await self.owner.place(self.prepared.engine, self.user_id, self.length)

    async def stage(self) -> Path:
        """Where a file waits for its request."""
        return await self.owner.staging()


def _read_catalog(connection: Connection) -> _Catalog:
    argtypes = {row.argtype_id: row for row in engines.list_argtypes(connection)}
    return _Catalog(engines.list_engines(connection), argtypes, time.monotonic())


def _known(connection: Connection, user_id: int, client_key: str) -> int | None:
    if not client_key:
        return None
    found = submissions.find(connection, user_id, client_key, now_us=time.time_ns() // 1000)
    return None if found is None else found.task_id


def _engine(rows: Iterable[EngineRow], request: TaskRequest) -> EngineRow:
    """The engine of a request: v1 names its number, v2 its name or number. To v1 a missing one is a bad request."""
    for row in rows:
        named = request.strict and row.name.casefold() == request.engine.casefold()
        if row.is_enabled and (named or str(row.engine_id) == request.engine.strip()):
            return row
    raise InvalidRequest(v1.engine_not_found(request.engine), code="engine_not_found")


def content_length(headers: Mapping[str, str]) -> int:
    """The body's length as the client says it, or else 0."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _free_bytes(root: Path) -> int:
    """Free bytes where `root` is or will be."""
    while not root.exists() and root != root.parent:
        root = root.parent
    return shutil.disk_usage(root).free
