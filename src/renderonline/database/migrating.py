"""Migrating: an empty database gets the schema, one of the existing system is adopted with its rows.

Can be run any number of times, and again after it was killed half-way. It holds the lease while it runs, so it refuses
while a RenderAPI uses the database.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select

from renderonline.database import adopting, ids
from renderonline.database.connecting import explained, patient_engine
from renderonline.database.door import Database
from renderonline.database.lease import Lease
from renderonline.database.migrations.versions import r0001_foundation
from renderonline.database.rows import update
from renderonline.database.schema import farm, metadata, users
from renderonline.farm.accounts import TOKEN_PREFIX, hash_token
from renderonline.farm.errors import Conflict

_DIRECTORY: Final = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class Report:
    """What a migration did. `before` and `after` are revisions; `before` is "" for a database without ours. `origin`:
    `created` by us, or `adopted` from the existing system; `adopted_tasks`: how many got their chunk in this run."""

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
        database.write_now(ids.make_counters)
        adopted = adopt(database)
        origin = database.read_now(_origin)
        return Report(before=before, after=database.read_now(_revision), origin=origin, adopted_tasks=adopted)


def adopt(database: Database) -> int:
    """Give each task without chunks its one chunk (R7.6 Adopted tasks); gives how many there were. Blocks."""
    adopted, after = 0, 0
    while batch := database.write_now(partial(adopting.adopt_tasks, after=after)):
        adopted, after = adopted + len(batch), batch[-1]
    database.write_now(adopting.tidy_queue)
    return adopted


def is_current(database: Database) -> bool:
    """Whether the schema is the one that this program needs. Blocks."""
    return database.read_now(_revision) == _scripts().get_current_head()


def _revision(connection: Connection) -> str:
    return MigrationContext.configure(connection).get_current_revision() or ""


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
    config = Config()
    config.set_main_option("script_location", str(_DIRECTORY).replace("%", "%%"))
    try:
        with explained(database.place), engine.connect() as connection:
            before = _revision(connection)
            connection.rollback()
            config.attributes["connection"] = connection
            if before != _scripts().get_current_head():  # every revision can be run again
                command.stamp(config, "base", purge=True)
            command.upgrade(config, "head")
            connection.commit()
            return before
    finally:
        engine.dispose()


def _refuse_foreign(connection: Connection) -> None:
    """Before anything is changed: a newer version's schema, and tables of somebody else."""
    current = _revision(connection)
    if not current:
        for table in metadata.tables.values():
            r0001_foundation.check(connection, table)
    elif current > (_scripts().get_current_head() or ""):
        raise Conflict(
            f"The database has the schema {current}, which this version of RenderOnline does not know. "
            "Install the version that made it, or a newer one."
        )


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(_DIRECTORY))


def _origin(connection: Connection) -> str:
    return connection.scalar(select(farm.c.value).where(farm.c.key == "origin")) or "created"
