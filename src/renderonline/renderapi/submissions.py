"""The use case: submit a task of files that have arrived (R4.1 Submit once).

Check the request, give the files a directory of their own, commit. Nothing is left of a refused submission; a committed
one has its files on the disk before the answer leaves.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from renderonline.database import submission_rows
from renderonline.database.door import Connection, Database, IdBlocks
from renderonline.database.submission_rows import EngineRow, NewChunk, NewTask, Submitted
from renderonline.farm.accounts import User
from renderonline.farm.errors import InvalidRequest, NotAvailable, RenderOnlineError
from renderonline.farm.frames import first_last_middle
from renderonline.farm.tasks import ChunkKind, InputFile
from renderonline.renderapi.memory import MANY_CHUNKS, heavy
from renderonline.renderapi.orders import definition_of
from renderonline.renderapi.requests import Prepared, SubmitRequest, checked_place, engine_of, prepare, scene_among
from renderonline.storage import names

SETTLE_S: Final = 1.0
"""Between two looks whether a task was committed, while the database does not answer."""


class Repeated(RenderOnlineError):
    """Not a fault: this submission was made before, and the first answer is given again."""

    code = "repeated"
    status = 200

    def __init__(self, task_id: int) -> None:
        super().__init__(f"This is task {task_id}, submitted before.")
        self.task_id = task_id


class FinishedUpload(Protocol):
    """Files that have arrived whole."""

    @property
    def files(self) -> Sequence[InputFile]:
        """All of them, each synced to the disk."""

    def place(self, engine: EngineRow) -> Path:
        """Make the task's directory with the files in it, marked until `names.keep` or `names.discard`. Blocks."""

    def room(self, new: NewTask) -> AbstractAsyncContextManager[None]:
        """There is room for the task that is committed inside of this; `TooLarge` when there is none."""

    async def taken(self, directory: Path) -> None:
        """Its task is committed, with the files in `directory`: the upload goes."""


class Committing(Protocol):
    """The part of `planner.Dispatcher` that is needed here."""

    async def submit(self, new: NewTask, engine: EngineRow) -> Submitted:
        """Commit a task, perhaps with its first leases. Raises what the commit raises."""


class Submissions:
    """Submits tasks. `strict`: no task of v2 may have warnings; `deliver_to`: names of the places that results may be
    delivered to."""

    def __init__(
        self,
        database: Database,
        ids: IdBlocks,
        dispatcher: Committing,
        *,
        sends_mail: bool,
        strict: bool,
        deliver_to: Collection[str],
    ) -> None:
        self._database, self._ids, self._dispatcher = database, ids, dispatcher
        self._sends_mail, self._strict, self._deliver_to = sends_mail, strict, deliver_to
        self._settling: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """What is still in doubt is left to the next start's sweep."""
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)

    async def known(self, user_id: int, client_key: str) -> int | None:
        """The task that a user has submitted with this key; None without a key."""
        return await self._database.read(partial(_known, user_id=user_id, client_key=client_key))

    async def prepared(self, asked: SubmitRequest, user: User, files: Collection[str], scene: str = "") -> Prepared:
        """What `check` finds."""
        return await self._database.read(self.check(asked, user, files, scene))

    def check(
        self, asked: SubmitRequest, user: User, files: Collection[str], scene: str = ""
    ) -> Callable[[Connection], Prepared]:
        """The query that checks a request in the contract's order: the user's limit, the engine, the rules of
        arguments. It raises `Repeated` when this user's task with this key is there already."""

        def look(connection: Connection) -> Prepared:
            if (known := _known(connection, user.user_id, asked.client_key)) is not None:
                raise Repeated(known)
            submission_rows.check_limit(connection, user.user_id)
            engine = engine_of(asked, submission_rows.list_engines(connection))
            if asked.notify and not self._sends_mail:
                message = "This farm sends no mail: submit without notify, or an administrator sets NotifyMail."
                raise InvalidRequest(message)
            request = replace(asked, deliver=checked_place(asked.deliver, self._deliver_to))
            definition = None if engine.definition is None else definition_of(engine.definition)
            argtypes = {row.argtype_id: row for row in submission_rows.list_argtypes(connection)}
            main = scene_among(files, scene, engine, definition)
            prepared = heavy(prepare)(request, engine, definition, argtypes, main)
            return replace(prepared, default_names=submission_rows.names_of(connection, user.subscription_id))

        return look

    async def submit(
        self, user_id: int, prepared: Prepared, upload: FinishedUpload, directory: Path | None = None
    ) -> int:
        """Make a task; returns its id. When this raises, nothing is stored. `directory`: its place, if it has one."""
        try:
            prepared = prepared.strictly(everybody=self._strict)
            ids = await self._ids.next_chunk_ids(len(prepared.ranges) + bool(prepared.film))
            if directory is None:
                directory = await asyncio.to_thread(upload.place, prepared.engine)
            make = partial(_new_task, user_id, prepared, directory, upload.files, ids)
            new = await asyncio.to_thread(heavy(make)) if len(ids) > MANY_CHUNKS else make()
        except BaseException:
            if directory is not None:
                await asyncio.to_thread(names.discard, directory)
            raise
        # The commit and what follows from it happen together, also when the client goes away now.
        return await asyncio.shield(asyncio.create_task(self._commit(new, prepared.engine, directory, upload)))

    async def _commit(self, new: NewTask, engine: EngineRow, directory: Path, upload: FinishedUpload) -> int:
        try:
            async with upload.room(new):
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
            await asyncio.to_thread(names.keep, directory)
            await upload.taken(directory)
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
        results_in=names.unused_folder(names.RESULTS, (file.name for file in files)),
    )


def _known(connection: Connection, user_id: int, client_key: str) -> int | None:
    if not client_key:
        return None
    found = submission_rows.find(connection, user_id, client_key)
    return None if found is None else found.task_id
