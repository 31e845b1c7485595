"""Connections: how each database is opened, and what its errors mean for us.

SQLite: WAL with `synchronous=FULL`, writers take the lock at once (`BEGIN IMMEDIATE`), readers see one moment.
MySQL: strict mode, UTC, writers READ COMMITTED (R3.3), readers REPEATABLE READ so that they see one moment as well.
"""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from renderonline.database.connection_strings import Place
from renderonline.farm.errors import InvalidRequest, NoSpace, NotAvailable, RenderOnlineError

_STRICT: Final = "STRICT_TRANS_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
_LOCK_WAIT_S: Final = 10
_SOCKET_S: Final = 60
"""A server that says nothing for so long is gone; no statement of the farm takes a fraction of it."""

_TRANSIENT_MYSQL: Final = frozenset(
    {
        1020,  # record has changed since last read
        1040,  # too many connections
        1053,  # server shutdown in progress
        1205,  # lock wait timeout
        1213,  # deadlock
        1290,  # read only, as during a failover
        1927,  # connection was killed
        2002,  # can't connect through the socket
        2003,  # can't connect to the host
        2006,  # server has gone away
        2013,  # lost connection during query
        2055,  # lost connection
    }
)
_FULL_MYSQL: Final = frozenset({1021, 1114, 28})
_SQLITE_BUSY, _SQLITE_LOCKED, _SQLITE_FULL = 5, 6, 13


def writer_engine(place: Place) -> Engine:
    """The engine of the one writer."""
    return _engine(place, begin="BEGIN IMMEDIATE", isolation="READ COMMITTED", size=1, socket_s=_SOCKET_S)


def reader_engine(place: Place, readers: int) -> Engine:
    """The engine of the readers; on SQLite it can't write."""
    engine = _engine(place, begin="BEGIN", isolation="REPEATABLE READ", size=readers, socket_s=_SOCKET_S)
    if place.dialect == "sqlite":
        event.listen(engine, "connect", _forbid_writes)
    return engine


def patient_engine(place: Place) -> Engine:
    """An engine for work that may be silent for long: migrations and backups."""
    return _engine(place, begin="BEGIN IMMEDIATE", isolation="REPEATABLE READ", size=1, socket_s=None)


def _engine(place: Place, *, begin: str, isolation: str, size: int, socket_s: int | None) -> Engine:
    if place.dialect == "sqlite":
        engine = create_engine(
            place.url,
            connect_args={"check_same_thread": False, "isolation_level": None, "timeout": _LOCK_WAIT_S},
            pool_size=size,
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _beginner(begin))
        return engine
    return create_engine(
        place.url,
        connect_args=place.connect_arguments
        | {
            "connect_timeout": 10,
            "read_timeout": socket_s,
            "write_timeout": socket_s,
            "init_command": f"SET SESSION sql_mode='{_STRICT}', time_zone='+00:00', "
            f"innodb_lock_wait_timeout={_LOCK_WAIT_S}",
        },
        isolation_level=isolation,
        pool_size=size,
        pool_recycle=3600,
    )


def make_file(place: Place) -> None:
    """Create the SQLite file, readable by its owner only: it holds the accounts. Does nothing when it exists."""
    path = Path(place.database)
    if not path.parent.is_dir():
        raise InvalidRequest(f"The directory {path.parent} of the database does not exist. Create it first.")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise NotAvailable(f"The database {path} can't be created: {error.strerror}.") from error


def is_transient(error: BaseException) -> bool:
    """Whether running the same transaction again may help: deadlock, lock timeout, lost connection."""
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_code(error.orig) in {_SQLITE_BUSY, _SQLITE_LOCKED}
    return error.connection_invalidated or _mysql_code(error) in _TRANSIENT_MYSQL


def is_disconnect(error: BaseException) -> bool:
    """Whether the connection that raised this must not be used again."""
    return isinstance(error, DBAPIError) and (error.connection_invalidated or _mysql_code(error) >= 2000)


def in_words(error: BaseException, place: Place) -> BaseException:
    """An error of the database as one that a person understands; what is not known comes back as it is."""
    if not isinstance(error, DBAPIError) or isinstance(error, RenderOnlineError):
        return error
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_in_words(error, error.orig, place)
    code = _mysql_code(error)
    if code in _FULL_MYSQL:
        return NoSpace(f"The disk of the database {place.label} is full. Make room there; nothing was changed.")
    if code in {1044, 1045, 1698}:
        return NotAvailable(
            f"The database {place.label} refuses the user {place.user or '(none)'}. Check user and password in the "
            "connection string."
        )
    if code == 1049:
        return NotAvailable(
            f"There is no database {place.database}. Create it first: CREATE DATABASE {place.database};"
        )
    if code in {1142, 1227}:
        return NotAvailable(
            f"The user {place.user or '(none)'} may not do this in the database {place.label}. "
            "Give it all privileges there."
        )
    if code in {1054, 1146}:
        return _not_migrated(place)
    if is_transient(error):
        return NotAvailable(f"The database {place.label} does not answer. Check that it runs and can be reached.")
    return error


def _sqlite_in_words(error: DBAPIError, original: sqlite3.Error, place: Place) -> BaseException:
    code = _sqlite_code(original)
    if code == _SQLITE_FULL:
        return NoSpace(f"The disk of the database {place.label} is full. Make room there; nothing was changed.")
    if code in {_SQLITE_BUSY, _SQLITE_LOCKED}:
        return NotAvailable(f"The database {place.label} is locked by another program. Stop it, or try again.")
    if code == 26:
        return NotAvailable(f"{place.label} is not a SQLite database. Name another file, or restore a backup.")
    if str(original).startswith(("no such table", "no such column")):
        return _not_migrated(place)
    if code in {8, 14}:
        return NotAvailable(f"The database {place.label} can't be opened for writing. Check who may write there.")
    return error


def _not_migrated(place: Place) -> NotAvailable:
    return NotAvailable(f"The database {place.label} lacks tables of this version. Run `renderonline db migrate`.")


def _sqlite_code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _mysql_code(error: DBAPIError) -> int:
    arguments = error.orig.args if error.orig is not None else ()
    return arguments[0] if arguments and isinstance(arguments[0], int) else 0


def _beginner(statement: str) -> Callable[[Connection], None]:
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    return begin


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.create_function("casefold", 1, _casefold, deterministic=True)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}").close()


def _forbid_writes(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA query_only=ON").close()


def _casefold(text: object) -> str:
    return str(text).casefold()
