"""Makes room: tasks whose days are over, tasks that must give way to an upload, and what a stop left behind.

Nothing goes that the database knows, but ended tasks by the rules of `database.retention`; and nothing that may be
another farm's.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from functools import partial
from typing import Final

import structlog

from renderonline.database import Database, retention
from renderonline.farm.errors import Conflict, NotFound, RenderOnlineError, TooLarge
from renderonline.farm.scheduling import Allowance
from renderonline.renderapi.attempt_files import OURS
from renderonline.renderapi.control import Control
from renderonline.renderapi.dispatch import Dispatcher
from renderonline.renderapi.places import Places
from renderonline.storage import manifests, names, staging

_log = structlog.get_logger(__name__)

EVERY_S: Final = 600.0
KEEP_UPLOADS_S: Final = 7 * 24 * 3600.0
"""An upload that nobody touched for so long is removed."""


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

    async def surplus(self, user_id: int, size: int, spared: Collection[int] = ()) -> list[int]:
        """Which ended tasks must go to make room for so many bytes, oldest first, but none that are `spared`.
        `TooLarge` (`over_quota`) when that is not enough."""
        limit = self.limit(user_id)
        if not limit or not size:
            return []
        tasks = await self._database.read(partial(retention.kept, user_id=user_id))
        taken = sum(task.size for task in tasks)
        over, going = taken + size - limit, []
        for task in tasks:
            if over > 0 and task.size and task.may_go and task.task_id not in spared:
                going.append(task.task_id)
                over -= task.size
        if over > 0:
            raise TooLarge(
                f"Your subscription holds {_mib(limit)}. Your tasks take {_mib(taken)}, and this is {_mib(size)} more; "
                "tasks that have ended make room by themselves, but that is not enough. Wait until others have ended, "
                "delete some, or ask an administrator for more.",
                code="over_quota",
            )
        return going

    @contextlib.asynccontextmanager
    async def room(self, user_id: int, size: int, spared: Collection[int]) -> AsyncIterator[None]:
        """Commit so many bytes of a user's inside of this: the `surplus` is gone then."""
        async with self._locks[user_id] if self.limit(user_id) else contextlib.nullcontext():
            while going := await self.surplus(user_id, size, spared):
                for task_id in going:
                    await self._remove(task_id, "its place is needed")
            yield

    async def _look_after(self) -> None:
        for task_id in await self._database.read(partial(retention.due, now_us=time.time_ns() // 1000)):
            await self._remove(task_id, "its days are over")
        for root in await self._places.roots():
            await asyncio.to_thread(staging.sweep, root / names.INCOMING, KEEP_UPLOADS_S)
            await asyncio.to_thread(manifests.sweep, root)

    async def _sweep(self) -> None:
        """Logs and previews of what is gone. An attempt's number says whether it is of this farm (R7.1), a task's does
        not: of previews nothing goes where another farm's logs are."""
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


def _mib(size: int) -> str:
    return f"{-(-size >> 20)} MiB"
