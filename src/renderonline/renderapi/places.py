"""Where files of tasks go: the download paths of the engines, and whether there is room."""

import asyncio
import shutil
from datetime import datetime
from pathlib import Path
from typing import Final

from renderonline.database import Database, engines
from renderonline.database.engines import EngineRow
from renderonline.farm.errors import NoSpace, RenderOnlineError
from renderonline.renderapi.settings import Settings
from renderonline.storage import names
from renderonline.storage.uploads import disk_error, too_large

EARLY_CHECK_BYTES: Final = 16 * 1024 * 1024
"""Bodies larger than this are compared with the free disk before their first byte is read."""


class Places:
    """The directories of a farm. `limit`: bytes of the largest upload."""

    def __init__(self, database: Database, settings: Settings) -> None:
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
            self.check_room(await asyncio.to_thread(lambda: max(map(_free_bytes, found))), length)

    async def check_disk(self, directory: Path, length: int) -> None:
        """Raise `NoSpace` when so many bytes more have no room where `directory` is."""
        self.check_room(await asyncio.to_thread(_free_bytes, directory), length)

    async def room(self, directory: Path) -> int:
        """How many bytes may still be stored where `directory` is."""
        free = await asyncio.to_thread(_free_bytes, directory)
        return max(min(free - self._reserve, self.limit), 0)

    def check_room(self, free: int, length: int) -> None:
        """Raise `NoSpace` when so many bytes leave too little of the disk."""
        if free - length < self._reserve:
            raise NoSpace("The server has no room for a file of this size. Delete tasks that are not needed any more.")

    def make_directory(self, engine: EngineRow, user_id: int, length: int) -> Path:
        """Make a task's directory below the engine's download path. Blocks."""
        root = Path(engine.download_path)
        if not root.is_absolute():
            message = f"The download path of engine {engine.name} must be absolute. Ask an administrator."
            raise RenderOnlineError(message, code="bad_engine")
        self.check_room(_free_bytes(root), length)
        try:
            return names.make_task_directory(root, user_id, names.ticks_of(datetime.now().astimezone()))
        except OSError as error:
            raise disk_error(error) from error

    async def _of_engines(self, *, enabled: bool = False) -> set[Path]:
        """The download paths of the engines, or of those that are enabled."""
        rows = await self._database.read(engines.list_engines)
        return {Path(row.download_path) for row in rows if row.is_enabled or not enabled}


def _free_bytes(root: Path) -> int:
    while not root.exists() and root != root.parent:
        root = root.parent
    return shutil.disk_usage(root).free
