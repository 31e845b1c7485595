"""The use cases that only look: tasks, their parts, their files, logs. Everybody sees what their role allows."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from renderonline.database import accounts, tasks
from renderonline.database.door import Connection, Database
from renderonline.database.tasks import AttemptView, Page, ResultView, SceneFile, TaskView, Wanted
from renderonline.farm import result_names
from renderonline.farm.errors import InvalidRequest, NotFound, RenderOnlineError
from renderonline.farm.films import FORMATS
from renderonline.farm.needs import Needs
from renderonline.farm.tasks import Landed, TaskStatus
from renderonline.protocol.v1 import Info, UserInfo
from renderonline.renderapi import views
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.control import stuck
from renderonline.renderapi.dispatch import Dispatcher
from renderonline.renderapi.downloads import Content
from renderonline.renderapi.landed import ALTERED, COMPARED, NOT_COMPARED, LandedFiles, has_directory
from renderonline.storage.archive import members_of, results_first
from renderonline.storage.landed import Member
from renderonline.storage.logs import AttemptLogs
from renderonline.storage.names import task_directory
from renderonline.storage.previews import SIZES

MAX_LOG_BYTES: Final = 16 * 1024 * 1024
_OWNERS: Final = 4096

_FILMS: Final = {f".{kind}": f"video/{kind}" for kind in FORMATS}

Show = Callable[[Any], dict[str, Any]]
Chosen = Callable[[str, int | None], bool]
_PARTS: Final[dict[str, Callable[[Connection, int, int, str | None], Page[Any]]]] = {
    "chunks": tasks.list_chunks,
    "attempts": tasks.list_attempts,
    "results": tasks.list_results,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """Answers questions about tasks; what runs now it asks the dispatcher."""

    database: Database
    dispatcher: Dispatcher
    owners: OrderedDict[int, int] = field(default_factory=OrderedDict, init=False)

    async def healthy(self) -> bool:
        try:
            async with asyncio.timeout(3.0):
                await self.database.read(accounts.has_admin)
        except (RenderOnlineError, TimeoutError):
            return False
        return True

    async def info(self, principal: Principal) -> Info:
        """v1's answer: the user and their newest tasks."""
        user = principal.user
        entries = await self.database.read(partial(tasks.v1_newest, user_id=user.user_id))
        about = (user.user_id, user.first_name, user.last_name, user.email, user.subscription_id, user.is_active)
        return Info(UserInfo(*about), entries)

    async def tasks(
        self, principal: Principal, page: dict[str, Any], *, everybody: bool, status: str, engine: str, search: str
    ) -> dict[str, Any]:
        """A page (limit, cursor) of tasks, newest first. `everybody`: all that the role may see, not one's own only."""
        if status and status not in set(TaskStatus):
            raise InvalidRequest(f"There is no status {status}; there are {', '.join(TaskStatus)}.")
        whose = principal.tasks_of if everybody else principal.user_id
        wanted = Wanted(whose, TaskStatus(status) if status else None, engine, search)
        rows = await self.database.read(partial(tasks.list_tasks, wanted=wanted, **page))
        known: dict[tuple[str, Needs], str] = {}
        return _page(rows, lambda view: self._task(view, stuck=stuck(self.dispatcher.shared, view.task_id, known)))

    async def task(self, principal: Principal, task_id: int) -> dict[str, Any]:
        """One task, with the file that landed last."""
        view = await self._view(principal, task_id)
        found = None
        if view.frames_done or view.chunks.succeeded:
            found = await self.database.read(partial(tasks.latest_result, task_id=task_id))
        latest = None if found is None else (await self._results(view, (found,)))[0]
        nothing_known = latest is None and view.chunks.succeeded
        integrity = NOT_COMPARED if nothing_known else ALTERED if self._landed.altered(task_id) else COMPARED
        return self._task(view, latest, stuck(self.dispatcher.shared, task_id, {})) | {"integrity": integrity}

    async def submitted(self, principal: Principal, task_id: int) -> dict[str, Any]:
        """A task that was just submitted, read when its first leases are on their way: they go before the answer."""
        await self.dispatcher.leased()
        return await self.task(principal, task_id)

    async def parts(
        self, principal: Principal, task_id: int, what: str, limit: int, cursor: str | None
    ) -> dict[str, Any]:
        """A page of a task's `chunks`, `attempts` (newest first) or `results`."""
        view = await self._view(principal, task_id)
        rows = await self.database.read(lambda connection: _PARTS[what](connection, task_id, limit, cursor))
        if what == "results":
            return {"items": await self._results(view, rows.items), "next": rows.next}
        return _page(rows, self._attempt if what == "attempts" else views.shown)

    async def attempts(self, limit: int, cursor: str | None) -> dict[str, Any]:
        """A page of the whole farm's attempts, newest first: what its machines did."""
        rows = await self.database.read(partial(tasks.list_attempts, task_id=None, limit=limit, cursor=cursor))
        return _page(rows, self._attempt)

    async def archive(self, task_id: int, user_id: int | None, name: str, chosen: Chosen | None = None) -> Content:
        """The directory of a task as a ZIP called `name`, with the results as they are called (`results_first`); an
        adopted file that lies elsewhere is alone in it.

        `user_id`: whose task it must be, None: anybody's. `chosen`: which files (name, frame), None: all.
        """

        def read(connection: Connection) -> tuple[SceneFile, dict[str, Landed], dict[str, int | None]]:
            scene = tasks.scene_file(connection, task_id, user_id=user_id)
            landed = tasks.landed_files(connection, task_id) if has_directory(scene) else {}
            wanted = chosen is not None or scene.names
            return scene, landed, tasks.landed_frames(connection, task_id) if wanted else {}

        scene, landed, frames = await self.database.read(read)
        called = await asyncio.to_thread(_called, task_id, scene.names, frames)
        own = {shown: name for name, shown in called.items()}

        def find() -> Sequence[Member]:
            if not has_directory(scene):
                path = Path(scene.file_path)
                return (Member.of(path.name, path),)
            members = members_of(task_directory(scene.file_path, scene.file_name), landed)
            members = results_first(members, scene.results_in, called)
            if chosen is None:
                return members
            names = ((one, own.get(one.name, one.name)) for one in members)
            found = [one for one, its in names if chosen(one.name, frames.get(its)) or chosen(its, frames.get(its))]
            if not found:
                raise NotFound(f"Task {task_id} has no such files yet.")
            return found

        return await self._landed.archive(task_id, find, name, own)

    async def result_file(self, principal: Principal, task_id: int, name: str) -> Content:
        scene = await self._scene_file(principal, task_id)
        place, known = await self.database.read(partial(tasks.landed_place, task_id=task_id, name=name))
        path = task_directory(scene.file_path, scene.file_name) / place
        content = await self._landed.file(task_id, path, name, known)
        if scene.names:
            frames = await self.database.read(partial(tasks.landed_frames, task_id=task_id, name=name))
            shown = result_names.called(scene.names, task_id, name, frames.get(name))
            content = replace(content, file_name=shown.rpartition("/")[2])
        return replace(content, media_type=_FILMS.get(path.suffix, content.media_type))  # players ask for nothing else

    async def accept(self, principal: Principal, task_id: int, names: Collection[str] = ()) -> None:
        """`LandedFiles.accept`, for a task that they may see."""
        await self._scene_file(principal, task_id)
        await self._landed.accept(task_id, names)

    async def preview(self, principal: Principal, task_id: int, name: str, size: str) -> tuple[bytes, str]:
        """The preview of a result, and what tells it from one that takes its place (an ETag). `NotFound` when there is
        none, or the task is not theirs."""
        if task_id not in self.owners:  # a grid asks for hundreds of a task, whose owner never changes
            self.owners[task_id] = (await self._scene_file(principal, task_id)).user_id
            if len(self.owners) > _OWNERS:
                self.owners.popitem(last=False)
        if principal.tasks_of not in (None, self.owners[task_id]):
            raise NotFound(f"Task {task_id} does not exist.")
        path = self.dispatcher.shared.previews.path(task_id, name, checked_size(size))
        try:
            return await asyncio.to_thread(_read_preview, path)
        except OSError:
            raise NotFound(f"There is no preview of {name[:200]}.") from None

    async def log(self, principal: Principal, attempt_id: int, offset: int) -> tuple[bytes, int]:
        """An attempt's log from byte `offset`, and where it ends now."""
        view = await self.database.read(partial(tasks.get_attempt, attempt_id=attempt_id))
        if principal.tasks_of not in (None, view.user_id):
            raise NotFound(f"There is no attempt {attempt_id}.")
        return await asyncio.to_thread(_read_log, self.dispatcher.shared.logs, attempt_id, offset)

    @property
    def _landed(self) -> LandedFiles:
        return self.dispatcher.shared.landed

    async def _view(self, principal: Principal, task_id: int) -> TaskView:
        return await self.database.read(partial(tasks.get_task, task_id=task_id, user_id=principal.tasks_of))

    async def _scene_file(self, principal: Principal, task_id: int) -> SceneFile:
        return await self.database.read(partial(tasks.scene_file, task_id=task_id, user_id=principal.tasks_of))

    def _task(self, view: TaskView, latest: dict[str, Any] | None = None, stuck: str = "") -> dict[str, Any]:
        # Of each live attempt the frame that is being rendered: whole frames are counted when they have landed.
        live = [(one.progress, one.frames) for one in self.dispatcher.memory.attempts_of(view.task_id)]
        rendering = [now.fraction * len(frames) % 1.0 if frames else now.fraction for now, frames in live if now]
        return views.task(view, rendering, latest, stuck)

    async def _results(self, task: TaskView, found: Sequence[ResultView]) -> list[dict[str, Any]]:
        task_id = task.task_id
        previews = self.dispatcher.shared.previews
        previewed = await asyncio.to_thread(previews.there, [(task_id, view.name) for view in found])

        def shown(view: ResultView) -> dict[str, Any]:
            frame = view.of_frame if view.frame is None else view.frame
            return views.shown(
                view,
                preview=(task_id, view.name) in previewed,
                integrity=self._landed.integrity(task_id, view.name, view.digest),
                called=result_names.called(task.names, task_id, view.name, frame),
            )

        return [shown(view) for view in found]

    def _attempt(self, view: AttemptView) -> dict[str, Any]:
        live = self.dispatcher.memory.attempts.get(view.attempt_id)
        return views.attempt(view, live.progress.fraction if live is not None and live.progress else None)


def _called(task_id: int, template: str | None, frames: Mapping[str, int | None]) -> dict[str, str]:
    """What each result of a task is called when it leaves the farm, by its own name; {} where all keep theirs."""
    if not template:
        return {}
    ordered = sorted(frames, key=lambda name: (frames[name] is None, name))
    return result_names.distinct((name, result_names.called(template, task_id, name, frames[name])) for name in ordered)


def _page(rows: Page[Any], show: Show) -> dict[str, Any]:
    return {"items": [show(row) for row in rows.items], "next": rows.next}


def checked_size(size: str) -> str:
    if size not in SIZES:
        raise InvalidRequest(f"size is one of {', '.join(SIZES)}.")
    return size


def _read_preview(path: Path) -> tuple[bytes, str]:
    with open(path, "rb") as file:
        about = path.stat()
        return file.read(), f'"{about.st_mtime_ns:x}-{about.st_size:x}"'


def _read_log(logs: AttemptLogs, attempt_id: int, offset: int) -> tuple[bytes, int]:
    found = bytearray()
    while len(found) < MAX_LOG_BYTES:
        part = logs.read(attempt_id, offset)
        if not part.data:
            return bytes(found), max(part.size, offset)
        if part.offset > offset:
            found += f"\n[… {part.offset - offset} bytes are not kept …]\n".encode()
        found += part.data
        offset = part.next
    return bytes(found), offset
