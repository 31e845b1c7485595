"""The tables. v1's columns are those of the wire contract's section 3; everything else is only added.

v1 times are the server's local time for v1 readers only; columns `*_us` are microseconds since 1970 UTC (R1.2).
Booleans are small integers, as in v1. Ids are never used twice (R1.1): AUTOINCREMENT on SQLite too.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem

metadata = MetaData()

Big = BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb").with_variant(Integer, "sqlite")
Id = Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")
"""Engines, machines, users, subscriptions and small counts: wider than v1's, 255 are not enough."""
Flag = SmallInteger().with_variant(mysql.TINYINT(), "mysql", "mariadb")
Long = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def _table(name: str, *items: SchemaItem, autoincrement: bool = True) -> Table:
    return Table(
        name,
        metadata,
        *items,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        sqlite_autoincrement=autoincrement,
    )


users = _table(
    "users",
    Column("user_id", Id, primary_key=True, autoincrement=True),
    Column("first_name", String(50), nullable=False),
    Column("last_name", String(50), nullable=False),
    Column("email", String(255), nullable=False),
    Column("subscription_id", Id, nullable=False),
    Column("is_active", Flag, nullable=False),
    Column("token", Text, nullable=False),
    Column("userscol", String(45)),
    Column("role", String(20), nullable=False, server_default="artist"),
    Column("created_us", BigInteger, nullable=False, server_default="0"),
)

subscriptions = _table(
    "subscriptions",
    Column("subscription_id", Id, primary_key=True, autoincrement=True),
    Column("name", String(50), nullable=False),
    Column("queue_limit", Id, nullable=False),
    Column("share", Integer, nullable=False, server_default="1"),
)

engines = _table(
    "engines",
    Column("engine_id", Id, primary_key=True, autoincrement=True),
    Column("name", String(50), nullable=False),
    Column("extension", String(50), nullable=False),
    Column("download_path", Text, nullable=False),
    Column("render_argument", Text, nullable=False),
    Column("definition", Long),  # TOML of the engine's definition; null: v1's template alone
    Column("is_enabled", Flag, nullable=False, server_default="1"),
)

argtypes = _table(
    "argtypes",
    Column("argtype_id", String(50), primary_key=True),
    Column("type", String(20), nullable=False),
    Column("regex", Text),
    autoincrement=False,
)

machines = _table(
    "machines",
    Column("machine_id", Id, primary_key=True, autoincrement=True),
    Column("ip_address", String(45), nullable=False),  # "" for linked machines
    Column("port", Id, nullable=False),  # 0 for linked machines
    Column("name", String(100), nullable=False, server_default=""),
    Column("secret_hash", String(100), nullable=False, server_default=""),  # "" for v1 machines
    Column("wish", String(20), nullable=False, server_default="active"),  # active | draining | disabled
    Column("wish_reason", String(255), nullable=False, server_default=""),
    Column("instance", String(64), nullable=False, server_default=""),
    Column("last_seq", BigInteger, nullable=False, server_default="0"),
    Column("facts", Long),  # JSON of the last hello
    Column("created_us", BigInteger, nullable=False, server_default="0"),
    Column("seen_us", BigInteger, nullable=False, server_default="0"),
)

renders = _table(
    "renders",
    Column("render_id", Big, primary_key=True, autoincrement=True),
    Column("file_name", String(255), nullable=False),
    Column("file_path", Text, nullable=False),
    Column("file_size", BigInteger, nullable=False),
    Column("arguments", Text, nullable=False),
    Column("engine_id", Id, nullable=False),
    Column("values", Long),  # JSON {argtype_id: value} as submitted
    Column("template", Long),  # JSON list: the engine's template words at submission
)

tasks = _table(
    "tasks",
    Column("task_id", Big, primary_key=True, autoincrement=True),
    Column("user_id", Id, nullable=False),
    Column("queue_time", DateTime),
    Column("start_time", DateTime),
    Column("end_time", DateTime),
    Column("is_running", Flag, nullable=False),
    Column("is_success", Flag, nullable=False),
    Column("render_id", Big, nullable=False),
    Column("machine_id", Id),
    Column("name", String(255), nullable=False, server_default=""),
    Column("priority", SmallInteger, nullable=False, server_default="50"),
    Column("paused", Flag, nullable=False, server_default="0"),
    Column("canceled", Flag, nullable=False, server_default="0"),
    Column("queue_us", BigInteger, nullable=False, server_default="0"),
    Column("start_us", BigInteger),
    Column("end_us", BigInteger),
    Column("frames", Long),  # canonical frame range ("" or null: no frames)
    Column("chunk_size", Integer, nullable=False, server_default="0"),  # frames a chunk; 0: not cut
    Column("frames_total", Integer, nullable=False, server_default="0"),
    Column("frames_done", Integer, nullable=False, server_default="0"),
    Column("chunks_waiting", Integer, nullable=False, server_default="0"),
    Column("chunks_assigned", Integer, nullable=False, server_default="0"),
    Column("chunks_running", Integer, nullable=False, server_default="0"),
    Column("chunks_succeeded", Integer, nullable=False, server_default="0"),
    Column("chunks_failed", Integer, nullable=False, server_default="0"),
    Column("chunks_canceled", Integer, nullable=False, server_default="0"),
    Column("reason", Text),  # why it failed, in plain words
    Index("ix_tasks_user", "user_id", "task_id"),
    Index("ix_tasks_user_end", "user_id", "end_us"),
    Index("ix_tasks_end", "end_us", "task_id"),
)

queue = _table(
    "queue",
    Column("queue_id", Big, primary_key=True, autoincrement=True),
    Column("task_id", Big, nullable=False),
    Index("ix_queue_task", "task_id"),
)

waits_for = _table(
    "waits_for",
    Column("task_id", Big, primary_key=True, autoincrement=False),
    Column("waits_for_task_id", Big, primary_key=True, autoincrement=False),
    Index("ix_waits_for_other", "waits_for_task_id"),
    autoincrement=False,
)

chunks = _table(
    "chunks",
    Column("chunk_id", Big, primary_key=True, autoincrement=False),
    Column("task_id", Big, nullable=False),
    Column("kind", String(10), nullable=False),  # farm.tasks.ChunkKind
    Column("stage", SmallInteger, nullable=False, server_default="0"),  # ready when all lower stages succeeded
    Column("state", String(10), nullable=False),  # farm.tasks.ChunkState
    Column("first_frame", Integer),  # null: the chunk has no frames
    Column("last_frame", Integer),
    Column("frame_step", Integer),
    Column("place", Integer, nullable=False, server_default="0"),  # order inside the task
    Column("tries", SmallInteger, nullable=False, server_default="0"),  # attempts that count against the limit
    Column("not_before_us", BigInteger, nullable=False, server_default="0"),
    Column("reason", Text),
    Index("ix_chunks_task", "task_id", "chunk_id"),
    Index("ix_chunks_state", "state", "chunk_id"),
    autoincrement=False,
)

attempts = _table(
    "attempts",
    Column("attempt_id", Big, primary_key=True, autoincrement=False),
    Column("chunk_id", Big, nullable=False),
    Column("task_id", Big, nullable=False),
    Column("machine_id", Id, nullable=False),
    Column("token", String(64), nullable=False),
    Column("state", String(10), nullable=False),  # farm.tasks.AttemptState
    Column("outcome", String(10)),  # farm.tasks.Outcome when ended
    Column("assigned_us", BigInteger, nullable=False),
    Column("started_us", BigInteger),
    Column("ended_us", BigInteger),
    Column("exit_code", Integer),
    Column("failure", String(40), nullable=False, server_default=""),
    Column("reason", Text),
    Column("peak_memory_mib", Integer, nullable=False, server_default="0"),
    Column("directory", Text, nullable=False),
    Index("ix_attempts_chunk", "chunk_id"),
    Index("ix_attempts_task", "task_id"),
    Index("ix_attempts_state", "state", "attempt_id"),
    autoincrement=False,
)

results = _table(
    "results",
    Column("result_id", Big, primary_key=True, autoincrement=True),
    Column("task_id", Big, nullable=False),
    Column("name_hash", String(64), nullable=False),  # SHA-256 of name: one length for every database's index
    Column("name", Text, nullable=False),
    Column("chunk_id", Big, nullable=False),
    Column("attempt_id", Big, nullable=False),
    Column("state", String(10), nullable=False),  # landing | landed (R6)
    Column("frame", Integer),
    Column("size", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("crc32", BigInteger, nullable=False),
    Column("facts", Long),
    Column("landed_us", BigInteger),
    UniqueConstraint("task_id", "name_hash", name="uq_results_name"),
    Index("ix_results_task", "task_id", "result_id"),
    Index("ix_results_state", "state"),
)

submissions = _table(
    "submissions",
    Column("user_id", Id, primary_key=True, autoincrement=False),
    Column("client_key", String(64), primary_key=True),
    Column("task_id", Big, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Index("ix_submissions_created", "created_us"),
    autoincrement=False,
)

join_codes = _table(
    "join_codes",
    Column("code_hash", String(100), primary_key=True),
    Column("uses_left", Integer, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Column("created_by", Id, nullable=False),
    autoincrement=False,
)

farm = _table(
    "farm",
    Column("key", String(50), primary_key=True),
    Column("value", Text, nullable=False),
    autoincrement=False,
)
"""Facts of the whole farm: `origin` (created | adopted), `tokens` (raw | hashed), `next_chunk_id`, `next_attempt_id`,
`next_v1_machine_id`, `next_linked_machine_id`."""
