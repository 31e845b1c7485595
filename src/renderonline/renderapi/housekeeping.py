"""Where files of tasks go, and room for them: the disk's, the user's, and what is removed to make more of it.

Nothing goes that the database knows, but ended tasks by the rules of `database.retention` and tasks whose deletion was
interrupted; and nothing that may be another farm's.
"""

import asyncio
import contextlib
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Final

import structlog

from renderonline.database import engines, retention, work_control
from renderonline.database.door import Database
from renderonline.database.engines import EngineRow
from renderonline.farm.errors import Conflict, NoSpace, NotFound, RenderOnlineError, TooLarge
from renderonline.farm.scheduling import Allowance
from renderonline.renderapi.attempt_files import OURS
from renderonline.renderapi.control import Control
from renderonline.renderapi.dispatch import Dispatcher
from renderonline.renderapi.settings import Settings
from renderonline.sandbox.probing import probe
from renderonline.serving.bodies import Take
from renderonline.storage import manifests, names, staging
from renderonline.storage.staging import Stage, disk_errors, too_large

_log = structlog.get_logger(__name__)

EVERY_S: Final = 600.0
KEEP_UPLOADS_S: Final = 7 * 24 * 3600.0
"""An upload that nobody touched for so long is removed."""
_NAMED: Final = 3
"""Open uploads that an error names."""
EARLY_CHECK_BYTES: Final = 16 * 1024 * 1024
"""Bodies larger than this are compared with the free disk before their first byte is read."""


class Places:
    """The directories of a farm. `limit`: bytes of the largest upload. `box`: for what reads users' files; it is
    tried out, which blocks, when it is first asked for."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.box = cache(partial(probe, settings.sandbox))
        self.limit = settings.max_upload_bytes
        self._database = database
        self._files = settings.files
        self._reserve = settings.reserve_mib * 1024 * 1024

    async def roots(self) -> set[Path]:
        """Every directory below which files of tasks may lie."""
        return {self._files, *await self._of_engines()}

    async def staging(self) -> Path:
        """The download path that all engines share, or else our own."""
        found = await self._of_engines(enabled=True)
        return found.pop() if len(found) == 1 else self._files

    async def check_length(self, length: int) -> None:
        """Refuse what can't be stored before its first byte is read."""
        if length > EARLY_CHECK_BYTES:
            if length > self.limit:
                raise too_large(self.limit)
            found = await self._of_engines() or {self._files}
            self._check(await asyncio.to_thread(lambda: max(map(_free_bytes, found))), length)

    def check_disk(self, directory: Path, length: int = 0) -> None:
        """Raise `NoSpace` when so many bytes more have no room where `directory` is. Blocks."""
        self._check(_free_bytes(directory), length)

    def watched(self, directory: Path, take: Take) -> Take:
        """`take`, with a look at the disk before each piece: what had room when it began may have lost it to what
        others send meanwhile. `NoSpace` then."""

        def look(piece: memoryview) -> object:
            self.check_disk(directory, len(piece))
            return take(piece)

        return look

    async def room(self, directory: Path) -> int:
        """How many bytes may still be stored where `directory` is."""
        free = await asyncio.to_thread(_free_bytes, directory)
        return max(min(free - self._reserve, self.limit), 0)

    def _check(self, free: int, length: int) -> None:
        if free - length < self._reserve:
            raise NoSpace("The server has no room for a file of this size. Delete tasks that are not needed any more.")

    def root_of(self, engine: EngineRow) -> Path:
        """An engine's download path; `RenderOnlineError` (`bad_engine`) when it is not absolute."""
        root = Path(engine.download_path)
        if not root.is_absolute():
            message = f"The download path of engine {engine.name} must be absolute. Ask an administrator."
            raise RenderOnlineError(message, code="bad_engine")
        return root

    def place(self, stage: Stage, engine: EngineRow, user_id: int) -> Path:
        """Make a task's directory below the engine's download path, with the files of an upload in it. Blocks."""
        root = self.root_of(engine)
        self.check_disk(root)
        with disk_errors():
            directory = names.make_task_directory(root, user_id, names.ticks_of(datetime.now().astimezone()))
            try:
                stage.link_into(directory)
            except BaseException:
                names.discard(directory)
                raise
        return directory

    async def _of_engines(self, *, enabled: bool = False) -> set[Path]:
        """The download paths of the engines, or of those that are enabled."""
        rows = await self._database.read(engines.list_engines)
        return {Path(row.download_path) for row in rows if row.is_enabled or not enabled}


class Housekeeping:
    """Deletes what may go; `run` only in the RenderAPI that dispatches."""

    def __init__(self, database: Database, dispatcher: Dispatcher, places: Places) -> None:
        self._database = database
        self._shared = dispatcher.shared
        self._control = Control(database, dispatcher)
        self._places = places
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self) -> None:
        """Sweep up what a stop left, then look after everything again and again."""
        await _tried(self._sweep)
        while True:
            await _tried(self._look_after)
            await asyncio.sleep(EVERY_S)

    def limit(self, user_id: int) -> int:
        """How many bytes a user's tasks may take; 0: any."""
        return self._shared.machines.policy.users.get(user_id, Allowance()).keep_mib << 20

    async def surplus(
        self, user_id: int, size: int, spared: Collection[int] = (), upload_id: str | None = None
    ) -> list[int]:
        """Which ended tasks must go to make room for so many bytes, oldest first, but none that are `spared`. Open
        uploads count with all that was announced, but for that of which these bytes are (`upload_id`). `TooLarge`
        (`over_quota`) when that is not enough."""
        limit = self.limit(user_id)
        if not limit or not size:
            return []
        tasks = await self._database.read(partial(retention.kept, user_id=user_id))
        roots = await self._places.roots()
        opened = await asyncio.to_thread(_opened, roots, user_id, upload_id)
        taken, coming = sum(task.size for task in tasks), sum(opened.values())
        over, going = taken + coming + size - limit, []
        for task in tasks:
            if over > 0 and task.size and task.may_go and task.task_id not in spared:
                going.append(task.task_id)
                over -= task.size
        if over > 0:
            uploads, finish = "", ""
            if coming:
                named = ", ".join(list(opened)[:_NAMED]) + (" …" if len(opened) > _NAMED else "")
                uploads = f", your open uploads {_mib(coming)} ({named})"
                finish = "finish or delete open uploads (DELETE /renderapi/v2/uploads/ID), "
            raise TooLarge(
                f"Your subscription holds {_mib(limit)}. Your tasks take {_mib(taken)}{uploads}, and this is "
                f"{_mib(size)} more; tasks that have ended make room by themselves, but that is not enough. Wait until "
                f"others have ended, delete some, {finish}or ask an administrator for more.",
                code="over_quota",
            )
        return going

    @contextlib.asynccontextmanager
    async def room(
        self, user_id: int, size: int, spared: Collection[int], upload_id: str | None = None
    ) -> AsyncIterator[None]:
        """Commit so many bytes of a user's inside of this: the `surplus` is gone then."""
        async with self._locks[user_id] if self.limit(user_id) else contextlib.nullcontext():
            while going := await self.surplus(user_id, size, spared, upload_id):
                for task_id in going:
                    await self._remove(task_id, "its place is needed")
            yield

    async def _look_after(self) -> None:
        for task_id in await self._database.read(work_control.list_condemned):
            with contextlib.suppress(NotFound):
                await self._control.delete(task_id, user_id=None)
        for task_id in await self._database.read(partial(retention.due, now_us=time.time_ns() // 1000)):
            await self._remove(task_id, "its days are over")
        for root in await self._places.roots():
            await asyncio.to_thread(staging.sweep, root / names.INCOMING, KEEP_UPLOADS_S)
            await asyncio.to_thread(manifests.sweep, root)

    async def _sweep(self) -> None:
        """Logs and previews of what is gone. An attempt's number says whether it is of this farm
        (R7.1 Attempt id on the wire), a task's does not: of previews nothing goes where another farm's logs are."""
        newest, logs, previews = self._shared.newest, self._shared.logs, self._shared.previews
        found = await asyncio.to_thread(logs.on_disk)
        ours = [number for number in found if newest - OURS < number < newest]
        for attempt_id in await self._database.read(partial(retention.gone, kind="attempt", ids=ours)):
            await asyncio.to_thread(logs.remove, attempt_id)
        shown = await asyncio.to_thread(previews.on_disk) if ours and len(ours) == len(found) else ()
        for task_id in await self._database.read(partial(retention.gone, kind="task", ids=shown)):
            await asyncio.to_thread(previews.remove, task_id)

    async def _remove(self, task_id: int, why: str) -> None:
        with contextlib.suppress(Conflict, NotFound):  # somebody wants it again, or was faster
            await self._control.delete(task_id, user_id=None, only_ended=True)
            _log.info("a task that has ended is removed", task=task_id, why=why)


async def _tried(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except (RenderOnlineError, OSError) as error:
        _log.warning("housekeeping goes on later", reason=str(error))


def _opened(roots: Collection[Path], user_id: int, but: str | None) -> dict[str, int]:
    """The open uploads of a user but one: id -> bytes."""
    found = [one for root in roots for one in staging.staged(root / names.INCOMING, user_id)]
    ids = {one.name.partition("-")[2]: one for one in found}
    return {upload_id: staging.announced_bytes(one) for upload_id, one in ids.items() if upload_id != but}


def _mib(size: int) -> str:
    return f"{-(-size >> 20)} MiB"


def _free_bytes(root: Path) -> int:
    while not root.exists() and root != root.parent:
        root = root.parent
    return shutil.disk_usage(root).free
