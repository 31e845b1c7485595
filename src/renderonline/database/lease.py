"""The lease: one RenderAPI for each database.

SQLite: a lock on the file `<database>.lock`. MySQL: `GET_LOCK` on a connection of its own. Both end with the process
that holds them, however it ends.
"""

import hashlib
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Protocol

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from renderonline.database.connecting import in_words
from renderonline.database.connection_strings import Place
from renderonline.database.door import Database
from renderonline.farm.errors import Conflict

_KEEP_S: Final = 2_000_000
"""How long MySQL keeps the silent connection that holds the lock: the most that Windows allows, 23 days."""


class _Hold(Protocol):
    def still_held(self) -> bool: ...

    def release(self) -> None: ...


class Lease:
    """The right to write to a database, held until `release` or the end of the process."""

    def __init__(self, hold: _Hold, place: Place) -> None:
        self._hold = hold
        self._place = place

    @classmethod
    def acquire(cls, database: Database, holder: str = "renderonline") -> "Lease":
        """Take the lease at once or raise `Conflict` that says who has it. Blocks; `holder` names the program."""
        place = database.place
        hold = _FileHold(place, holder) if place.dialect == "sqlite" else _MySqlHold(place, database.patient_engine())
        return cls(hold, place)

    def verify(self) -> None:
        """Make sure that the lease is still ours, taking it again if only its connection was lost. Raises `Conflict`
        when somebody else has it: then this program must stop writing. Blocks; to be called every few seconds."""
        if not self._hold.still_held():
            raise Conflict(f"Another RenderAPI has taken over the database {self._place.label}. This one must stop.")

    def release(self) -> None:
        """Give the lease back."""
        self._hold.release()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.release()


class _FileHold:
    def __init__(self, place: Place, holder: str) -> None:
        path = Path(f"{place.database}.lock")
        self._file = open(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+", encoding="utf-8")  # noqa: SIM115
        if not _lock(self._file):
            who = self._file.read(200).strip() or "another program"
            self._file.close()
            raise Conflict(f"The database {place.label} is in use by {who}. Stop it first, or use another directory.")
        self._file.truncate(0)
        self._file.write(f"{holder} (process {os.getpid()} on {socket.gethostname()})\n")
        self._file.flush()

    def still_held(self) -> bool:
        return not self._file.closed

    def release(self) -> None:
        if not self._file.closed:
            self._file.seek(0)
            self._file.truncate(0)
            self._file.close()


def _lock(file: IO[str]) -> bool:
    """Lock the file for as long as it is open; False when another program has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class _MySqlHold:
    def __init__(self, place: Place, engine: Engine) -> None:
        self._place = place
        self._engine = engine
        self._name = "renderonline." + hashlib.sha256(place.database.encode()).hexdigest()[:40]
        self._connection: Connection | None = None
        try:
            taken = self._take()
        except DBAPIError as error:
            self.release()
            raise in_words(error, place) from error
        if not taken:
            who = self._who()
            self.release()
            raise Conflict(
                f"The database {place.label} is in use by another RenderAPI{who}. Stop it first, or name another one."
            )

    def _take(self) -> bool:
        self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._connection.execute(text(f"SET SESSION wait_timeout={_KEEP_S}"))
        return bool(self._connection.scalar(text("SELECT GET_LOCK(:name, 0)"), {"name": self._name}) == 1)

    def _who(self) -> str:
        assert self._connection is not None
        try:
            row = self._connection.execute(
                text("SELECT host, id FROM information_schema.processlist WHERE id = IS_USED_LOCK(:name)"),
                {"name": self._name},
            ).first()
        except DBAPIError:
            return ""
        return f" (connection {row[1]} from {row[0]})" if row else ""

    def still_held(self) -> bool:
        if self._connection is None:
            return False
        try:
            return bool(self._connection.scalar(text("SELECT GET_LOCK(:name, 0)"), {"name": self._name}) == 1)
        except DBAPIError:
            self._drop()
        try:
            return self._take()
        except DBAPIError as error:
            self._connection = None
            raise in_words(error, self._place) from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def release(self) -> None:
        if self._connection is not None:
            self._drop()
        self._engine.dispose()
