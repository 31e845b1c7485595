"""The tables, and how their rows are read and changed.

v1's columns are those of the existing system (C3 Database schema); everything else is only added. v1 times are the
server's local time, for v1 readers only; columns `*_us` are microseconds since 1970 UTC (R1.2 Stored times). Booleans
are small integers, as in v1. Ids are never used twice (R1.1 Unique ids): AUTOINCREMENT on SQLite too.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from typing import Any, Final, TypeVar

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Column,
    Computed,
    Connection,
    DateTime,
    Executable,
    Index,
    Insert,
    Integer,
    MetaData,
    Row,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    Update,
    bindparam,
    select,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

from renderonline.farm.errors import NotFound
from renderonline.farm.frames import FrameRange
from renderonline.farm.tasks import AttemptState

Kind = TypeEngine[Any] | type[TypeEngine[Any]]

Big = BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb").with_variant(Integer, "sqlite")
Id = Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")
"""Engines, machines, users, subscriptions and small counts: wider than v1's, 255 are not enough."""
Flag = SmallInteger().with_variant(mysql.TINYINT(), "mysql", "mariadb")
Long = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def _key(kind: Kind, *names: str, counts: bool = False) -> list[Column[object]]:
    """The primary key; `counts`: each new row gets the next id."""
    return [Column(name, kind, primary_key=True, autoincrement=counts) for name in names]


def _required(kind: Kind, *names: str, default: str | None = None) -> list[Column[object]]:
    return [Column(name, kind, nullable=False, server_default=default) for name in names]


def _optional(kind: Kind, *names: str) -> list[Column[object]]:
    return [Column(name, kind) for name in names]


metadata = MetaData()


def _table(name: str, *items: SchemaItem) -> Table:
    counts = any(isinstance(item, Column) and item.autoincrement is True for item in items)
    dialects: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"}
    dialects |= {"mariadb_engine": "InnoDB", "mariadb_charset": "utf8mb4", "sqlite_autoincrement": counts}
    return Table(name, metadata, *items, **dialects)


_count = partial(_required, Integer, default="0")
_micros = partial(_required, BigInteger, default="0")
_text = partial(_required, default="")

users = _table(
    "users",
    *_key(Id, "user_id", counts=True),
    *_required(String(50), "first_name", "last_name"),
    *_required(String(255), "email"),
    *_required(Id, "subscription_id"),
    *_required(Flag, "is_active"),
    *_required(Text, "token"),
    *_optional(String(45), "userscol"),
    *_required(String(20), "role", default="artist"),
    *_micros("created_us", "kept_bytes"),  # kept_bytes: what the inputs and results of all of its tasks take
)

subscriptions = _table(
    "subscriptions",
    *_key(Id, "subscription_id", counts=True),
    *_required(String(50), "name"),
    *_required(Id, "queue_limit"),
    *_required(Integer, "share", default="1"),
    *_count("running_limit"),  # chunks of one user that run at once; 0: no limit
    *_count("keep_days", "keep_mib"),  # how long a task stays after its end, how much a user may have; 0: no limit
    *_text(String(200), "names"),  # the names of results outside the farm (farm.result_names); "": as they are
)

engines = _table(
    "engines",
    *_key(Id, "engine_id", counts=True),
    *_required(String(50), "name", "extension"),
    *_required(Text, "download_path", "render_argument"),
    *_optional(Long, "definition"),  # TOML of the engine's definition; null: v1's template alone
    *_required(Flag, "is_enabled", default="1"),
)

argtypes = _table(
    "argtypes", *_key(String(50), "argtype_id"), *_required(String(20), "type"), *_optional(Text, "regex")
)

machines = _table(
    "machines",
    *_key(Id, "machine_id", counts=True),
    *_required(String(45), "ip_address"),  # "" for linked machines
    *_required(Id, "port"),  # 0 for linked machines
    *_text(String(100), "name", "secret_hash"),  # no secret: a v1 machine
    *_required(String(20), "wish", default="active"),  # active | draining | disabled
    *_text(String(255), "wish_reason"),
    *_text(String(64), "instance"),
    *_micros("last_seq", "created_us", "seen_us"),
    *_optional(Long, "facts"),  # JSON of the last hello
    *_text(String(255), "tags"),  # words of the operator, separated by blanks
    *_text(String(50), "pool"),  # only for tasks of this pool; "": for tasks without one
    *_text(String(255), "hours"),  # when it takes work; "": always
    *_micros("benched_us"),  # since when it gets no work because chunks fail there; 0: it gets work
    *_text(String(255), "bench_reason"),
    *_count("slots_allowed"),  # attempts at once; 0: what farm.machines.slots_allowed says
)

renders = _table(
    "renders",
    *_key(Big, "render_id", counts=True),
    *_required(String(255), "file_name"),
    *_required(Text, "file_path"),
    *_required(BigInteger, "file_size"),
    *_required(Text, "arguments"),
    *_required(Id, "engine_id"),
    *_optional(Long, "values", "template"),  # JSON {argtype_id: value}, JSON list of template words; as submitted
    *_optional(Long, "facts"),  # JSON of the scene's own facts; null: unknown
)

inputs = _table(
    "inputs",
    *_key(Big, "input_id", counts=True),
    *_required(Big, "task_id"),
    *_required(Text, "name"),  # relative to the task's directory; the scene is one of them
    *_required(BigInteger, "size", "crc32"),
    *_required(String(64), "digest"),  # BLAKE3 in hex
    Index("ix_inputs_task", "task_id", "input_id"),
)
"""The files that a task was submitted with, for the machines that fetch them."""

STATUS: Final = """CASE
WHEN chunks_assigned + chunks_running > 0 THEN 'running'
WHEN chunks_waiting > 0 AND paused <> 0 THEN 'paused'
WHEN chunks_waiting > 0 THEN 'queued'
WHEN canceled <> 0 THEN 'canceled'
WHEN chunks_failed + chunks_canceled > 0 THEN 'failed'
ELSE 'succeeded' END"""
"""`farm.tasks.task_status` (R2 Task status) as the database computes it, for its indexes alone."""

tasks = _table(
    "tasks",
    *_key(Big, "task_id", counts=True),
    *_required(Id, "user_id"),
    *_optional(DateTime, "queue_time", "start_time", "end_time"),
    *_required(Flag, "is_running", "is_success"),
    *_required(Big, "render_id"),
    *_optional(Id, "machine_id"),
    *_text(String(255), "name"),
    *_required(SmallInteger, "priority", default="50"),
    *_required(Flag, "paused", "canceled", default="0"),  # canceled 2: it is being deleted (`control_rows.CONDEMNED`)
    *_micros("queue_us"),
    *_optional(BigInteger, "start_us", "end_us"),
    *_optional(Long, "frames"),  # canonical frame range ("" or null: no frames)
    *_count("chunk_size", "frames_total", "frames_done"),  # chunk_size: frames a chunk; 0: not cut
    *_count("chunks_waiting", "chunks_assigned", "chunks_running"),
    *_count("chunks_succeeded", "chunks_failed", "chunks_canceled"),
    *_optional(Text, "reason"),  # why it failed, in plain words
    *_optional(Long, "needs"),  # JSON of farm.needs.Needs; null: nothing but the engine
    *_count("running_limit"),  # chunks that run at once; 0: no limit
    *_required(Flag, "notify", default="0"),  # mail to its user when it ends
    *_required(Flag, "strict", default="0"),  # a file that is missing while it renders is a failure
    *_text(String(50), "film"),  # the film that is made of its frames; "": none
    *_optional(Long, "warnings"),  # JSON list of warnings about its pictures; null: none
    *_optional(Text, "unchecked"),  # why no machine looked at its scene at first; null: one did, or its engine can't
    *_optional(Text, "names"),  # the names of its results outside the farm; null: as they are
    *_optional(Text, "deliver"),  # where its results go: the name of a root and folders below it; null: nowhere
    *_text(String(100), "results_in"),  # the folder of its directory in which results land; "": beside the scene
    *_text(String(512), "searched"),  # what a search looks through: `farm.tasks.searched`
    Column("status", String(10), Computed(STATUS, persisted=False)),
    Index("ix_tasks_user", "user_id", "task_id"),
    Index("ix_tasks_user_status", "user_id", "status", "task_id"),
    Index("ix_tasks_status", "status", "task_id"),
    Index("ix_tasks_user_searched", "user_id", "task_id", "searched"),
    Index("ix_tasks_searched", "task_id", "user_id", "searched"),
    Index("ix_tasks_user_end", "user_id", "end_us"),
    Index("ix_tasks_end", "end_us", "task_id"),
)

queue = _table(
    "queue", *_key(Big, "queue_id", counts=True), *_required(Big, "task_id"), Index("ix_queue_task", "task_id")
)

waits_for = _table(
    "waits_for",
    *_key(Big, "task_id", "waits_for_task_id"),
    Index("ix_waits_for_other", "waits_for_task_id"),
)

chunks = _table(
    "chunks",
    *_key(Big, "chunk_id"),
    *_required(Big, "task_id"),
    *_required(String(10), "kind", "state"),  # farm.tasks.ChunkKind, ChunkState
    *_required(SmallInteger, "stage", default="0"),  # ready when all lower stages succeeded
    *_required(SmallInteger, "tries", default="0"),  # attempts that count against the limit
    *_optional(Integer, "first_frame", "last_frame", "frame_step"),  # null: the chunk has no frames
    *_count("place"),  # order inside the task
    *_micros("not_before_us"),
    *_optional(Text, "reason"),
    Index("ix_chunks_task", "task_id", "chunk_id"),
    Index("ix_chunks_state", "state", "chunk_id"),
)

attempts = _table(
    "attempts",
    *_key(Big, "attempt_id"),
    *_required(Big, "chunk_id", "task_id"),
    *_required(Id, "machine_id"),
    *_required(String(64), "token"),
    *_required(String(10), "state"),  # farm.tasks.AttemptState
    *_optional(String(10), "outcome"),  # farm.tasks.Outcome when ended
    *_required(BigInteger, "assigned_us"),
    *_optional(BigInteger, "started_us", "ended_us"),
    *_optional(Integer, "exit_code"),
    *_text(String(40), "failure"),
    *_optional(Text, "reason"),
    *_count("peak_memory_mib"),
    *_required(Text, "directory"),
    Index("ix_attempts_chunk", "chunk_id"),
    Index("ix_attempts_task", "task_id"),
    Index("ix_attempts_state", "state", "attempt_id"),
)
LIVE_ATTEMPT: Final = attempts.c.state.in_((AttemptState.ASSIGNED.value, AttemptState.RUNNING.value))

results = _table(
    "results",
    *_key(Big, "result_id", counts=True),
    *_required(Big, "task_id", "chunk_id", "attempt_id"),
    *_required(String(64), "name_hash"),  # SHA-256 of name: one length for every index; stale: s and its tail
    *_required(Text, "name"),
    *_required(String(10), "state"),  # landing | landed (R6 Landing) | stale: its file stays until another has landed
    *_optional(Integer, "frame", "of_frame"),  # of_frame: the frame that a file besides the frames belongs to
    *_text(String(100), "folder"),  # of the task's directory, in which it lies; "": beside the scene
    *_required(BigInteger, "size", "crc32"),
    *_required(String(64), "digest"),
    *_optional(Long, "facts"),
    *_required(Flag, "delivered", default="0"),  # 1: it is; 2: it can't be
    *_optional(BigInteger, "landed_us"),
    UniqueConstraint("task_id", "name_hash", name="uq_results_name"),
    Index("ix_results_task", "task_id", "result_id"),
    # On SQLite it holds the rows `landing` alone: with all of them, SQLite would choose it over ix_results_task.
    Index("ix_results_landing", "state", sqlite_where=text("state = 'landing'")),
)

deliveries = _table(
    "deliveries",
    *_key(Big, "delivery_id", counts=True),
    *_required(Big, "task_id"),
    *_required(String(64), "path_hash"),  # SHA-256 of path
    *_required(Text, "path", "name"),  # path: below its root; name: of the result
    *_optional(Text, "digests"),  # of the files that may lie there, separated by blanks; null: none
    UniqueConstraint("task_id", "path_hash", name="uq_deliveries_path"),
)
"""The files that tasks delivered: a task may replace its own, and no others."""

submissions = _table(
    "submissions",
    *_key(Id, "user_id"),
    *_key(String(64), "client_key"),
    *_required(Big, "task_id"),
    *_required(BigInteger, "created_us"),
    Index("ix_submissions_created", "created_us"),
)

join_codes = _table(
    "join_codes",
    *_key(String(100), "code_hash"),
    *_required(Integer, "uses_left"),
    *_required(BigInteger, "expires_us"),
    *_required(Id, "created_by"),
    *_count("slots"),  # slots_allowed of the machines that join with it
)

leases = _table(
    "leases",
    *_key(String(20), "name"),  # dispatcher
    *_required(String(255), "holder"),
    *_required(BigInteger, "epoch", "beat"),
)
"""Who dispatches (R10 Standby)."""

farm = _table("farm", *_key(String(50), "key"), *_required(Text, "value"))
"""Facts of the whole farm: `schema` (its revision), `origin` (created | adopted), `tokens` (raw | hashed),
`next_chunk_id`, `next_attempt_id`, `next_v1_machine_id`, `next_linked_machine_id`."""

T = TypeVar("T")
AnyRow = Row[*tuple[Any, ...]]
FRAMES: Final = ("first_frame", "last_frame", "frame_step")


def from_row(kind: type[T], row: AnyRow, **given: Any) -> T:
    """A dataclass from the columns that are called like its fields; `given` are values for the other fields."""
    for field in fields(kind):  # type: ignore[arg-type]
        if field.init and field.name not in given:
            value = getattr(row, field.name)
            given[field.name] = bool(value) if field.type is bool else value
    return kind(**given)


def the_row(connection: Connection, query: Executable, missing: str) -> AnyRow:
    """The first row of a query, or `NotFound` with this message."""
    row = connection.execute(query).first()
    if row is None:
        raise NotFound(missing)
    return row


def row_of(connection: Connection, table: Table, row_id: int | str, missing: str) -> AnyRow:
    """The row with this id, or `NotFound` with this message."""
    return the_row(connection, select(table).where(table.primary_key.columns[0] == row_id), missing)


def rows_of(connection: Connection, table: Table) -> Iterable[AnyRow]:
    """All rows by id."""
    return connection.execute(select(table).order_by(*table.primary_key))


def farm_value(connection: Connection, key: str, *, lock: bool = False) -> str | None:
    """A fact of the whole farm, None when it is not stored; `lock`: and lock its row."""
    query = select(farm.c.value).where(farm.c.key == key)
    return connection.scalar(query.with_for_update() if lock else query)


def set_farm_value(connection: Connection, key: str, value: str) -> None:
    """Store a fact of the whole farm."""
    if not connection.execute(farm.update().where(farm.c.key == key).values(value=value)).rowcount:
        connection.execute(farm.insert().values(key=key, value=value))


def json_object(text: str | None) -> dict[str, Any]:
    """A JSON object of a column; empty when there is none."""
    value = json.loads(text) if text else None
    return value if isinstance(value, dict) else {}


def json_texts(text: str | None) -> tuple[str, ...]:
    """The texts of a JSON list in a column; none when there is no list."""
    value = json.loads(text) if text else None
    return tuple(map(str, value)) if isinstance(value, list) else ()


def texts_json(texts: Sequence[str]) -> str | None:
    """A column's JSON list of texts; null for none."""
    return json.dumps(texts, ensure_ascii=False) if texts else None


def frames_of(first: int | None, last: int | None, step: int | None) -> FrameRange | None:
    """A chunk's frames from its columns, `FRAMES`."""
    return None if first is None or last is None else FrameRange(first, last, step or 1)


def shape_of(frames: FrameRange | None) -> dict[str, int | None]:
    """A chunk's columns from its frames."""
    shape = (frames.first, frames.last, frames.step) if frames else (None, None, None)
    return dict(zip(FRAMES, shape, strict=True))


@cache
def inserting(table: Table) -> Insert:
    """The statement that adds a row, built once: SQLAlchemy takes longer to build one than SQLite to run it."""
    return table.insert()


def insert(connection: Connection, table: Table, values: Mapping[str, Any]) -> int:
    """Add a row; returns its new id."""
    inserted = connection.execute(inserting(table), dict(values)).inserted_primary_key
    assert inserted is not None
    return int(inserted[0])


def update(connection: Connection, table: Table, row_id: int | str, changes: Mapping[str, Any]) -> None:
    """Change some columns of the row with this id."""
    if changes:
        connection.execute(table.update().where(table.primary_key.columns[0] == row_id).values(**changes))


def updating(table: Table, names: Iterable[str]) -> Update:
    """The statement that writes these columns of the row whose id is `key`."""
    return table.update().where(table.primary_key.columns[0] == bindparam("key")).values(bound(names))


def bound(names: Iterable[str]) -> dict[str, BindParameter[Any]]:
    """A parameter for each of these columns, called as the column is."""
    return {name: bindparam(name) for name in names}
