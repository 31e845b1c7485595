"""The commands `renderonline db`: `migrate`, `check` and `backup`.

`migrate` makes the schema in an empty database, and adopts one of the existing system with its rows. Each step looks
whether it is done, because MySQL commits every DDL statement by itself: a migration can be run any number of times, and
again after it was killed half-way. Databases of earlier versions take this way too: what is missing is added. A
migration holds the lease while it runs, so it refuses while a RenderAPI uses the database.

`check` recomputes what must follow from the chunks (R2 Task status), and looks for what must never be. Every finding is
an error, except the warnings: raw tokens (R12 Tokens), no administrator, exceeded limits.

`backup` copies the whole database as it was at one moment, while the farm works. SQLite: a database file, by SQLite's
own online backup. MySQL: SQL statements for `mysql < FILE` into an empty database, streamed row by row. The file gets
its name only when it is complete, and only its owner can read it: it holds the accounts.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Connection, Select, Table, case, func, inspect, select
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateColumn

from renderonline.database import door, existing
from renderonline.database.administration_rows import has_admin
from renderonline.database.connecting import DatabasePlace, explained, patient_engine
from renderonline.database.control_rows import KEPT_BYTES, count_kept_bytes
from renderonline.database.door import Database
from renderonline.database.schema import (
    LIVE_ATTEMPT,
    AnyRow,
    Id,
    attempts,
    chunks,
    deliveries,
    engines,
    farm,
    farm_value,
    leases,
    machines,
    metadata,
    queue,
    renders,
    results,
    set_farm_value,
    subscriptions,
    tasks,
    update,
    users,
    waits_for,
)
from renderonline.database.standby import Lease
from renderonline.database.task_rows import ENDED
from renderonline.farm.accounts import TOKEN_PREFIX, hash_token
from renderonline.farm.errors import Conflict, InvalidRequest, NoSpace, NotAvailable, NotFound
from renderonline.farm.tasks import LIVE, AttemptState, ChunkState, Counters, TaskStatus, task_status
from renderonline.sandbox.privacy import sync

REVISION: Final = "0014"
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
    with nullcontext(lease) if lease is not None else Lease.of(database, "renderonline db migrate").hold():
        before = _upgrade(database)
        database.write_now(door.make_counters)
        adopted = adopt(database)
        after = 0
        while filled := database.write_now(partial(existing.fill_searched, after=after)):
            after = filled[-1]
        database.write_now(count_kept_bytes)
        origin = database.read_now(partial(farm_value, key="origin")) or "created"
        return Report(before=before, after=database.read_now(_revision), origin=origin, adopted_tasks=adopted)


def adopt(database: Database) -> int:
    """Give each task without chunks its one chunk (R7.6 Adopted tasks); returns how many there were. Blocks."""
    adopted, after = 0, 0
    while batch := database.write_now(partial(existing.adopt_tasks, after=after)):
        adopted, after = adopted + len(batch), batch[-1]
    database.write_now(existing.tidy_queue)
    return adopted


def is_current(database: Database) -> bool:
    """Whether the schema is the one that this program needs. Blocks."""
    return database.read_now(_revision) == REVISION


def _revision(connection: Connection) -> str:
    return (farm_value(connection, "schema") or "") if inspect(connection).has_table(farm.name) else ""


def upgrade_tokens(database: Database) -> int:
    """Replace every raw token by its hash, and from now on those added by hand at their first use (R12 Tokens); returns
    how many were replaced. The existing RenderAPI accepts no login afterwards, so there is no way back to it. Takes the
    lease. Blocks."""
    with Lease.of(database, "renderonline db migrate").hold():
        return database.write_now(_hash_tokens)


def _hash_tokens(connection: Connection) -> int:
    set_farm_value(connection, "tokens", "hashed")
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
                set_farm_value(connection, "schema", REVISION)
                connection.commit()
            return before
    finally:
        engine.dispose()


def _complete_schema(connection: Connection) -> None:
    """Every table as `schema` has it, in an empty database or around the rows of the existing system."""
    present = {name for name in metadata.tables if inspect(connection).has_table(name)}
    _note_origin(connection, adopted=not present <= {farm.name, leases.name})  # those two are made before all others
    for table in metadata.tables.values():
        if table.name in present:
            _complete_table(connection, table)
        table.create(connection, checkfirst=True)
        for index in table.indexes:
            index.create(connection, checkfirst=True)


def _note_origin(connection: Connection, *, adopted: bool) -> None:
    """Stored before anything else is changed, so that it stays right when a migration is run again."""
    farm.create(connection, checkfirst=True)
    if farm_value(connection, "origin") is None:
        set_farm_value(connection, "origin", "adopted" if adopted else "created")
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
    """Refuse a newer version's schema and foreign tables, before anything is changed."""
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
    """A table of this name is foreign when it lacks columns that can't be added."""
    if not inspect(connection).has_table(table.name):
        return
    needed = {column.name for column in table.columns if not column.nullable and column.server_default is None}
    if missing := sorted(needed - {column["name"] for column in inspect(connection).get_columns(table.name)}):
        raise InvalidRequest(
            f"The table {table.name} is there but has no column {', '.join(missing)}: this is not RenderOnline's "
            "schema. Name another database, or bring the table into its original form."
        )


MAX_FINDINGS: Final = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """An inconsistency: its table, the key of its row, and a message. A warning breaks nothing."""

    table: str
    key: str
    message: str
    is_warning: bool = False


def check(connection: Connection) -> tuple[Finding, ...]:
    """All findings at one moment, at most `MAX_FINDINGS`. Changes nothing."""
    return tuple(islice(_all(connection), MAX_FINDINGS))


def _all(connection: Connection) -> Iterator[Finding]:
    yield from _tasks(connection)
    yield from _leases(connection)
    for table, query, message in _NEVER:
        for row in connection.execute(query.limit(MAX_FINDINGS)):
            yield Finding(table, str(row[0]), message.format(*row))
    yield from _counters_of_ids(connection)
    yield from _accounts(connection)


def _tasks(connection: Connection) -> Iterator[Finding]:
    counts = [func.sum(case((chunks.c.state == state, 1), else_=0)).label(f"real_{state}") for state in ChunkState]
    length = (chunks.c.last_frame - chunks.c.first_frame) // chunks.c.frame_step + 1
    sums = select(chunks.c.task_id, func.sum(length).label("cut"), *counts).group_by(chunks.c.task_id).subquery()
    landed = select(results.c.task_id, func.count(results.c.frame).label("frames")).where(results.c.state == "landed")
    made = landed.group_by(results.c.task_id).subquery()
    queued = select(queue.c.task_id, func.count().label("rows")).group_by(queue.c.task_id).subquery()
    query = (
        select(tasks, *(func.coalesce(sums.c[one.name], 0).label(one.name) for one in counts))
        .add_columns(sums.c.cut, func.coalesce(made.c.frames, 0).label("made"))
        .add_columns(func.coalesce(queued.c.rows, 0).label("queue_rows"), renders.c.render_id.label("known_render"))
        .add_columns(engines.c.engine_id.label("known_engine"), users.c.user_id.label("known_user"))
        .outerjoin(sums, sums.c.task_id == tasks.c.task_id)
        .outerjoin(made, made.c.task_id == tasks.c.task_id)
        .outerjoin(queued, queued.c.task_id == tasks.c.task_id)
        .outerjoin(renders, renders.c.render_id == tasks.c.render_id)
        .outerjoin(engines, engines.c.engine_id == renders.c.engine_id)
        .outerjoin(users, users.c.user_id == tasks.c.user_id)
        .order_by(tasks.c.task_id)
    )
    for row in connection.execute(query):
        for message in _contradictions(row):
            yield Finding("tasks", str(row.task_id), message)


def _contradictions(row: AnyRow) -> Iterator[str]:
    counted = {state.value: int(getattr(row, f"real_{state}")) for state in ChunkState}
    stored = {state.value: int(getattr(row, f"chunks_{state}")) for state in ChunkState}
    if not any(counted.values()):
        yield "It has no chunks. `renderonline db migrate` adopts tasks that were inserted by hand."
        return
    if counted != stored:
        yield f"Its counters say {_words(stored)}, its chunks are {_words(counted)}."
    status = task_status(Counters(**counted), canceled=bool(row.canceled), paused=bool(row.paused))
    yield from _projection(row, status)
    if not 0 <= row.frames_done <= row.frames_total:
        yield f"{row.frames_done} of {row.frames_total} frames are said to be done."
    elif status is TaskStatus.SUCCEEDED and row.frames_done != row.frames_total:
        yield f"It succeeded with {row.frames_done} of {row.frames_total} frames."
    if row.made not in (0, row.frames_done):
        yield f"{row.frames_done} frames are said to be done, {row.made} have landed."
    if row.frames and row.cut != row.frames_total:
        yield f"Its chunks hold {row.cut} of {row.frames_total} frames."
    for name in ("render", "engine", "user"):
        if getattr(row, f"known_{name}") is None and status not in ENDED:
            yield f"Its {name} does not exist."


def _projection(row: AnyRow, status: TaskStatus) -> Iterator[str]:
    """v1's columns and the queue row (R2 Task status)."""
    for name, wanted in (("is_running", TaskStatus.RUNNING), ("is_success", TaskStatus.SUCCEEDED)):
        if bool(getattr(row, name)) is not (status is wanted):
            yield f"{name} is {getattr(row, name)}, but it is {status}."
    if (row.end_us is not None) is not (status in ENDED) or (row.end_us is None) is not (row.end_time is None):
        yield f"Its end is {row.end_us} and {row.end_time}, but it is {status}."
    if row.queue_rows != (0 if status in ENDED else 1):
        yield f"It has {row.queue_rows} queue rows, but it is {status}."


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"


def _leases(connection: Connection) -> Iterator[Finding]:
    """No chunk has two; a chunk has one exactly while it is assigned or running."""
    live = (
        select(attempts.c.chunk_id, func.count().label("leases"), func.max(attempts.c.state).label("attempt"))
        .where(LIVE_ATTEMPT)
        .group_by(attempts.c.chunk_id)
        .subquery()
    )
    query = (
        select(chunks.c.chunk_id, chunks.c.state, func.coalesce(live.c.leases, 0).label("leases"), live.c.attempt)
        .outerjoin(live, live.c.chunk_id == chunks.c.chunk_id)
        .where(chunks.c.state.in_(tuple(LIVE)) | live.c.leases.is_not(None))
    )
    for row in connection.execute(query):
        wanted = 1 if row.state in LIVE else 0
        if row.leases != wanted:
            yield Finding("chunks", str(row.chunk_id), f"It is {row.state} and has {row.leases} live attempts.")
        elif wanted and row.state != row.attempt:
            yield Finding("chunks", str(row.chunk_id), f"It is {row.state}, its attempt is {row.attempt}.")


_Never = tuple[str, Select[*tuple[Any, ...]], str]


def _orphans(key: Column[Any], target: Column[Any], *where: ColumnElement[bool], says: str = "belongs to") -> _Never:
    reference = key.table.c[target.name]
    lost = select(key, reference).outerjoin(target.table, target == reference).where(target.is_(None), *where)
    return key.table.name, lost, f"It {says} {target.table.name.removesuffix('s')} {{1}}, which does not exist."


_NEVER: Final[Sequence[_Never]] = (
    _orphans(queue.c.queue_id, tasks.c.task_id),
    _orphans(chunks.c.chunk_id, tasks.c.task_id),
    _orphans(attempts.c.attempt_id, tasks.c.task_id),
    _orphans(attempts.c.attempt_id, chunks.c.chunk_id),
    _orphans(results.c.result_id, tasks.c.task_id),
    _orphans(waits_for.c.task_id, tasks.c.task_id),
    _orphans(deliveries.c.delivery_id, tasks.c.task_id),
    _orphans(attempts.c.attempt_id, machines.c.machine_id, LIVE_ATTEMPT, says="lives on"),
    (
        "attempts",
        select(attempts.c.attempt_id).where(
            attempts.c.state == AttemptState.ENDED, attempts.c.outcome.is_(None) | attempts.c.ended_us.is_(None)
        ),
        "It has ended without an outcome or an end.",
    ),
    (
        "machines",
        select(machines.c.machine_id).where((machines.c.benched_us > 0) == (machines.c.bench_reason == "")),
        "It is benched without a reason, or has a reason and is not.",
    ),
    (
        "results",
        select(func.min(results.c.result_id), results.c.frame, results.c.task_id, func.count())
        .where(results.c.frame.is_not(None), results.c.state != "stale")
        .group_by(results.c.task_id, results.c.frame)
        .having(func.count() > 1),
        "Frame {1} of task {2} has {3} files.",
    ),
    (
        "results",
        select(results.c.result_id, results.c.name).where(
            results.c.state.not_in(("landing", "landed", "stale"))
            | (results.c.state == "landed") & results.c.landed_us.is_(None)
        ),
        "{1} is in no known state, or landed without a time.",
    ),
)
"""A table, a query that must find no row, whose first column is the key, and the message about a row."""


def _counters_of_ids(connection: Connection) -> Iterator[Finding]:
    own_attempts = select(func.max(attempts.c.attempt_id)).where(attempts.c.attempt_id >= door.FIRST_ATTEMPT)
    for key, query in ((door.CHUNKS, select(func.max(chunks.c.chunk_id))), (door.ATTEMPTS, own_attempts)):
        highest = connection.scalar(query) or 0
        stored = farm_value(connection, key)
        if int(stored or 0) <= highest:
            yield Finding("farm", key, f"It is {stored or 'missing'}, but id {highest} is in use.")


def _accounts(connection: Connection) -> Iterator[Finding]:
    is_raw = users.c.token.not_like(TOKEN_PREFIX + "%")
    if raw := connection.scalar(select(func.count()).select_from(users).where(is_raw)):
        message = f"{raw} tokens are stored raw. `renderonline db migrate --upgrade-tokens` ends that."
        yield Finding("users", str(raw), message, is_warning=True)
    if not has_admin(connection):
        yield Finding("users", "role", "Nobody is an active administrator.", is_warning=True)
    for row in connection.execute(select(users.c.user_id, users.c.kept_bytes, KEPT_BYTES.label("real"))):
        if row.kept_bytes != row.real:
            message = f"{row.kept_bytes} bytes are counted, its tasks take {row.real}: run `renderonline db migrate`."
            yield Finding("users", str(row.user_id), message)
    query = (
        select(
            users.c.user_id, func.count().label("queued"), func.coalesce(subscriptions.c.queue_limit, 0).label("most")
        )
        .join(tasks, tasks.c.user_id == users.c.user_id)
        .join(queue, queue.c.task_id == tasks.c.task_id)
        .outerjoin(subscriptions, subscriptions.c.subscription_id == users.c.subscription_id)
        .group_by(users.c.user_id, subscriptions.c.queue_limit)
    )
    for row in connection.execute(query):
        if row.queued > row.most:
            message = f"{row.queued} tasks are in the queue; the limit is {row.most}."
            yield Finding("users", str(row.user_id), message, is_warning=True)


_ROWS_A_STATEMENT: Final = 50
COMPLETE: Final = "-- complete"
"""The last line of a complete SQL backup."""


def backup(database: Database, target: Path) -> Path:
    """Copy the database into a new file; returns its path. Blocks. `Conflict` when the file exists, `NotFound` when its
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
        sync(partial)
        os.link(partial, target)  # unlike a rename, it never replaces a file that has appeared meanwhile
    except FileExistsError as error:
        raise Conflict(f"{target} exists already. Name another file.") from error
    except OSError as error:
        raise NoSpace(f"The backup {target} can't be written: {error.strerror}.") from error
    except sqlite3.Error as error:
        raise NotAvailable(f"The backup {target} failed: {error}. Check the disk, then try again.") from error
    finally:
        partial.unlink(missing_ok=True)
    sync(target.parent)
    return target


def _copy_sqlite(place: DatabasePlace, target: Path) -> None:
    source = f"{Path(place.database).absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(source, uri=True)) as reading, closing(sqlite3.connect(target)) as writing:
        # In one step it sees one moment; writers go on beside it (WAL).
        reading.backup(writing, pages=-1)
        writing.execute("PRAGMA journal_mode=DELETE")  # the copy is one file


def _dump_mysql(place: DatabasePlace, target: Path) -> None:
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
                columns = connection.exec_driver_sql(f"SHOW COLUMNS FROM {name}").all()
                stored = ", ".join(
                    quoted(column.Field) for column in columns if "GENERATED" not in column.Extra.upper()
                )
                file.writelines(_inserts(connection, name, stored))
            file.write(f"\n{COMPLETE}\n")
    finally:
        engine.dispose()


def _inserts(connection: Connection, table: str, columns: str) -> Iterator[str]:
    """INSERT statements of many rows each; the rows are streamed, never all in memory."""
    driver: Any = connection.connection.driver_connection
    options = {"stream_results": True, "yield_per": _ROWS_A_STATEMENT}
    rows = connection.exec_driver_sql(f"SELECT {columns} FROM {table}", execution_options=options)  # noqa: S608
    for part in rows.partitions():
        values = ",\n".join(driver.escape(tuple(row), driver.encoders) for row in part)
        yield f"INSERT INTO {table} ({columns}) VALUES\n{values};\n"
