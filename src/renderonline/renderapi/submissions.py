"""The use case: submit a task. v1 and v2 alike: receive the file once, check, commit, tell the dispatcher (R4).

Nothing is left of a refused submission; a committed one has its file on the disk before the answer leaves.
"""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from renderonline.database import Database, engines, submissions
from renderonline.database.engines import EngineRow
from renderonline.database.ids import IdBlocks
from renderonline.database.submissions import NewChunk, NewTask, Submitted
from renderonline.database.uploaded import names_directory
from renderonline.engines.definition import EngineDefinition
from renderonline.engines.loading import parse_definition
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import InvalidRequest, NoSpace, NotAvailable, RenderOnlineError
from renderonline.farm.frames import first_last_middle
from renderonline.protocol import v1
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.task_requests import Prepared, TaskRequest, checked_key, prepare
from renderonline.storage import names
from renderonline.storage.uploads import Received, Upload, disk_error, too_large

log = structlog.get_logger(__name__)

EARLY_CHECK_BYTES = 16 * 1024 * 1024
"""Bodies larger than this are compared with the free disk before their first byte is read."""


class Told(Protocol):
    """Who is told of a committed submission: the dispatcher."""

    def submitted(self, new: NewTask, submitted: Submitted, engine: EngineRow) -> None:
        """A task is committed; it waits to be planned."""


class Repeated(RenderOnlineError):
    """Not a fault: this submission was made before, and the first answer is given again."""

    code = "repeated"
    status = 200

    def __init__(self, task_id: int) -> None:
        super().__init__(f"This is task {task_id}, submitted before.")
        self.task_id = task_id


@dataclass(frozen=True, slots=True)
class Incoming:
    """A submission as it arrives. `client_key` is the header's ("" for none), `length` the body's (None if unknown)."""

    principal: Principal
    content_type: str
    client_key: str
    length: int | None
    expects_continue: bool
    stream: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class _Rules:
    """What the database says about an request."""

    engine: EngineRow
    definition: EngineDefinition | None
    argtypes: Mapping[str, ArgType]


class Submissions:
    """Submits tasks."""

    def __init__(
        self,
        database: Database,
        ids: IdBlocks,
        told: Told,
        *,
        files: Path,
        max_upload_bytes: int,
        reserve_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._ids = ids
        self._told = told
        self._files = files
        self._limit = max_upload_bytes
        self._reserve = reserve_bytes
        self._clock = clock
        self._definitions: dict[str, EngineDefinition] = {}

    async def submit(self, incoming: Incoming, read_request: Callable[[bytes | None, str], TaskRequest]) -> int:
        """Receive and commit one task; its id. Raises the first rule that is broken; then nothing is stored."""
        checked_key(incoming.client_key)
        if (known := await self._repeated(incoming)) is not None:
            return known
        await self._check_length(incoming)
        upload = Upload(incoming.content_type, limit=self._limit)
        gate = _Gate(self, incoming, read_request)
        try:
            received = await upload.receive(incoming.stream, gate)
            await upload.sync()
            # Whoever goes away now, the commit and what follows from it happen together.
            return await asyncio.shield(asyncio.create_task(self._commit(incoming.principal, gate, upload, received)))
        except Repeated as repeated:
            await upload.discard()
            return repeated.task_id
        except (NotAvailable, asyncio.CancelledError):
            if not upload.committing:
                await upload.discard()
            raise
        except BaseException:
            await upload.discard()
            raise

    async def sweep(self) -> None:
        """Remove what a killed process left: staged files, and directories that no committed task names."""
        rows = await self._database.read(engines.list_engines)
        for root in {self._files, *(Path(row.download_path) for row in rows)}:
            await asyncio.to_thread(names.sweep_incoming, root)
            for directory in await asyncio.to_thread(names.marked, root):
                if await self._database.read(partial(names_directory, directory=str(directory))):
                    names.keep(directory)
                else:
                    await asyncio.to_thread(names.discard, directory)
                    log.info("upload that was never committed is removed", directory=str(directory))

    async def _repeated(self, incoming: Incoming) -> int | None:
        """The task of a repeated submission; its body is read to the end unless the client waits to be asked for it."""
        task_id = await self.known(incoming.principal.user_id, incoming.client_key)
        if task_id is not None and not incoming.expects_continue:
            async for _ in incoming.stream:
                pass
        return task_id

    async def _check_length(self, incoming: Incoming) -> None:
        """Refuse a body that can't be stored before its first byte is read."""
        if incoming.length is None or incoming.length <= EARLY_CHECK_BYTES:
            return
        if incoming.length > self._limit:
            raise too_large(self._limit)
        rows = await self._database.read(engines.list_engines)
        roots = {Path(row.download_path) for row in rows} or {self._files}
        free = await asyncio.to_thread(lambda: max(_free_bytes(root) for root in roots))
        self._check_room(free, incoming.length)

    def _check_room(self, free: int, length: int) -> None:
        if free - length < self._reserve:
            raise NoSpace("The server has no room for a file of this size. Delete tasks that are not needed any more.")

    async def rules(self, request: TaskRequest, user_id: int) -> _Rules:
        """What the database says: first the user's limit, then the engine, then the rules of arguments."""
        await self._database.read(partial(submissions.check_limit, user_id=user_id))
        rows, argtypes = await self._database.read(
            lambda connection: (engines.list_engines(connection), engines.list_argtypes(connection))
        )
        engine = _engine(rows, request)
        return _Rules(engine, self._definition(engine), {row.argtype_id: row for row in argtypes})

    async def known(self, user_id: int, client_key: str) -> int | None:
        """The task that this user submitted with this key."""
        if not client_key:
            return None
        now_us = int(self._clock() * 1_000_000)
        found = await self._database.read(
            lambda connection: submissions.find(connection, user_id, client_key, now_us=now_us)
        )
        return None if found is None else found.task_id

    async def staging(self) -> Path:
        """The download path that all engines share, or else our own."""
        roots = {row.download_path for row in await self._database.read(engines.list_engines) if row.is_enabled}
        return Path(roots.pop()) if len(roots) == 1 else self._files

    def _definition(self, engine: EngineRow) -> EngineDefinition | None:
        if engine.definition is None:
            return None
        if engine.definition not in self._definitions:
            if len(self._definitions) > 100:
                self._definitions.clear()
            self._definitions[engine.definition] = parse_definition(engine.definition)
        return self._definitions[engine.definition]

    async def place(self, engine: EngineRow, user_id: int, length: int | None) -> Path:
        """Make a task's directory below the engine's download path."""
        root = Path(engine.download_path)
        if not root.is_absolute():
            raise RenderOnlineError(
                f"The download path of engine {engine.name} must be absolute. Ask an administrator.", code="bad_engine"
            )
        ticks = names.ticks_of(self._now().astimezone().replace(tzinfo=None))

        def make() -> Path:
            self._check_room(_free_bytes(root), length or 0)
            try:
                return names.make_task_directory(root, user_id, ticks)
            except OSError as error:
                raise disk_error(error) from error

        return await asyncio.to_thread(make)

    async def _commit(self, principal: Principal, gate: "_Gate", upload: Upload, received: Received) -> int:
        assert gate.prepared is not None
        await self._ids.refill(len(gate.prepared.ranges))
        new = self._new_task(principal, gate.prepared, received)
        upload.committing = True
        submitted = await self._database.write(partial(submissions.submit, new=new))
        upload.committing = False
        if submitted.repeated and not await self._is_named(upload):
            await upload.discard()
            return submitted.task_id
        upload.keep()
        self._told.submitted(new, replace(submitted, repeated=False), gate.prepared.engine)
        return submitted.task_id

    async def _is_named(self, upload: Upload) -> bool:
        """Whether the "repeated" task is this very one: its commit was answered only at the second try (R3.2)."""
        directory = str(upload.received.directory)
        return await self._database.read(partial(names_directory, directory=directory))

    def _new_task(self, principal: Principal, prepared: Prepared, received: Received) -> NewTask:
        assert received.path is not None
        request, now = prepared.request, self._now()
        ids = self._ids.next_chunk_ids(len(prepared.ranges))
        ordered = first_last_middle(len(prepared.ranges))
        scene = str(received.path)
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
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


class _Gate:
    """The rules of one submission, asked while it arrives."""

    def __init__(
        self, owner: Submissions, incoming: Incoming, read_request: Callable[[bytes | None, str], TaskRequest]
    ) -> None:
        self._owner = owner
        self._incoming = incoming
        self._user_id = incoming.principal.user_id
        self._read_request = read_request
        self.prepared: Prepared | None = None

    async def check(self, received: Received) -> None:
        """The contract's checks from top to bottom."""
        if not received.file_names:
            raise InvalidRequest(v1.NO_FILES, code="no_file")
        request = self._read_request(received.request, self._incoming.client_key)
        if len(received.file_names) > 1:
            raise InvalidRequest(v1.ONE_FILE, code="two_files")
        if not self._incoming.client_key:
            task_id = await self._owner.known(self._user_id, request.client_key)
            if task_id is not None:
                raise Repeated(task_id)
        rules = await self._owner.rules(request, self._user_id)
        self.prepared = prepare(request, rules.engine, rules.definition, rules.argtypes, received.file_names[0])

    async def place(self) -> Path:
        """The task's directory."""
        assert self.prepared is not None
        return await self._owner.place(self.prepared.engine, self._user_id, self._incoming.length)

    async def stage(self) -> Path:
        """Where a file waits for its request."""
        return await self._owner.staging()


def _engine(rows: Iterable[EngineRow], request: TaskRequest) -> EngineRow:
    """The engine of a request: v1 names its number, v2 its name or number. To v1 a missing one is a bad request."""
    for row in rows:
        named = request.strict and row.name.casefold() == request.engine.casefold()
        if row.is_enabled and (named or str(row.engine_id) == request.engine.strip()):
            return row
    raise InvalidRequest(v1.engine_not_found(request.engine), code="engine_not_found")


def _free_bytes(root: Path) -> int:
    """Free bytes where `root` is or will be."""
    while not root.exists() and root != root.parent:
        root = root.parent
    return shutil.disk_usage(root).free
