"""The lease: one RenderAPI for each database.

SQLite: a lock on the file `<database>.lock`. MySQL: `GET_LOCK` on a connection of its own. Both end with the process
that holds them, however it ends.
"""

import hashlib
import os
import socket
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from renderonline.database.connecting import explained, patient_engine
from renderonline.database.connection_strings import Place
from renderonline.database.door import Database
from renderonline.farm.errors import Conflict

_KEEP_S: Final = 2_000_000
"""How long MySQL keeps the silent connection that holds the lock: the most that Windows allows, 23 days."""


class Lease(ABC):
    """The right to write to a database, held until `release` or the end of the process."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @staticmethod
    def acquire(database: Database, holder: str = "renderonline") -> "Lease":
        """Take the lease at once or raise `Conflict` that says who has it. Blocks; `holder` names the program."""
        return _FileLease(database.place, holder) if database.dialect == "sqlite" else _MySqlLease(database.place)

    def verify(self) -> None:
        """Make sure that the lease is still ours, taking it again if only its connection was lost. Raises `Conflict`
        when somebody else has it: then this program must stop writing. Blocks; to be called every few seconds."""
        if not self._still_held():
            raise Conflict(f"Another RenderAPI has taken over the database {self._place.label}. This one must stop.")

    @abstractmethod
    def _still_held(self) -> bool: ...

    @abstractmethod
    def release(self) -> None:
        """Give the lease back."""

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()


class _FileLease(Lease):
    def __init__(self, place: Place, holder: str) -> None:
        super().__init__(place)
        path = Path(f"{place.database}.lock")
        self._file = open(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+", encoding="utf-8")  # noqa: SIM115
        if not _lock(self._file):
            who = self._file.read(200).strip() or "another program"
            self._file.close()
            raise Conflict(f"The database {place.label} is in use by {who}. Stop it first, or use another directory.")
        self._file.truncate(0)
        self._file.write(f"{holder} (process {os.getpid()} on {socket.gethostname()})\n")
        self._file.flush()

    def _still_held(self) -> bool:
        return not self._file.closed

    def release(self) -> None:
        if not self._file.closed:
            self._file.seek(0)
            self._file.truncate(0)
            self._file.close()


def _lock(file: IO[str]) -> bool:
    """Lock the file for as long as it is open; False when another program has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class _MySqlLease(Lease):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._engine = patient_engine(place)
        self._name = {"name": "renderonline." + hashlib.sha256(place.database.encode()).hexdigest()[:40]}
        self._connection: Connection | None = None
        self._released = False
        with explained(place):
            taken = self._connect()
        if not taken:
            who = self._who()
            self.release()
            raise Conflict(
                f"The database {place.label} is in use by another RenderAPI{who}. Stop it first, or name another one."
            )

    def _connect(self) -> bool:
        self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._connection.execute(text(f"SET SESSION wait_timeout={_KEEP_S}"))
        return self._take(self._connection)

    def _take(self, connection: Connection) -> bool:
        return bool(connection.scalar(text("SELECT GET_LOCK(:name, 0)"), self._name) == 1)

    def _who(self) -> str:
        query = text("SELECT host, id FROM information_schema.processlist WHERE id = IS_USED_LOCK(:name)")
        with suppress(DBAPIError):
            row = self._connection.execute(query, self._name).first() if self._connection else None
            return f" (connection {row[1]} from {row[0]})" if row else ""
        return ""

    def _still_held(self) -> bool:
        try:
            if self._connection is not None:
                return self._take(self._connection)
        except DBAPIError:
            self._drop()
        with explained(self._place):
            return not self._released and self._connect()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def release(self) -> None:
        self._released = True
        with suppress(DBAPIError):  # closing alone releases it too, but a moment later
            if self._connection is not None:
                self._connection.execute(text("SELECT RELEASE_ALL_LOCKS()"))
        self._drop()
        self._engine.dispose()
