"""`db check`: recompute what must follow from the chunks (R2 Task status), and look for what must never be.

Every finding is an error, save the warnings: raw tokens (R12 Tokens), no administrator, limits that are exceeded.

`db backup`: a copy of the whole database as it was at one moment, taken while the farm works.

SQLite: a database file, by SQLite's own online backup. MySQL: a file of SQL statements for `mysql < FILE` into an empty
database, streamed row by row. The file appears under its name only when it is complete, and only its owner reads it:
it holds the accounts.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Connection, Select, case, func, select

from renderonline.database import door
from renderonline.database.administration_rows import has_admin
from renderonline.database.connecting import DatabasePlace, explained, patient_engine
from renderonline.database.door import Database
from renderonline.database.schema import (
    AnyRow,
    attempts,
    chunks,
    deliveries,
    engines,
    farm,
    machines,
    queue,
    renders,
    results,
    subscriptions,
    tasks,
    users,
    waits_for,
)
from renderonline.database.task_rows import ENDED
from renderonline.farm.accounts import TOKEN_PREFIX
from renderonline.farm.errors import Conflict, NoSpace, NotAvailable, NotFound
from renderonline.farm.tasks import LIVE, AttemptState, ChunkState, Counters, TaskStatus, task_status

MAX_FINDINGS: Final = 1000

_LIVE_ATTEMPT: Final = attempts.c.state.in_((AttemptState.ASSIGNED, AttemptState.RUNNING))


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not fit: in which table, of which row, and what. A warning breaks nothing."""

    table: str
    key: str
    message: str
    is_warning: bool = False


def check(connection: Connection) -> tuple[Finding, ...]:
    """Everything that does not fit, at most `MAX_FINDINGS`, all seen at one moment. Changes nothing."""
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
        .where(_LIVE_ATTEMPT)
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
    _orphans(attempts.c.attempt_id, machines.c.machine_id, _LIVE_ATTEMPT, says="lives on"),
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
"""Table, what must give no row of it, and what to say of one; the first column is the key."""


def _counters_of_ids(connection: Connection) -> Iterator[Finding]:
    stored = {row.key: row.value for row in connection.execute(select(farm))}
    own_attempts = select(func.max(attempts.c.attempt_id)).where(attempts.c.attempt_id >= door.FIRST_ATTEMPT)
    for key, query in ((door.CHUNKS, select(func.max(chunks.c.chunk_id))), (door.ATTEMPTS, own_attempts)):
        highest = connection.scalar(query) or 0
        if int(stored.get(key, 0)) <= highest:
            yield Finding("farm", key, f"It is {stored.get(key, 'missing')}, but id {highest} is in use.")


def _accounts(connection: Connection) -> Iterator[Finding]:
    is_raw = users.c.token.not_like(TOKEN_PREFIX + "%")
    if raw := connection.scalar(select(func.count()).select_from(users).where(is_raw)):
        message = f"{raw} tokens are stored raw. `renderonline db migrate --upgrade-tokens` ends that."
        yield Finding("users", str(raw), message, is_warning=True)
    if not has_admin(connection):
        yield Finding("users", "role", "Nobody is an active administrator.", is_warning=True)
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
