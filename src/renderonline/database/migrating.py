"""Migrating: an empty database gets the schema, one of the existing system is adopted with its rows.

Each step looks whether it is done, because MySQL commits every DDL statement by itself: a migration can be run any
number of times, and again after it was killed half-way. Databases of earlier versions take this way too: what is
missing is added. A migration holds the lease while it runs, so it refuses while a RenderAPI uses the database.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Connection, Table, inspect, select
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateColumn

from renderonline.database import door, existing
from renderonline.database.connecting import explained, patient_engine
from renderonline.database.door import Database
from renderonline.database.schema import Id, farm, leases, metadata, update, users
from renderonline.database.standby import Lease
from renderonline.farm.accounts import TOKEN_PREFIX, hash_token
from renderonline.farm.errors import Conflict, InvalidRequest

REVISION: Final = "0013"
"""The schema of this version, kept in the farm's row `schema`. Raise it with every change of `schema`."""
_NARROW: Final = (mysql.TINYINT, mysql.SMALLINT, mysql.MEDIUMINT)


@dataclass(frozen=True, slots=True)
class Report:
    """What a migration did. `before` and `after` are revisions; `before` is "" for a database that names none.
    `origin`: `created` by us, or `adopted` from the existing system; `adopted_tasks`: how many got their chunk in this
    run."""

    before: str
    after: str
    origin: str
    adopted_tasks: int


def migrate(database: Database, *, lease: Lease | None = None) -> Report:
    """Bring the schema up to date and adopt what has no chunks yet. Blocks, perhaps for minutes.

    `lease`: the one the caller holds already; without it, it is taken for as long as this takes (`Conflict` when a
    RenderAPI has it). Raises `Conflict` for a database of a newer version, `InvalidRequest` for foreign tables.
    """
    database.read_now(_refuse_foreign)
    with nullcontext(lease) if lease is not None else Lease.acquire(database, "renderonline db migrate"):
        before = _upgrade(database)
        database.write_now(door.make_counters)
        adopted = adopt(database)
        origin = database.read_now(lambda connection: _farm_value(connection, "origin")) or "created"
        return Report(before=before, after=database.read_now(_revision), origin=origin, adopted_tasks=adopted)


def adopt(database: Database) -> int:
    """Give each task without chunks its one chunk (R7.6 Adopted tasks); gives how many there were. Blocks."""
    adopted, after = 0, 0
    while batch := database.write_now(partial(existing.adopt_tasks, after=after)):
        adopted, after = adopted + len(batch), batch[-1]
    database.write_now(existing.tidy_queue)
    return adopted


def is_current(database: Database) -> bool:
    """Whether the schema is the one that this program needs. Blocks."""
    return database.read_now(_revision) == REVISION


def _revision(connection: Connection) -> str:
    return _farm_value(connection, "schema") if inspect(connection).has_table(farm.name) else ""


def upgrade_tokens(database: Database) -> int:
    """Replace every raw token by its hash, from now on also those added by hand at their first use (R12 Tokens); gives
    how many. The existing RenderAPI can't log anybody in afterwards: this ends the way back. Takes the lease.
    Blocks."""
    with Lease.acquire(database, "renderonline db migrate"):
        return database.write_now(_hash_tokens)


def _hash_tokens(connection: Connection) -> int:
    if not connection.scalar(select(farm.c.value).where(farm.c.key == "tokens")):
        connection.execute(farm.insert().values(key="tokens", value="hashed"))
    rows = connection.execute(select(users.c.user_id, users.c.token).with_for_update()).all()
    raw = [row for row in rows if row.token and not row.token.startswith(TOKEN_PREFIX)]
    for row in raw:
        update(connection, users, row.user_id, {"token": hash_token(row.token)})
    return len(raw)


def _upgrade(database: Database) -> str:
    engine = patient_engine(database.place)
    try:
        with explained(database.place), engine.connect() as connection:
            before = _revision(connection)
            if before != REVISION:
                _complete_schema(connection)
                connection.execute(farm.delete().where(farm.c.key == "schema"))
                connection.execute(farm.insert().values(key="schema", value=REVISION))
                connection.commit()
            return before
    finally:
        engine.dispose()


def _complete_schema(connection: Connection) -> None:
    """Every table as `schema` has it, in an empty database or around the rows of the existing system."""
    existing = {name for name in metadata.tables if inspect(connection).has_table(name)}
    _note_origin(connection, adopted=not existing <= {farm.name, leases.name})  # those two are made before all others
    for table in metadata.tables.values():
        if table.name in existing:
            _complete_table(connection, table)
        table.create(connection, checkfirst=True)
        for index in table.indexes:
            index.create(connection, checkfirst=True)


def _note_origin(connection: Connection, *, adopted: bool) -> None:
    """Before anything else is changed, so that it is known however often this is run again."""
    farm.create(connection, checkfirst=True)
    if not _farm_value(connection, "origin"):
        connection.execute(farm.insert().values(key="origin", value="adopted" if adopted else "created"))
    connection.commit()


def _complete_table(connection: Connection, table: Table) -> None:
    """Add the columns that are missing; widen the existing system's ids: 255 engines and machines are too few."""
    present = {column["name"]: column["type"] for column in inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in present:
            change = "ADD COLUMN"
        elif column.type is Id and isinstance(present[column.name], _NARROW):
            change = "MODIFY COLUMN"
        else:
            continue
        specification = CreateColumn(column).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {table.name} {change} {specification}")


def _refuse_foreign(connection: Connection) -> None:
    """Before anything is changed: a newer version's schema, and tables of somebody else."""
    current = _revision(connection)
    if not current:
        for table in metadata.tables.values():
            _refuse_foreign_table(connection, table)
    elif current > REVISION:
        raise Conflict(
            f"The database has the schema {current}, which this version of RenderOnline does not know. "
            "Install the version that made it, or a newer one."
        )


def _refuse_foreign_table(connection: Connection, table: Table) -> None:
    """A table of this name that lacks what can't be added is somebody else's."""
    if not inspect(connection).has_table(table.name):
        return
    needed = {column.name for column in table.columns if not column.nullable and column.server_default is None}
    if missing := sorted(needed - {column["name"] for column in inspect(connection).get_columns(table.name)}):
        raise InvalidRequest(
            f"The table {table.name} is there but has no column {', '.join(missing)}: this is not RenderOnline's "
            "schema. Name another database, or bring the table into its original form."
        )


def _farm_value(connection: Connection, key: str) -> str:
    return connection.scalar(select(farm.c.value).where(farm.c.key == key)) or ""
