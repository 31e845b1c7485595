"""The use cases of previews: a machine sends those of a frame, people look at them. RenderAPI never decodes (R13)."""

import asyncio
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from renderonline.database import Database, tasks
from renderonline.database.task_inputs import Holder, load_holder
from renderonline.farm.errors import InvalidRequest, NotFound
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.dispatch import Dispatcher
from renderonline.storage.landing import check_name
from renderonline.storage.previews import SIZES
from renderonline.storage.uploads import disk_error

_JPEG: Final = b"\xff\xd8\xff"
_OWNERS: Final = 4096


class Preview(NamedTuple):
    """A JPEG, and what tells it from one that takes its place."""

    jpeg: bytes
    etag: str


class Previews:
    """Keeps and gives previews."""

    def __init__(self, database: Database, dispatcher: Dispatcher) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._files = dispatcher.shared.previews
        self._owners: OrderedDict[int, int] = OrderedDict()

    async def put(self, attempt_id: int, holder: Holder, name: str, size: str, jpeg: bytes) -> None:
        """Keep a preview of a file that an attempt has to write; `NotFound` when it has none of this name."""
        order = await self._dispatcher.reports.order_of(attempt_id)
        if order is None or check_name(name) not in order.wanted:
            raise NotFound(f"The attempt has no file {name}.")
        if not jpeg.startswith(_JPEG):
            raise InvalidRequest("A preview is a JPEG.")
        try:
            path = await asyncio.to_thread(self._files.put, holder.task_id, name, _checked(size), jpeg)
        except OSError as error:
            raise disk_error(error) from error
        if await self._database.read(partial(load_holder, attempt_id=attempt_id)) is None:  # deleted meanwhile
            await asyncio.to_thread(self._files.take_back, path)

    async def get(self, principal: Principal, task_id: int, name: str, size: str) -> Preview:
        """The preview of a result. `NotFound` when there is none, or the task is not theirs."""
        await self._check_owner(principal, task_id)
        path = self._files.path(task_id, name, _checked(size))
        try:
            return await asyncio.to_thread(_read, path)
        except OSError:
            raise NotFound(f"There is no preview of {name[:200]}.") from None

    async def _check_owner(self, principal: Principal, task_id: int) -> None:
        """A grid asks for hundreds of a task, whose owner never changes."""
        if task_id not in self._owners:
            task = await self._database.read(partial(tasks.get_task, task_id=task_id, user_id=principal.tasks_of))
            self._owners[task_id] = task.user_id
            if len(self._owners) > _OWNERS:
                self._owners.popitem(last=False)
        if principal.tasks_of not in (None, self._owners[task_id]):
            raise NotFound(f"Task {task_id} does not exist.")


def _checked(size: str) -> str:
    if size not in SIZES:
        raise InvalidRequest(f"size is one of {', '.join(SIZES)}.")
    return size


def _read(path: Path) -> Preview:
    with open(path, "rb") as file:
        about = path.stat()
        return Preview(file.read(), f'"{about.st_mtime_ns:x}-{about.st_size:x}"')
