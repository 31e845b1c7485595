"""The use case: submit a task. v1 and v2 alike: receive the file once, check, commit, tell the dispatcher
(R4.1 Submit once).

Nothing is left of a refused submission; a committed one has its file on the disk before the answer leaves.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

import structlog
from starlette.requests import Request

from renderonline.database import accounts, engines, submissions
from renderonline.database.door import Connection, Database
from renderonline.database.engines import EngineRow
from renderonline.database.ids import IdBlocks
from renderonline.database.submissions import NewChunk, NewTask
from renderonline.engines.loading import parse_definition
from renderonline.farm.errors import InvalidRequest, NotAvailable, NotFound, RenderOnlineError
from renderonline.farm.frames import first_last_middle
from renderonline.farm.tasks import ChunkKind, InputFile
from renderonline.protocol import v1
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.delivering import checked_place
from renderonline.renderapi.dispatch import MANY_CHUNKS, Dispatcher
from renderonline.renderapi.housekeeping import EARLY_CHECK_BYTES, Housekeeping, Places
from renderonline.renderapi.looks import Gone, client_of
from renderonline.renderapi.scene_facts import Files, SceneFacts
from renderonline.renderapi.settings import Settings
from renderonline.renderapi.shared import heavy
from renderonline.renderapi.task_requests import Prepared, SubmitRequest, checked_key, prepare, read_upload, scene_among
from renderonline.renderapi.uploads import Session, Uploads
from renderonline.serving.bodies import Body, Take, content_length
from renderonline.storage import manifests, names
from renderonline.storage.staging import Stage
from renderonline.storage.uploads import Received, Upload, disk_errors

log = structlog.get_logger(__name__)

SMALL_BYTES: Final = 1024 * 1024
"""Smaller ones are received before the database is asked anything: the commit checks the same."""
SETTLE_S: Final = 1.0
"""Between two looks whether a task was committed for whose commit nobody answered."""
CATALOG_S: Final = 5.0
"""For so long what was changed by hand in the tables of engines and argument types may not count
(R3.4 Changes by hand)."""


ReadRequest = Callable[[bytes | None, str], SubmitRequest]
"""Reads the part `request` (None: there was none) with the key of the headers."""


class Repeated(RenderOnlineError):
    """Not a fault: this submission was made before, and the first answer is given again."""

    code = "repeated"
    status = 200

    def __init__(self, task_id: int) -> None:
        super().__init__(f"This is task {task_id}, submitted before.")
        self.task_id = task_id


class _Catalog:
    """Engines, argument types and the names of subscriptions' results as they were read at `at` (monotonic)."""

    def __init__(self, connection: Connection) -> None:
        self.argtypes = {row.argtype_id: row for row in engines.list_argtypes(connection)}
        self.engines = engines.list_engines(connection)
        self.names = {one.subscription_id: one.names for one in accounts.list_subscriptions(connection)}
        self.at = time.monotonic()


class Submissions:
    """Submits tasks. `forget` when engines or argument types were changed."""

    def __init__(self, database: Database, ids: IdBlocks, dispatcher: Dispatcher, settings: Settings) -> None:
        self.places = Places(database, settings)
        self.housekeeping = Housekeeping(database, dispatcher, self.places)
        self.uploads = Uploads(self.places, self.housekeeping)
        self._database = database
        self._ids = ids
        self._dispatcher = dispatcher
        self._facts = SceneFacts(lambda: dispatcher.shared.machines, self.places.box, self.places.roots)
        self._settling: set[asyncio.Task[None]] = set()
        self.sends_mail, self._strict = bool(settings.notify_mail), settings.strict_scenes
        self._roots = settings.delivery_roots
        self._parse = lru_cache(100)(parse_definition)
        self._catalog: _Catalog | None = None

    async def close(self) -> None:
        """What is still in doubt is left to the next start's sweep."""
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)
        await self._facts.close()

    async def submit(self, principal: Principal, request: Request, read_request: ReadRequest) -> int:
        """Receive and commit one task; its id. Raises the first rule that is broken, or `ClientDisconnect`; then
        nothing is stored."""
        headers, user_id = request.headers, principal.user_id
        key, length = checked_key(headers.get("idempotency-key", "")), content_length(headers)
        upload = Upload(headers.get("content-type", ""), limit=self.places.limit)
        gate = _Gate(self, user_id, key, length, read_request)
        staging = await self.places.staging()
        try:
            body = Body(request, length or None)

            async def read(take: Take) -> bool:
                return await body.read(self.places.watched(upload.received.directory or staging, take))

            await self._check_early(user_id, key, headers, body)
            received = await upload.receive(aiter(body), gate, read if length >= SMALL_BYTES else None)
            files = (received.sums.of(gate.prepared.scene),)
            there = {file.name: (str(received.path), file.digest) for file in files}
            prepared = await self._read_scene(user_id, gate.prepared, lambda: there, client_of(request))
            assert received.directory is not None
            new = await self._new_task(principal, prepared, received.directory, files)
        except Repeated as repeated:
            await upload.discard()
            return repeated.task_id
        except BaseException:
            await upload.discard()
            raise
        # Whoever goes away now, the commit and what follows from it happen together.
        return await asyncio.shield(asyncio.create_task(self._commit(new, gate.prepared.engine, upload)))

    async def _check_early(self, user_id: int, key: str, headers: Mapping[str, str], body: Body) -> None:
        """What can be refused, or is known, before a byte of a large body is read."""
        length = content_length(headers)
        waits = headers.get("expect", "").casefold() == "100-continue"  # the client waits to be asked for the body
        if (waits or length > EARLY_CHECK_BYTES) and (known := await self._known(user_id, key)) is not None:
            if not waits:
                async for _ in body:
                    pass
            raise Repeated(known)
        await self.places.check_length(length)
        if length > EARLY_CHECK_BYTES:
            await self.housekeeping.surplus(user_id, length)

    async def submit_upload(self, principal: Principal, headers: Mapping[str, str], body: bytes, gone: Gone) -> int:
        """Make a task of files that were uploaded before; its id. What is refused leaves the upload as it is, and so
        does a client that is `gone` while the files are looked at (`ClientDisconnect`)."""
        request = read_upload(body, checked_key(headers.get("idempotency-key", "")))
        user_id = principal.user_id
        if (known := await self._known(user_id, request.client_key)) is not None:
            return known
        taking = self.uploads.taking(user_id, request.upload, gone, unpack=request.unpack)
        async with taking as (session, stage):
            try:
                prepared = await self.prepared(
                    request, user_id, [file.name for file in stage.files], stage.held(request.scene)
                )
            except Repeated as repeated:
                return repeated.task_id
            files = await session.finished(stage)
            prepared = await self._read_scene(user_id, prepared, stage.states, gone)
            directory = await asyncio.to_thread(self.places.make_directory, prepared.engine, user_id, 0)
            taken = _Taken(self.uploads, user_id, session, stage, directory)
            try:
                with disk_errors():
                    await asyncio.to_thread(stage.link_into, directory)
                new = await self._new_task(principal, prepared, directory, files)
            except BaseException:
                await taken.discard()
                raise
            return await asyncio.shield(asyncio.create_task(self._commit(new, prepared.engine, taken)))

    async def _read_scene(self, user_id: int, prepared: Prepared, files: Files, gone: Gone) -> Prepared:
        """A request with what its scene says of itself, if that is good enough."""
        prepared = await self._facts.applied(user_id, prepared, files, gone)
        return prepared.strictly(everybody=self._strict)

    async def scene_facts(self, user_id: int, upload_id: str, name: str, gone: Gone) -> dict[str, Any]:
        """What a scene of an upload says of itself, {} when no engine reads such scenes. `InvalidRequest`
        (`broken_scene`); `NotFound` as long as it is not there; `ClientDisconnect`."""
        stage = (await self.uploads.find(user_id, upload_id)).stage
        name = stage.held(name)
        index = next((index for index, file in enumerate(stage.files) if file.name == name), None)
        if index is None or not await asyncio.to_thread(stage.has, index):
            raise NotFound(f"The file {name[:200]} of this upload is not there yet.")
        rows = await self._database.read(engines.list_engines)
        definitions = [self._parse(row.definition) for row in rows if row.definition and row.is_enabled]
        readers = [one.facts for one in definitions if names.extension_of(name).casefold() in one.extensions]
        return await self._facts.read(user_id, next(filter(None, readers), ""), name, stage.states, gone)

    async def _commit(self, new: NewTask, engine: EngineRow, upload: "Upload | _Taken") -> int:
        size = sum(file.size for file in new.inputs)
        if self.housekeeping.limit(new.user_id) and await self._known(new.user_id, new.client_key) is not None:
            size = 0  # it is there already
        try:
            upload_id = upload.session.upload_id if isinstance(upload, _Taken) else None
            async with self.housekeeping.room(new.user_id, size, new.waits_for, upload_id):
                submitted = await self._dispatcher.submit(new, engine)
        except NotAvailable:
            settling = asyncio.create_task(self._settle(new))
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)
            raise
        except asyncio.CancelledError:
            raise  # whether it was committed is not known: the next start's sweep finds out
        except BaseException:
            await upload.discard()
            raise
        if submitted.repeated:
            await upload.discard()
        else:
            await upload.keep()
        return submitted.task_id

    async def _settle(self, new: NewTask) -> None:
        """Nobody answered for a commit: find out whether there is such a task; without one its files go."""
        committed = None
        while committed is None:
            await asyncio.sleep(SETTLE_S)
            with contextlib.suppress(NotAvailable):
                look = partial(submissions.is_committed, user_id=new.user_id, file_path=new.file_path)
                committed = await self._database.write(look)
        directory = names.task_directory(new.file_path, new.file_name)
        await asyncio.to_thread(names.keep if committed else names.discard, directory)

    async def sweep(self) -> None:
        """Remove what a killed process left: staged files, and directories that no committed task names."""
        for root in await self.places.roots():
            await asyncio.to_thread(names.sweep_incoming, root)
            for directory in await asyncio.to_thread(names.marked, root):
                if await self._database.read(partial(submissions.names_directory, directory=str(directory))):
                    names.keep(directory)
                else:
                    await asyncio.to_thread(names.discard, directory)
                    log.info("upload that was never committed is removed", directory=str(directory))

    async def _known(self, user_id: int, client_key: str) -> int | None:
        return await self._database.read(partial(_known, user_id=user_id, client_key=client_key))

    async def prepared(self, request: SubmitRequest, user_id: int, files: Collection[str], scene: str = "") -> Prepared:
        """Ask the database in the contract's order: the user's limit, the engine, the rules of arguments. `Repeated`
        when this user's task with this key is there already."""

        def look(connection: Connection) -> Prepared:
            if (known := _known(connection, user_id, request.client_key)) is not None:
                raise Repeated(known)
            submissions.check_limit(connection, user_id)
            return self._checked(request, _Catalog(connection), files, scene)

        return await self._database.read(look)

    def _checked(self, request: SubmitRequest, catalog: _Catalog, files: Collection[str], scene: str = "") -> Prepared:
        engine = _engine(catalog.engines, request)
        if request.notify and not self.sends_mail:
            raise InvalidRequest("This farm sends no mail: submit without notify, or an administrator sets NotifyMail.")
        request = replace(request, deliver=checked_place(request.deliver, self._roots))
        definition = None if engine.definition is None else self._parse(engine.definition)
        scene = scene_among(files, scene, engine, definition)
        return heavy(prepare)(request, engine, definition, catalog.argtypes, scene)

    def forget(self) -> None:
        """Engines or argument types were changed."""
        self._catalog = None

    async def _known_catalog(self) -> _Catalog:
        catalog = self._catalog
        if catalog is None or time.monotonic() - catalog.at > CATALOG_S:
            self._catalog = catalog = await self._database.read(_Catalog)
        return catalog

    async def admitted(self, request: SubmitRequest, user_id: int, name: str) -> tuple[Prepared, Path] | None:
        """A small submission, checked by what is known of engines, and its directory; None when it can't be admitted
        in this way: then `prepared` finds the rule to name."""
        catalog = await self._known_catalog()

        def admit() -> tuple[Prepared, Path] | None:
            try:
                prepared = self._checked(request, catalog, (name,))
            except RenderOnlineError:
                return None
            return prepared, self.places.make_directory(prepared.engine, user_id, SMALL_BYTES)

        return await asyncio.to_thread(admit)

    async def _new_task(
        self, principal: Principal, prepared: Prepared, directory: Path, files: Sequence[InputFile]
    ) -> NewTask:
        ids = await self._ids.next_chunk_ids(len(prepared.ranges) + bool(prepared.film))
        default = (await self._known_catalog()).names.get(principal.user.subscription_id, "")
        make = partial(_new_task, principal, prepared, directory, files, ids, default)
        return await asyncio.to_thread(heavy(make)) if len(ids) > MANY_CHUNKS else make()


def _new_task(
    principal: Principal,
    prepared: Prepared,
    directory: Path,
    files: Sequence[InputFile],
    ids: Sequence[int],
    default_names: str,
) -> NewTask:
    """What there is to commit; much of it with many chunks."""
    request, now = prepared.request, datetime.now(UTC)
    chunks = [NewChunk(ids[index], prepared.ranges[index]) for index in first_last_middle(len(prepared.ranges))]
    chunks += [NewChunk(ids[-1], None, ChunkKind.FILM, stage=1)] if prepared.film else []
    return NewTask(
        user_id=principal.user_id,
        engine_id=prepared.engine.engine_id,
        file_name=prepared.scene,
        file_path=str(directory / prepared.scene),
        file_size=next(file.size for file in files if file.name == prepared.scene),
        arguments=prepared.argument_line(str(directory)),
        values=json.dumps(dict(prepared.values)),
        template=json.dumps(list(prepared.words)),
        queue_us=int(now.timestamp() * 1_000_000),
        queue_time=now.astimezone().replace(tzinfo=None),
        chunks=chunks,
        frames=prepared.written_frames,
        frames_total=len(prepared.frames),
        chunk_size=prepared.chunk_size,
        name=request.name or PurePosixPath(prepared.scene).name,
        priority=request.priority,
        paused=request.paused,
        client_key=request.client_key,
        waits_for=request.waits_for,
        notify=request.notify,
        needs=prepared.needs,
        running_limit=request.running_limit,
        inputs=files,
        facts=json.dumps(prepared.facts) if prepared.facts else None,
        film=prepared.film,
        warnings=prepared.warnings,
        strict=request.strict,
        names=prepared.names(default_names, now.date().isoformat()),
        deliver=request.deliver,
        results_in=names.unused_folder(names.RESULTS, (one.name for one in files)),
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
        name = names.clean_file_name(received.file_names[0])
        if received.path is None and 0 < self.length < SMALL_BYTES:
            admitted = await self.owner.admitted(request, self.user_id, name)
            if admitted is not None:
                self.prepared, self.directory = admitted
                return
        self.prepared = await self.owner.prepared(request, self.user_id, (name,))

    async def place(self) -> Path:
        if self.directory is None:
            make = self.owner.places.make_directory
            self.directory = await asyncio.to_thread(make, self.prepared.engine, self.user_id, self.length)
        return self.directory

    async def stage(self) -> Path:
        """Where a file waits for its request."""
        return await self.owner.places.staging()


@dataclass(frozen=True, slots=True)
class _Taken:
    """An upload whose files lie in a task's directory too."""

    uploads: Uploads
    user_id: int
    session: Session
    stage: Stage
    directory: Path

    async def keep(self) -> None:
        """The row is committed."""
        names.keep(self.directory)
        with contextlib.suppress(FileNotFoundError):
            known = await asyncio.to_thread(self.stage.known, manifests.LARGE)
            await asyncio.to_thread(manifests.remember, self.directory, known)
        await self.uploads.forget(self.user_id, self.session)

    async def discard(self) -> None:
        await asyncio.to_thread(names.discard, self.directory)


def _known(connection: Connection, user_id: int, client_key: str) -> int | None:
    if not client_key:
        return None
    found = submissions.find(connection, user_id, client_key, now_us=time.time_ns() // 1000)
    return None if found is None else found.task_id


def _engine(rows: Iterable[EngineRow], request: SubmitRequest) -> EngineRow:
    """The engine of a request: v1 names its number, v2 its name or number. To v1 a missing one is a bad request."""
    wanted = str(request.engine)
    for row in rows:
        named = request.exact and row.name.casefold() == wanted.casefold()
        if row.is_enabled and (named or str(row.engine_id) == wanted.strip()):
            return row
    raise InvalidRequest(v1.engine_not_found(wanted), code="engine_not_found")
