"""The use cases that only look: tasks, their parts, their files, logs. Everybody sees what their role allows."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from renderonline.database import Database, tasks
from renderonline.database.tasks import AttemptView, Page, TaskView, Wanted
from renderonline.farm.errors import InvalidRequest, NotFound
from renderonline.farm.tasks import TaskStatus
from renderonline.protocol.v1 import Info, UserInfo
from renderonline.renderapi import views
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.downloads import Content, archive_of, file_of
from renderonline.storage.archive import Member, StoredArchive
from renderonline.storage.logs import AttemptLogs

MAX_LOG_BYTES: Final = 16 * 1024 * 1024


class InFlight(Protocol):
    """What the dispatcher knows of what runs now."""

    def progress_of(self, attempt_id: int) -> float | None:
        """How far an attempt is, 0 to 1; None when that is not known."""

    def rendering(self, task_id: int) -> list[float]:
        """For each live attempt of a task: how many frames' worth of it is rendered and has not landed."""


class Reading:
    """Answers questions about tasks."""

    def __init__(self, database: Database, in_flight: InFlight, logs: AttemptLogs) -> None:
        self._database = database
        self._in_flight = in_flight
        self._logs = logs

    async def info(self, principal: Principal) -> Info:
        """v1's answer: the user and their newest tasks."""
        user = principal.user
        entries = await self._database.read(partial(tasks.v1_newest, user_id=user.user_id))
        about = UserInfo(
            user.user_id, user.first_name, user.last_name, user.email, user.subscription_id, user.is_active
        )
        return Info(about, entries)

    async def tasks(
        self,
        principal: Principal,
        *,
        everybody: bool,
        status: str | None,
        engine: str,
        search: str,
        limit: int,
        cursor: str | None,
    ) -> dict[str, Any]:
        """A page of tasks, newest first. `everybody` needs the right to see all tasks; without it, one's own."""
        wanted = Wanted(
            user_id=principal.tasks_of if everybody else principal.user_id,
            status=_status(status),
            engine=engine,
            search=search,
        )
        page = await self._database.read(partial(tasks.list_tasks, wanted=wanted, limit=limit, cursor=cursor))
        return _page(page, self._task)

    async def task(self, principal: Principal, task_id: int) -> dict[str, Any]:
        """One task."""
        return self._task(await self._view(principal, task_id))

    def _task(self, view: TaskView) -> dict[str, Any]:
        return views.task(view, self._in_flight.rendering(view.task_id))

    async def chunks(self, principal: Principal, task_id: int, limit: int, cursor: str | None) -> dict[str, Any]:
        """A page of a task's chunks."""
        await self._view(principal, task_id)
        page = await self._database.read(partial(tasks.list_chunks, task_id=task_id, limit=limit, cursor=cursor))
        return _page(page, views.chunk)

    async def attempts(self, principal: Principal, task_id: int, limit: int, cursor: str | None) -> dict[str, Any]:
        """A page of a task's attempts, newest first."""
        await self._view(principal, task_id)
        page = await self._database.read(partial(tasks.list_attempts, task_id=task_id, limit=limit, cursor=cursor))
        return _page(page, self._attempt)

    def _attempt(self, view: AttemptView) -> dict[str, Any]:
        fraction = self._in_flight.progress_of(view.attempt_id)
        return views.attempt(view, 1.0 if view.outcome == "succeeded" else fraction)

    async def results(self, principal: Principal, task_id: int, limit: int, cursor: str | None) -> dict[str, Any]:
        """A page of a task's results."""
        await self._view(principal, task_id)
        page = await self._database.read(partial(tasks.list_results, task_id=task_id, limit=limit, cursor=cursor))
        return _page(page, views.result)

    async def archive(self, task_id: int, user_id: int | None, name: str) -> Content:
        """The directory of a task as a ZIP called `name`; an adopted file that lies elsewhere is alone in it.

        `user_id`: whose task it must be, None: anybody's.
        """
        view = await self._database.read(partial(tasks.get_task, task_id=task_id, user_id=user_id))
        scene = Path(view.file_path)
        if not has_directory(view):
            return await asyncio.to_thread(_single, scene, name)
        landed = await self._database.read(partial(tasks.landed_files, task_id=task_id))
        return await archive_of(scene.parent, name, {file.name: (file.size, file.crc32) for file in landed.values()})

    async def result_file(self, principal: Principal, task_id: int, name: str) -> Content:
        """One landed result."""
        view = await self._view(principal, task_id)
        found = await self._database.read(partial(tasks.get_result, task_id=task_id, name=name))
        return await file_of(Path(view.file_path).parent / found.name, found.name.rpartition("/")[2])

    async def log(self, principal: Principal, attempt_id: int, offset: int) -> tuple[bytes, int]:
        """An attempt's log from byte `offset`, and where it ends now."""
        view = await self._database.read(partial(tasks.get_attempt, attempt_id=attempt_id))
        if principal.tasks_of not in (None, view.user_id):
            raise NotFound(f"There is no attempt {attempt_id}.")
        return await asyncio.to_thread(_read_log, self._logs, attempt_id, max(offset, 0))

    async def _view(self, principal: Principal, task_id: int) -> TaskView:
        return await self._database.read(partial(tasks.get_task, task_id=task_id, user_id=principal.tasks_of))


def has_directory(view: TaskView) -> bool:
    """Whether the task's file lies in a directory of its own, `<user_id>/<ticks>/`."""
    directory = Path(view.file_path).parent
    return directory.is_absolute() and directory.name.isdigit() and directory.parent.name == str(view.user_id)


def _single(scene: Path, name: str) -> Content:
    try:
        status = scene.lstat()
    except OSError as error:
        raise NotFound("The files of this task are not on the server any more.", code="files_gone") from error
    archive = StoredArchive([Member(scene.name, scene, status.st_size, status.st_mtime_ns)])
    return Content(archive.size, archive.etag, "application/zip", name, archive.pieces)


def _read_log(logs: AttemptLogs, attempt_id: int, offset: int) -> tuple[bytes, int]:
    parts: list[bytes] = []
    read = 0
    while read < MAX_LOG_BYTES:
        part = logs.read(attempt_id, offset)
        if not part.data:
            return b"".join(parts), max(part.size, offset)
        if part.offset > offset:
            parts.append(f"\n[… {part.offset - offset} bytes are not kept …]\n".encode())
        parts.append(part.data)
        read += len(part.data)
        offset = part.next
    return b"".join(parts), offset


def _status(text: str | None) -> TaskStatus | None:
    if not text:
        return None
    try:
        return TaskStatus(text)
    except ValueError:
        raise InvalidRequest(f"There is no status {text}; there are {', '.join(TaskStatus)}.") from None


def _page(page: Page[Any], view: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
    return {"items": [view(item) for item in page.items], "next": page.next}
