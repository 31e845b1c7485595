"""Files of clients become tasks: a form with one file, or an upload that came before. From `Submissions` on both take
one way; until then this asks what can be refused before a body is read, and what the scene says of itself.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request

from renderonline.database import submission_rows
from renderonline.database.door import Database
from renderonline.database.submission_rows import EngineRow, NewTask
from renderonline.farm.accounts import User
from renderonline.farm.errors import InvalidRequest, NotFound
from renderonline.farm.tasks import InputFile
from renderonline.protocol import existing
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.housekeeping import EARLY_CHECK_BYTES, Housekeeping, Places
from renderonline.renderapi.orders import definition_of
from renderonline.renderapi.requests import Prepared, SubmitRequest, checked_key, read_upload
from renderonline.renderapi.scene_surveys import Gone, SceneFacts, client_of
from renderonline.renderapi.submissions import Repeated, Submissions
from renderonline.renderapi.uploads import Uploads, UploadSession
from renderonline.serving.bodies import SHORT_BYTES, Form, content_length
from renderonline.storage import manifests, names
from renderonline.storage.staging import SmallFile, Stage

ReadRequest = Callable[[bytes | None, str], SubmitRequest]
"""Reads the part `request` (None: there was none) with the key of the headers."""


class Intake:
    """Receives what tasks are made of."""

    def __init__(
        self,
        database: Database,
        submissions: Submissions,
        *,
        uploads: Uploads,
        facts: SceneFacts,
        places: Places,
        housekeeping: Housekeeping,
    ) -> None:
        self.submissions, self.uploads, self.places, self.housekeeping = submissions, uploads, places, housekeeping
        self._database, self._facts = database, facts

    async def close(self) -> None:
        await self.submissions.close()
        await self._facts.close()

    async def submit_form(self, principal: Principal, request: Request, read_request: ReadRequest) -> int:
        """Make a task of a form: a part `request` and a file; returns its id. Raises the first rule that is broken, or
        `ClientDisconnect`; then nothing is stored."""
        key, length = checked_key(request.headers.get("idempotency-key", "")), content_length(request.headers)

        def asked_for(form: Form) -> SubmitRequest:
            """The contract's checks from top to bottom, but those of the database."""
            if not form.file_names:
                raise InvalidRequest(existing.NO_FILES, code="no_file")
            asked = read_request(form.request, key)
            if len(form.file_names) > 1:
                raise InvalidRequest(existing.ONE_FILE, code="two_files")
            return asked

        async def check(form: Form) -> Prepared:
            return await self.submissions.prepared(asked_for(form), principal.user, [_name(form)])

        try:
            await self._check_early(principal.user_id, key, request, length)
            if 0 < length <= SHORT_BYTES:
                return await self._submit_short(principal.user, request, length, asked_for)
            async with self.uploads.receiving(request, length, check) as (session, prepared):
                return await self._submit(principal.user_id, prepared, session, session.stage, client_of(request))
        except Repeated as repeated:
            return repeated.task_id

    async def _submit_short(
        self, user: User, request: Request, length: int, asked_for: Callable[[Form], SubmitRequest]
    ) -> int:
        """Make a task of a form that is held in memory: its file is written once, where it stays."""
        form = Form(request.headers.get("content-type", ""), limit=self.places.limit)
        content = await form.read_short(request, length)
        asked, file, user_id = asked_for(form), SmallFile(_name(form), content), user.user_id

        def begin() -> tuple[Prepared, Path | None]:
            """In one thread, because each change of threads costs as much as the work."""
            prepared = self._database.read_now(self.submissions.check(asked, user, [file.name]))
            looks = prepared.definition is not None and prepared.definition.facts
            return prepared, None if looks else self.places.place(file, prepared.engine, user_id)

        prepared, directory = await asyncio.to_thread(begin)
        if directory is not None:
            return await self.submissions.submit(user_id, prepared, _SmallUpload(file, user_id, self), directory)
        async with self.uploads.holding(file, prepared.engine) as session:
            return await self._submit(user_id, prepared, session, session.stage, client_of(request))

    async def _check_early(self, user_id: int, key: str, request: Request, length: int) -> None:
        """What can be refused, or is known, before a byte of a large body is read."""
        waits = request.headers.get("expect", "").casefold() == "100-continue"  # the client waits to be asked for it
        is_large = length > EARLY_CHECK_BYTES
        if (waits or is_large) and (known := await self.submissions.known(user_id, key)) is not None:
            if not waits:
                async for _ in request.stream():
                    pass
            raise Repeated(known)
        await self.places.check_length(length)
        if is_large:
            await self.housekeeping.surplus(user_id, length)

    async def submit_upload(self, principal: Principal, headers: Mapping[str, str], body: bytes, gone: Gone) -> int:
        """Make a task of files that were uploaded before; returns its id. A refusal leaves the upload as it is, and so
        does a client that is `gone` while the files are looked at (`ClientDisconnect`)."""
        asked = read_upload(body, checked_key(headers.get("idempotency-key", "")))
        user = principal.user
        if (known := await self.submissions.known(user.user_id, asked.client_key)) is not None:
            return known
        try:
            async with self.uploads.taking(user.user_id, asked.upload, gone, unpack=asked.unpack) as (session, stage):
                files = [file.name for file in stage.files]
                prepared = await self.submissions.prepared(asked, user, files, stage.held(asked.scene))
                return await self._submit(user.user_id, prepared, session, stage, gone)
        except Repeated as repeated:
            return repeated.task_id

    async def _submit(self, user_id: int, prepared: Prepared, session: UploadSession, stage: Stage, gone: Gone) -> int:
        """Make a task of the files in `stage`, which are the upload `session` or were unpacked from it."""
        files = await session.finished(stage)
        prepared = await self._facts.applied(user_id, prepared, stage.states, gone)
        return await self.submissions.submit(user_id, prepared, _ArrivedFiles(files, session, stage, user_id, self))

    @contextlib.asynccontextmanager
    async def room(
        self, user_id: int, files: Sequence[InputFile], new: NewTask, upload_id: str | None = None
    ) -> AsyncIterator[None]:
        """Commit a task of these files, perhaps those of an upload, inside of this (`FinishedUpload.room`)."""
        size = sum(file.size for file in files)
        if self.housekeeping.limit(user_id) and await self.submissions.known(user_id, new.client_key):
            size = 0  # it is there already
        async with self.housekeeping.room(user_id, size, new.waits_for, upload_id):
            yield

    async def scene_facts(self, user_id: int, upload_id: str, name: str, gone: Gone) -> dict[str, Any]:
        """What a scene of an upload says of itself, {} when no engine reads such scenes. `InvalidRequest`
        (`broken_scene`); `NotFound` as long as it is not there; `ClientDisconnect`."""
        stage = (await self.uploads.find(user_id, upload_id)).stage
        name = stage.held(name)
        index = next((index for index, file in enumerate(stage.files) if file.name == name), None)
        if index is None or not await asyncio.to_thread(stage.has, index):
            raise NotFound(f"The file {name[:200]} of this upload is not there yet.")
        rows = await self._database.read(submission_rows.list_engines)
        definitions = [definition_of(row.definition) for row in rows if row.definition and row.is_enabled]
        extension = names.extension_of(name).casefold()
        readers = [definition.facts for definition in definitions if extension in definition.extensions]
        return await self._facts.read(user_id, next(filter(None, readers), ""), name, stage.states, gone)


@dataclass(frozen=True, slots=True)
class _ArrivedFiles:
    """`FinishedUpload`: the files in `stage`, which are the upload `session` or were unpacked from it."""

    files: Sequence[InputFile]
    session: UploadSession
    stage: Stage
    user_id: int
    intake: Intake

    def place(self, engine: EngineRow) -> Path:
        return self.intake.places.place(self.stage, engine, self.user_id)

    def room(self, new: NewTask) -> AbstractAsyncContextManager[None]:
        return self.intake.room(self.user_id, self.files, new, self.session.upload_id)

    async def taken(self, directory: Path) -> None:
        """The chunks of its files are known to later uploads."""
        await asyncio.to_thread(_remember, directory, self.stage)
        await self.intake.uploads.forget(self.user_id, self.session)


class _SmallUpload:
    """`FinishedUpload`: the file of a form, which is not on the disk yet."""

    def __init__(self, file: SmallFile, user_id: int, intake: Intake) -> None:
        self.files = (file.facts(),)
        self._file, self._user_id, self._intake = file, user_id, intake

    def place(self, engine: EngineRow) -> Path:
        return self._intake.places.place(self._file, engine, self._user_id)

    def room(self, new: NewTask) -> AbstractAsyncContextManager[None]:
        return self._intake.room(self._user_id, self.files, new)

    async def taken(self, directory: Path) -> None:
        """Nothing of it is left elsewhere."""


def _name(form: Form) -> str:
    return names.clean_file_name(form.file_names[0])


def _remember(directory: Path, stage: Stage) -> None:
    with contextlib.suppress(FileNotFoundError):
        if known := stage.known(manifests.LARGE):
            manifests.remember(directory, known)
