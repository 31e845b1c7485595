"""Where files of tasks go, and room for them: the disk's, the user's, and what is removed to make more of it.

Nothing goes that the database knows, but ended tasks by the rules of `database.retention` and tasks whose deletion was
interrupted; and nothing that may be another farm's.

Finished files on their way to a directory outside the farm (`submit --deliver NAME/sub`), by RenderAPI, never by an
engine: begun when they land, gone on with after a restart, tried again while their root is away.
"""

import asyncio
import contextlib
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import structlog

from renderonline.database import administration_rows, control_rows, submission_rows
from renderonline.database.door import Database
from renderonline.database.file_rows import (
    Begun,
    Undelivered,
    begin_delivery,
    end_delivery,
    undelivered,
    withdraw_delivery,
)
from renderonline.database.file_rows import warn_of_delivery as warn
from renderonline.database.submission_rows import EngineRow
from renderonline.database.task_rows import Moment, TaskRow
from renderonline.farm import result_names
from renderonline.farm.errors import Conflict, NoSpace, NotFound, RenderOnlineError, TooLarge
from renderonline.farm.scheduling import Allowance
from renderonline.renderapi.connected_machines import Machines
from renderonline.renderapi.orders import OURS
from renderonline.renderapi.settings import Settings
from renderonline.sandbox.box import probe
from renderonline.serving.bodies import Take, too_large
from renderonline.storage import manifests, names, staging
from renderonline.storage.attempt_logs import AttemptLogs
from renderonline.storage.images import PreviewFiles
from renderonline.storage.landing import Delivered, Delivery, deliver
from renderonline.storage.names import task_directory
from renderonline.storage.staging import SmallFile, Stage, disk_errors

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
        """Raise `NoSpace` when there is no room for `length` bytes where `directory` is. Blocks."""
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

    def place(self, stage: Stage | SmallFile, engine: EngineRow, user_id: int) -> Path:
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
        rows = await self._database.read(submission_rows.list_engines)
        return {Path(row.download_path) for row in rows if row.is_enabled or not enabled}


class Housekeeping:
    """Deletes what may go; `run` and `sweep_uploads` only in the RenderAPI that dispatches. `delete` is that of
    `Control`."""

    def __init__(
        self,
        database: Database,
        places: Places,
        *,
        machines: Machines,
        delete: Callable[..., Awaitable[None]],
        logs: AttemptLogs,
        previews: PreviewFiles,
        newest: Callable[[], int],
    ) -> None:
        self._database, self._places, self._machines, self._delete = database, places, machines, delete
        self._logs, self._previews, self._newest = logs, previews, newest
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self) -> None:
        """Sweep up what a stop left, then look after everything again and again."""
        await _tried(self._sweep)
        while True:
            await _tried(self._look_after)
            await asyncio.sleep(EVERY_S)

    async def sweep_uploads(self) -> None:
        """Remove what a killed process left: staged files, and directories that no committed task names. Before the
        first upload."""
        for root in await self._places.roots():
            await asyncio.to_thread(names.sweep_incoming, root)
            for directory in await asyncio.to_thread(names.marked, root):
                if await self._database.read(partial(submission_rows.names_directory, directory=str(directory))):
                    names.keep(directory)
                else:
                    await asyncio.to_thread(names.discard, directory)
                    _log.info("upload that was never committed is removed", directory=str(directory))

    def limit(self, user_id: int) -> int:
        """How many bytes a user's tasks may take; 0: any."""
        return self._machines.policy.users.get(user_id, Allowance()).keep_mib << 20

    async def surplus(
        self, user_id: int, size: int, spared: Collection[int] = (), upload_id: str | None = None
    ) -> list[int]:
        """Which ended tasks must go to make room for `size` bytes, oldest first, but none that are `spared`. Open
        uploads count with all that was announced, but for that of which these bytes are (`upload_id`). `TooLarge`
        (`over_quota`) when that is not enough."""
        limit = self.limit(user_id)
        if not limit or not size:
            return []
        kept = await self._database.read(partial(administration_rows.limits, user_id=user_id))
        roots = await self._places.roots()
        opened = await asyncio.to_thread(_opened, roots, user_id, upload_id)
        coming = sum(opened.values())
        if kept["kept_bytes"] + coming + size <= limit:
            return []
        tasks = await self._database.read(partial(control_rows.stored_tasks, user_id=user_id))
        taken = sum(task.size for task in tasks)
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
        """Commit `size` bytes of a user's inside of this: the `surplus` is gone then."""
        async with self._locks[user_id] if self.limit(user_id) else contextlib.nullcontext():
            while going := await self.surplus(user_id, size, spared, upload_id):
                for task_id in going:
                    await self._remove(task_id, "its place is needed")
            yield

    async def _look_after(self) -> None:
        for task_id in await self._database.read(control_rows.list_condemned):
            with contextlib.suppress(NotFound):
                await self._delete(task_id, user_id=None)
        for task_id in await self._database.read(partial(control_rows.expired, now_us=time.time_ns() // 1000)):
            await self._remove(task_id, "its days are over")
        for root in await self._places.roots():
            await asyncio.to_thread(staging.sweep, root / names.INCOMING, KEEP_UPLOADS_S)
            await asyncio.to_thread(manifests.sweep, root)

    async def _sweep(self) -> None:
        """Logs and previews of what is gone. An attempt's number says whether it is of this farm
        (R7.1 Attempt id on the wire), a task's does not: of previews nothing goes where another farm's logs are."""
        newest, logs, previews = self._newest(), self._logs, self._previews
        found = await asyncio.to_thread(logs.on_disk)
        ours = [number for number in found if newest - OURS < number < newest]
        for attempt_id in await self._database.read(partial(control_rows.gone, kind="attempt", ids=ours)):
            await asyncio.to_thread(logs.remove, attempt_id)
        shown = await asyncio.to_thread(previews.on_disk) if ours and len(ours) == len(found) else ()
        for task_id in await self._database.read(partial(control_rows.gone, kind="task", ids=shown)):
            await asyncio.to_thread(previews.remove, task_id)

    async def _remove(self, task_id: int, why: str) -> None:
        with contextlib.suppress(Conflict, NotFound):  # somebody wants it again, or was faster
            await self._delete(task_id, user_id=None, only_ended=True)
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


AGAIN_S: Final = 30.0
"""Between two tries when something could not be delivered."""
IDLE_S: Final = 300.0
"""Between two looks when nothing landed."""
PAUSE_S: Final = 0.5
"""What lands within it is delivered together."""


class Deliverer:
    """Delivers results when an event says that they landed. `roots`: name -> directory; `announce` publishes a task
    that has changed."""

    def __init__(self, database: Database, roots: Mapping[str, Path], announce: Callable[[TaskRow], None]) -> None:
        self._database, self._roots, self._announce = database, roots, announce
        self._woken = asyncio.Event()
        self._warned: set[int] = set()

    def publish(self, type: str, data: dict[str, Any], *, user_id: int | None = None) -> None:  # noqa: A002
        """A file that landed is perhaps to be delivered."""
        if type == "result" and self._roots:
            self._woken.set()

    async def run(self) -> None:
        """Deliver again and again, first what a stop left."""
        while self._roots:
            self._woken.clear()
            try:
                left = await self._round()
            except RenderOnlineError as error:
                _log.warning("deliveries go on later", reason=error.message)
                left = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), AGAIN_S if left else IDLE_S)
            await asyncio.sleep(PAUSE_S)

    async def _round(self) -> bool:
        """Deliver what there is; whether something is left that could not be."""
        away: set[int] = set()
        while found := await self._database.read(partial(undelivered, but=sorted(away))):
            for one in found:
                if one.task_id not in away and not await self._deliver(one):
                    away.add(one.task_id)
        return bool(away)

    async def _deliver(self, one: Undelivered) -> bool:
        """Whether it is settled; else it is tried again."""
        name, _, below = one.deliver.partition("/")
        root = self._roots.get(name)
        if root is None:
            return await self._later(one, f"this farm has no place {name} any more (DeliverRoots)")
        frame = one.of_frame if one.frame is None else one.frame
        shown = result_names.called(one.names or "", one.task_id, one.name, frame)
        paths = [f"{below}/{path}" if below else path for path in dict.fromkeys((shown, one.name))]
        found = await self._database.write(partial(begin_delivery, result=one, paths=paths))
        path, begun = found or (paths[0], Begun(0))
        outcome, later = Delivered.TAKEN, ""
        if found is not None:
            source = task_directory(one.scene, one.file_name) / one.folder
            about = (source, one.name, one.digest, root, path, begun.before)
            delivery = Delivery(begun.delivery_id, *about, again=begun.again)
            try:
                outcome = await asyncio.to_thread(deliver, delivery)
            except OSError as error:
                later = f"{name} can't be written: {error.strerror}"
        if outcome is Delivered.AWAY:
            later = f"the directory of {name} is not there"
        if outcome is not Delivered.DELIVERED:
            await self._database.write(partial(withdraw_delivery, begun=begun))
        if later:
            return await self._later(one, later)
        why = {
            Delivered.TAKEN: f"{one.name} was not delivered: {name}/{path} is there and not of this task.",
            Delivered.CHANGED: f"{one.name} was not delivered: it is not the file that landed.",
        }.get(outcome, "")
        ours = begun.delivery_id if outcome is Delivered.DELIVERED else 0
        end = partial(end_delivery, result=one, moment=_now(), delivery_id=ours, warning=why)
        if (state := await self._database.write(end)) is not None:
            self._announce(state)
        return True

    async def _later(self, one: Undelivered, why: str) -> bool:
        if one.task_id not in self._warned:
            self._warned.add(one.task_id)
            _log.warning("A task's files can't be delivered now", task=one.task_id, reason=why)
            text = f"Its files could not be delivered at once: {why}. The farm tries again."
            if state := await self._database.write(partial(warn, task_id=one.task_id, moment=_now(), warning=text)):
                self._announce(state)
        return False


def _now() -> Moment:
    return Moment.at(time.time())
