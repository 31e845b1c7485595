"""Migrating: an empty database gets the schema, one of the existing system is adopted with its rows.

Can be run any number of times, and again after it was killed half-way. It holds the lease while it runs, so it refuses
while a RenderAPI uses the database.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select

from renderonline.database import adopting, ids
from renderonline.database.connecting import in_words
from renderonline.database.door import Database
from renderonline.database.lease import Lease
from renderonline.database.schema import farm, users
from renderonline.farm.accounts import TOKEN_PREFIX, hash_token
from renderonline.farm.errors import Conflict

_BATCH = 500


@dataclass(frozen=True, slots=True)
class Report:
    """What a migration did. `before` and `after` are revisions; `before` is "" for a database without ours."""

    before: str
    after: str
    origin: str
    """`created` by us, or `adopted` from the existing system."""
    adopted_tasks: int
    """Tasks that got their chunk in this run."""


def migrate(database: Database, *, lease: Lease | None = None) -> Report:
    """Bring the schema up to date and adopt what has no chunks yet. Blocks, perhaps for minutes.

    `lease`: the one the caller holds already; without it, it is taken for as long as this takes (`Conflict` when a
    RenderAPI has it). Raises `Conflict` for a database of a newer version, `InvalidRequest` for foreign tables.
    """
    with nullcontext(lease) if lease is not None else Lease.acquire(database, "renderonline db migrate"):
        before = _upgrade(database)
        database.write_now(ids.make_counters)
        adopted = adopt(database)
        origin = database.read_now(_origin)
        return Report(before=before, after=revision(database), origin=origin, adopted_tasks=adopted)


def adopt(database: Database) -> int:
    """Give each task without chunks its one chunk (R7.6); gives how many there were. Blocks."""
    adopted, after = 0, 0
    while True:
        batch = database.write_now(partial(adopting.adopt_tasks, after=after))
        if batch.last_task_id is None:
            database.write_now(adopting.tidy_queue)
            return adopted
        adopted, after = adopted + batch.tasks, batch.last_task_id


def is_current(database: Database) -> bool:
    """Whether the schema is the one that this program needs. Blocks."""
    return revision(database) == _scripts().get_current_head()


def revision(database: Database) -> str:
    """The revision of the schema; "" for a database without our schema. Blocks."""
    return database.read_now(lambda connection: MigrationContext.configure(connection).get_current_revision()) or ""


def is_empty(database: Database) -> bool:
    """Whether the database has no table of RenderOnline's, neither ours nor the existing system's. Blocks."""
    return database.read_now(adopting.is_empty)


def upgrade_tokens(database: Database) -> int:
    """Replace every raw token by its hash, from now on also those added by hand at their first use (R12); gives how
    many. The existing RenderAPI can't log anybody in afterwards: this ends the way back. Blocks."""
    changed, after = 0, 0
    while True:
        count, last = database.write_now(partial(_hash_tokens, after=after))
        if last is None:
            return changed
        changed, after = changed + count, last


def _hash_tokens(connection: Connection, after: int) -> tuple[int, int | None]:
    if not connection.scalar(select(farm.c.value).where(farm.c.key == "tokens")):
        connection.execute(farm.insert().values(key="tokens", value="hashed"))
    rows = connection.execute(
        select(users.c.user_id, users.c.token)
        .where(users.c.user_id > after)
        .order_by(users.c.user_id)
        .limit(_BATCH)
        .with_for_update()
    ).all()
    raw = [row for row in rows if row.token and not row.token.startswith(TOKEN_PREFIX)]
    for row in raw:
        connection.execute(users.update().where(users.c.user_id == row.user_id).values(token=hash_token(row.token)))
    return len(raw), rows[-1].user_id if rows else None


def _upgrade(database: Database) -> str:
    engine = database.patient_engine()
    config = Config()
    config.set_main_option("script_location", str(_directory()).replace("%", "%%"))
    try:
        with engine.connect() as connection:
            before = MigrationContext.configure(connection).get_current_revision() or ""
            _refuse_unknown(before)
            connection.rollback()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
        return before
    except Exception as error:
        words = in_words(error, database.place)
        if words is error:
            raise
        raise words from error
    finally:
        engine.dispose()


def _refuse_unknown(current: str) -> None:
    if current and current not in {script.revision for script in _scripts().walk_revisions()}:
        raise Conflict(
            f"The database has the schema {current}, which this version of RenderOnline does not know. "
            "Install the version that made it, or a newer one."
        )


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(_directory()))


def _directory() -> Path:
    return Path(__file__).parent / "migrations"


def _origin(connection: Connection) -> str:
    return connection.scalar(select(farm.c.value).where(farm.c.key == "origin")) or "created"
