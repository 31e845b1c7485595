"""The use case: submit a task (R4.1 Submit once).

Its files are an upload, which a form fills with a single one (`renderapi.uploads`). From there on there is one way:
read the scene, give the files their names in the task's directory, commit. Nothing is left of a refused submission; a
committed one has its files on the disk before the answer leaves.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

import structlog
from starlette.requests import Request

from renderonline.database import administration_rows, submission_rows
from renderonline.database.administration_rows import EngineRow
from renderonline.database.door import Connection, Database, IdBlocks
from renderonline.database.submission_rows import NewChunk, NewTask
from renderonline.engines.definition import parse_definition
from renderonline.farm.errors import InvalidRequest, NotAvailable, NotFound, RenderOnlineError
from renderonline.farm.frames import first_last_middle
from renderonline.farm.tasks import ChunkKind, InputFile
from renderonline.protocol import existing
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.housekeeping import EARLY_CHECK_BYTES, Housekeeping, Places, checked_place
from renderonline.renderapi.memory import heavy
from renderonline.renderapi.planner import MANY_CHUNKS, Dispatcher
from renderonline.renderapi.requests import Prepared, SubmitRequest, checked_key, prepare, read_upload, scene_among
from renderonline.renderapi.scene_surveys import Gone, SceneFacts, client_of
from renderonline.renderapi.settings import Settings
from renderonline.renderapi.uploads import Uploads, UploadSession
from renderonline.serving.bodies import content_length
from renderonline.storage import manifests, names
from renderonline.storage.multipart import Form
from renderonline.storage.staging import Stage

log = structlog.get_logger(__name__)

SETTLE_S: Final = 1.0
"""Between two looks whether a task was committed, while the database does not answer."""

ReadRequest = Callable[[bytes | None, str], SubmitRequest]
"""Reads the part `request` (None: there was none) with the key of the headers."""


class Repeated(RenderOnlineError):
    """Not a fault: this submission was made before, and the first answer is given again."""

    code = "repeated"
    status = 200

    def __init__(self, task_id: int) -> None:
        super().__init__(f"This is task {task_id}, submitted before.")
        self.task_id = task_id


class Submissions:
    """Submits tasks."""

    def __init__(
        self,
        database: Database,
        ids: IdBlocks,
        settings: Settings,
        *,
        dispatcher: Dispatcher,
        places: Places,
        housekeeping: Housekeeping,
        facts: SceneFacts,
    ) -> None:
        self.places, self.housekeeping = places, housekeeping
        self.uploads = Uploads(places, housekeeping)
        self._database = database
        self._ids = ids
        self._dispatcher = dispatcher
        self._facts = facts
        self._settling: set[asyncio.Task[None]] = set()
        self.sends_mail, self._strict = bool(settings.notify_mail), settings.strict_scenes
        self._roots = settings.delivery_roots
        self._parse = lru_cache(100)(parse_definition)

    async def close(self) -> None:
        """What is still in doubt is left to the next start's sweep."""
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)
        await self._facts.close()

    async def submit_form(self, principal: Principal, request: Request, read_request: ReadRequest) -> int:
        """Make a task of a form: a part `request` and a file; returns its id. Raises the first rule that is broken, or
        `ClientDisconnect`; then nothing is stored."""
        user_id = principal.user_id
        key, length = checked_key(request.headers.get("idempotency-key", "")), content_length(request.headers)

        async def check(form: Form) -> Prepared:
            """The contract's checks from top to bottom."""
            if not form.file_names:
                raise InvalidRequest(existing.NO_FILES, code="no_file")
            asked = read_request(form.request, key)
            if len(form.file_names) > 1:
                raise InvalidRequest(existing.ONE_FILE, code="two_files")
            return await self._prepared(asked, principal, [names.clean_file_name(form.file_names[0])])

        try:
            await self._check_early(user_id, key, request)
            async with self.uploads.receiving(request, length, check) as (session, prepared):
                return await self._submit(principal, prepared, session, session.stage, client_of(request))
        except Repeated as repeated:
            return repeated.task_id

    async def _check_early(self, user_id: int, key: str, request: Request) -> None:
        """What can be refused, or is known, before a byte of a large body is read."""
        length = content_length(request.headers)
        waits = request.headers.get("expect", "").casefold() == "100-continue"  # the client waits to be asked for it
        if (waits or length > EARLY_CHECK_BYTES) and (known := await self._known(user_id, key)) is not None:
            if not waits:
                async for _ in request.stream():
                    pass
            raise Repeated(known)
        await self.places.check_length(length)
        if length > EARLY_CHECK_BYTES:
            await self.housekeeping.surplus(user_id, length)

    async def submit_upload(self, principal: Principal, headers: Mapping[str, str], body: bytes, gone: Gone) -> int:
        """Make a task of files that were uploaded before; returns its id. A refusal leaves the upload as it is, and so
        does a client that is `gone` while the files are looked at (`ClientDisconnect`)."""
        asked = read_upload(body, checked_key(headers.get("idempotency-key", "")))
        user_id = principal.user_id
        if (known := await self._known(user_id, asked.client_key)) is not None:
            return known
        try:
            async with self.uploads.taking(user_id, asked.upload, gone, unpack=asked.unpack) as (session, stage):
                files = [file.name for file in stage.files]
                prepared = await self._prepared(asked, principal, files, stage.held(asked.scene))
                return await self._submit(principal, prepared, session, stage, gone)
        except Repeated as repeated:
            return repeated.task_id

    async def _submit(
        self, principal: Principal, prepared: Prepared, session: UploadSession, stage: Stage, gone: Gone
    ) -> int:
        """Make a task of the files in `stage`, which are the upload `session` or were unpacked from it."""
        user_id = principal.user_id
        files = await session.finished(stage)
        prepared = await self._facts.applied(user_id, prepared, stage.states, gone)
        prepared = prepared.strictly(everybody=self._strict)
        ids = await self._ids.next_chunk_ids(len(prepared.ranges) + bool(prepared.film))
        directory = await asyncio.to_thread(self.places.place, stage, prepared.engine, user_id)
        try:
            make = partial(_new_task, user_id, prepared, directory, files, ids)
            new = await asyncio.to_thread(heavy(make)) if len(ids) > MANY_CHUNKS else make()
        except BaseException:
            await asyncio.to_thread(names.discard, directory)
            raise
        # The commit and what follows from it happen together, also when the client goes away now.
        commit = self._commit(new, prepared.engine, directory, session, stage)
        return await asyncio.shield(asyncio.create_task(commit))

    async def scene_facts(self, user_id: int, upload_id: str, name: str, gone: Gone) -> dict[str, Any]:
        """What a scene of an upload says of itself, {} when no engine reads such scenes. `InvalidRequest`
        (`broken_scene`); `NotFound` as long as it is not there; `ClientDisconnect`."""
        stage = (await self.uploads.find(user_id, upload_id)).stage
        name = stage.held(name)
        index = next((index for index, file in enumerate(stage.files) if file.name == name), None)
        if index is None or not await asyncio.to_thread(stage.has, index):
            raise NotFound(f"The file {name[:200]} of this upload is not there yet.")
        rows = await self._database.read(administration_rows.list_engines)
        definitions = [self._parse(row.definition) for row in rows if row.definition and row.is_enabled]
        readers = [one.facts for one in definitions if names.extension_of(name).casefold() in one.extensions]
        return await self._facts.read(user_id, next(filter(None, readers), ""), name, stage.states, gone)

    async def _commit(
        self, new: NewTask, engine: EngineRow, directory: Path, session: UploadSession, stage: Stage
    ) -> int:
        size = sum(file.size for file in new.inputs)
        try:
            if self.housekeeping.limit(new.user_id) and await self._known(new.user_id, new.client_key) is not None:
                size = 0  # it is there already
            async with self.housekeeping.room(new.user_id, size, new.waits_for, session.upload_id):
                submitted = await self._dispatcher.submit(new, engine)
        except Exception as error:  # not when this is canceled: the next start's sweep settles it
            settling = asyncio.create_task(self._settle(new, directory))
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)
            if not isinstance(error, NotAvailable):
                await asyncio.wait({settling}, timeout=SETTLE_S)
            raise
        if submitted.repeated:
            await asyncio.to_thread(names.discard, directory)
        else:
            await asyncio.to_thread(_keep, directory, stage)
            await self.uploads.forget(new.user_id, session)
        return submitted.task_id

    async def _settle(self, new: NewTask, directory: Path) -> None:
        """Something failed before or after a commit: only the database knows whether there is such a task. Without one
        its files are removed."""
        look = partial(submission_rows.is_committed, user_id=new.user_id, file_path=new.file_path)
        while True:
            with contextlib.suppress(NotAvailable):
                committed = await self._database.write(look)
                break
            await asyncio.sleep(SETTLE_S)
        await asyncio.to_thread(names.keep if committed else names.discard, directory)

    async def sweep(self) -> None:
        """Remove what a killed process left: staged files, and directories that no committed task names."""
        for root in await self.places.roots():
            await asyncio.to_thread(names.sweep_incoming, root)
            for directory in await asyncio.to_thread(names.marked, root):
                if await self._database.read(partial(submission_rows.names_directory, directory=str(directory))):
                    names.keep(directory)
                else:
                    await asyncio.to_thread(names.discard, directory)
                    log.info("upload that was never committed is removed", directory=str(directory))

    async def _known(self, user_id: int, client_key: str) -> int | None:
        return await self._database.read(partial(_known, user_id=user_id, client_key=client_key))

    async def _prepared(
        self, asked: SubmitRequest, principal: Principal, files: Collection[str], scene: str = ""
    ) -> Prepared:
        """Ask the database in the contract's order: the user's limit, the engine, the rules of arguments. `Repeated`
        when this user's task with this key is there already."""

        def look(connection: Connection) -> Prepared:
            if (known := _known(connection, principal.user_id, asked.client_key)) is not None:
                raise Repeated(known)
            submission_rows.check_limit(connection, principal.user_id)
            engine = _engine(administration_rows.list_engines(connection), asked)
            if asked.notify and not self.sends_mail:
                message = "This farm sends no mail: submit without notify, or an administrator sets NotifyMail."
                raise InvalidRequest(message)
            request = replace(asked, deliver=checked_place(asked.deliver, self._roots))
            definition = None if engine.definition is None else self._parse(engine.definition)
            argtypes = {row.argtype_id: row for row in administration_rows.list_argtypes(connection)}
            main = scene_among(files, scene, engine, definition)
            prepared = heavy(prepare)(request, engine, definition, argtypes, main)
            return replace(
                prepared, default_names=administration_rows.names_of(connection, principal.user.subscription_id)
            )

        return await self._database.read(look)


def _new_task(
    user_id: int, prepared: Prepared, directory: Path, files: Sequence[InputFile], ids: Sequence[int]
) -> NewTask:
    """What there is to commit; much of it with many chunks."""
    request, now = prepared.request, datetime.now(UTC)
    chunks = [NewChunk(ids[index], prepared.ranges[index]) for index in first_last_middle(len(prepared.ranges))]
    chunks += [NewChunk(ids[-1], None, ChunkKind.FILM, stage=1)] if prepared.film else []
    return NewTask(
        user_id=user_id,
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
        names=prepared.names(now.date().isoformat()),
        deliver=request.deliver,
        results_in=names.unused_folder(names.RESULTS, (one.name for one in files)),
    )


def _keep(directory: Path, stage: Stage) -> None:
    """A task's row is committed: its directory stays, and the chunks of its files are known to later uploads."""
    names.keep(directory)
    with contextlib.suppress(FileNotFoundError):
        if known := stage.known(manifests.LARGE):
            manifests.remember(directory, known)


def _known(connection: Connection, user_id: int, client_key: str) -> int | None:
    if not client_key:
        return None
    found = submission_rows.find(connection, user_id, client_key, now_us=time.time_ns() // 1000)
    return None if found is None else found.task_id


def _engine(rows: Iterable[EngineRow], request: SubmitRequest) -> EngineRow:
    """The engine of a request: v1 names its number, v2 its name or number. To v1 a missing one is a bad request."""
    wanted = str(request.engine)
    for row in rows:
        named = request.exact and row.name.casefold() == wanted.casefold()
        if row.is_enabled and (named or str(row.engine_id) == wanted.strip()):
            return row
    raise InvalidRequest(existing.engine_not_found(wanted), code="engine_not_found")
