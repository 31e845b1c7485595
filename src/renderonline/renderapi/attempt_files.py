"""The directories of attempts: known while a machine may still write there, removed when nobody needs them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable
from functools import partial
from typing import Any, Final, NamedTuple

import structlog

from renderonline.database.door import Database
from renderonline.database.work_loading import download_paths, load_owners
from renderonline.farm.errors import InvalidRequest
from renderonline.storage.landing import attempts_on_disk, remove_attempt

_log = structlog.get_logger(__name__)

OURS: Final = 2**31
"""Attempt ids of this farm lie at most so far from the newest; other farms began elsewhere
(R7.1 Attempt id on the wire)."""
MOST_SENT: Final = 50_000
"""Files that an attempt sends, repeated ones too."""


class Folder(NamedTuple):
    """An attempt's directory, the machine that may write there, and the attempt's token."""

    directory: str
    machine_id: int
    token: str


class AttemptFiles:
    """Knows which directories are there. Removal happens in the background and may fail: the next start sweeps."""

    def __init__(self, database: Database, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._database, self._spawn = database, spawn
        self._folders: dict[int, Folder] = {}
        self._received: Counter[int] = Counter()

    def know(self, attempt_id: int, folder: Folder) -> None:
        """An attempt was leased, or found live at start."""
        self._folders[attempt_id] = folder

    def token(self, attempt_id: int, machine_id: int) -> str | None:
        """The token of an attempt that is this machine's; None when that is not known here."""
        folder = self._folders.get(attempt_id)
        return folder.token if folder is not None and folder.machine_id == machine_id else None

    def receives(self, attempt_id: int, folder: Folder) -> None:
        """A machine sends a file of an attempt. `InvalidRequest` when it sends far too many."""
        self.know(attempt_id, folder)
        self._received[attempt_id] += 1
        if self._received[attempt_id] > MOST_SENT:
            raise InvalidRequest(f"An attempt sends at most {MOST_SENT} files.", code="not_wanted")

    def forget_late(self, attempt_id: int, folder: Folder) -> None:
        """A file came when its attempt had ended: its directory may be there once more."""
        if attempt_id not in self._folders:
            self.know(attempt_id, folder)
            self.remove(folder.machine_id, (attempt_id,))

    def remove(self, machine_id: int, attempt_ids: Iterable[int]) -> None:
        """These attempts of a machine are over, as it has said (or it is gone for good). Those of others stay
        (R14 Authority first)."""
        over = [number for number in attempt_ids if self.token(number, machine_id) is not None]
        directories = [self._folders.pop(number).directory for number in over]
        for number in over:
            del self._received[number]
        if directories:
            self._spawn(asyncio.to_thread(_remove_all, directories))

    def remove_unheld(self, machine_id: int, held: Collection[int]) -> None:
        """A machine says what it still has: everything else that it had is over."""
        mine = [number for number, folder in self._folders.items() if folder.machine_id == machine_id]
        self.remove(machine_id, [number for number in mine if number not in held])

    async def sweep(self, newest: int) -> None:
        """At start: remove what a stop left behind. Attempts that were lost keep theirs until their machine is back.
        `newest`: an attempt id that no attempt before this start reaches."""
        found: dict[int, str] = {}
        for path in await self._database.read(download_paths):
            found |= await asyncio.to_thread(attempts_on_disk, path)
        owners = await self._database.read(partial(load_owners, attempt_ids=sorted(found)))
        stale = []
        for attempt_id, directory in found.items():
            owner = owners.get(attempt_id)
            if owner is not None and not owner.over:
                self.know(attempt_id, Folder(directory, owner.machine_id, owner.token))
            elif owner is not None or newest - OURS < attempt_id < newest:
                stale.append(directory)
        if stale:
            _log.info("Directories of old attempts are removed", count=len(stale))
            await asyncio.to_thread(_remove_all, stale)


def _remove_all(directories: Iterable[str]) -> None:
    for directory in directories:
        if not remove_attempt(directory):
            _log.warning("An attempt's directory could not be removed", directory=directory)
