"""`db backup`: a copy of the whole database as it was at one moment, taken while the farm works.

SQLite: a database file, by SQLite's own online backup. MySQL: a file of SQL statements for `mysql < FILE` into an empty
database, streamed row by row. The file appears under its name only when it is complete, and only its owner reads it:
it holds the accounts.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection

from renderonline.database.connecting import Place, explained, patient_engine
from renderonline.database.door import Database
from renderonline.farm.errors import Conflict, NoSpace, NotAvailable, NotFound

_ROWS_A_STATEMENT: Final = 50
COMPLETE: Final = "-- complete"
"""The last line of a complete SQL backup."""


def backup(database: Database, target: Path) -> Path:
    """Copy the database into a new file; gives its path. Blocks. `Conflict` when the file exists, `NotFound` when its
    directory does not, `NoSpace` when it does not fit."""
    if target.exists():
        raise Conflict(f"{target} exists already. Name another file.")
    if not target.parent.is_dir():
        raise NotFound(f"The directory {target.parent} does not exist. Create it first.")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with explained(database.place):
            copy = _copy_sqlite if database.dialect == "sqlite" else _dump_mysql
            copy(database.place, partial)
        _sync(partial)
        os.link(partial, target)  # unlike a rename, it never replaces a file that has appeared meanwhile
    except FileExistsError as error:
        raise Conflict(f"{target} exists already. Name another file.") from error
    except OSError as error:
        raise NoSpace(f"The backup {target} can't be written: {error.strerror}.") from error
    except sqlite3.Error as error:
        raise NotAvailable(f"The backup {target} failed: {error}. Check the disk, then try again.") from error
    finally:
        partial.unlink(missing_ok=True)
    _sync(target.parent)
    return target


def _copy_sqlite(place: Place, target: Path) -> None:
    source = f"{Path(place.database).absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(source, uri=True)) as reading, closing(sqlite3.connect(target)) as writing:
        # In one step it sees one moment; writers go on beside it (WAL).
        reading.backup(writing, pages=-1)
        writing.execute("PRAGMA journal_mode=DELETE")  # the copy is one file


def _dump_mysql(place: Place, target: Path) -> None:
    engine = patient_engine(place)
    quoted = engine.dialect.identifier_preparer.quote_identifier
    try:
        with engine.connect() as connection, target.open("w", encoding="utf-8", newline="\n") as file:
            connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            file.write("-- RenderOnline backup\nSET NAMES utf8mb4;\nSET time_zone='+00:00';\n")
            file.write("SET sql_mode='NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION';\n")
            names = connection.exec_driver_sql("SHOW FULL TABLES WHERE Table_type='BASE TABLE'").scalars().all()
            for name in map(quoted, names):
                _, create = connection.exec_driver_sql(f"SHOW CREATE TABLE {name}").one()
                file.write(f"\n{create};\n")
                file.writelines(_inserts(connection, name))
            file.write(f"\n{COMPLETE}\n")
    finally:
        engine.dispose()


def _inserts(connection: Connection, table: str) -> Iterator[str]:
    """INSERT statements of many rows each; the rows are streamed, never all in memory."""
    driver: Any = connection.connection.driver_connection
    options = {"stream_results": True, "yield_per": _ROWS_A_STATEMENT}
    rows = connection.exec_driver_sql(f"SELECT * FROM {table}", execution_options=options)  # noqa: S608
    for part in rows.partitions():
        values = ",\n".join(driver.escape(tuple(row), driver.encoders) for row in part)
        yield f"INSERT INTO {table} VALUES\n{values};\n"


def _sync(path: Path) -> None:
    """What was written survives a power cut."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no directories
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
