"""What our farm adds: wider ids; roles, shares, definitions, machine secrets; chunks, attempts, results and the rest."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from renderonline.database.migrations import steps
from renderonline.database.migrations.steps import ID

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Big = sa.BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb").with_variant(sa.Integer, "sqlite")
Flag = sa.SmallInteger().with_variant(mysql.TINYINT(), "mysql", "mariadb")
Long = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def upgrade() -> None:
    _widen()
    _accounts_and_machines()
    _tasks()
    _chunks()
    _results()
    _small_tables()


def _widen() -> None:
    """255 engines, machines and subscriptions are not enough."""
    steps.widen("users", "user_id", autoincrement=True)
    steps.widen("users", "subscription_id")
    steps.widen("subscriptions", "subscription_id", autoincrement=True)
    steps.widen("subscriptions", "queue_limit")
    steps.widen("engines", "engine_id", autoincrement=True)
    steps.widen("machines", "machine_id", autoincrement=True)
    steps.widen("renders", "engine_id")
    steps.widen("tasks", "user_id")
    steps.widen("tasks", "machine_id", nullable=True)


def _accounts_and_machines() -> None:
    steps.columns(
        "users",
        sa.Column("role", sa.String(20), nullable=False, server_default="artist"),
        _micros("created_us"),
    )
    steps.columns("subscriptions", sa.Column("share", sa.Integer, nullable=False, server_default="1"))
    steps.columns(
        "engines",
        sa.Column("definition", Long),
        sa.Column("is_enabled", Flag, nullable=False, server_default="1"),
    )
    steps.columns(
        "machines",
        sa.Column("name", sa.String(100), nullable=False, server_default=""),
        sa.Column("secret_hash", sa.String(100), nullable=False, server_default=""),
        sa.Column("wish", sa.String(20), nullable=False, server_default="active"),
        sa.Column("wish_reason", sa.String(255), nullable=False, server_default=""),
        sa.Column("instance", sa.String(64), nullable=False, server_default=""),
        sa.Column("last_seq", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("facts", Long),
        _micros("created_us"),
        _micros("seen_us"),
    )
    steps.columns("renders", sa.Column("values", Long), sa.Column("template", Long))


def _tasks() -> None:
    steps.columns(
        "tasks",
        sa.Column("name", sa.String(255), nullable=False, server_default=""),
        sa.Column("priority", sa.SmallInteger, nullable=False, server_default="50"),
        sa.Column("paused", Flag, nullable=False, server_default="0"),
        sa.Column("canceled", Flag, nullable=False, server_default="0"),
        _micros("queue_us"),
        sa.Column("start_us", sa.BigInteger),
        sa.Column("end_us", sa.BigInteger),
        sa.Column("frames", Long),
        _number("chunk_size"),
        _number("frames_total"),
        _number("frames_done"),
        _number("chunks_waiting"),
        _number("chunks_assigned"),
        _number("chunks_running"),
        _number("chunks_succeeded"),
        _number("chunks_failed"),
        _number("chunks_canceled"),
        sa.Column("reason", sa.Text),
    )
    steps.index("ix_tasks_user", "tasks", ("user_id", "task_id"))
    steps.index("ix_tasks_user_end", "tasks", ("user_id", "end_us"))
    steps.index("ix_tasks_end", "tasks", ("end_us", "task_id"))
    steps.index("ix_queue_task", "queue", ("task_id",))
    steps.table(
        "waits_for",
        sa.Column("task_id", Big, primary_key=True, autoincrement=False),
        sa.Column("waits_for_task_id", Big, primary_key=True, autoincrement=False),
        autoincrement=False,
    )
    steps.index("ix_waits_for_other", "waits_for", ("waits_for_task_id",))


def _chunks() -> None:
    steps.table(
        "chunks",
        sa.Column("chunk_id", Big, primary_key=True, autoincrement=False),
        sa.Column("task_id", Big, nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("stage", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("first_frame", sa.Integer),
        sa.Column("last_frame", sa.Integer),
        sa.Column("frame_step", sa.Integer),
        _number("place"),
        sa.Column("tries", sa.SmallInteger, nullable=False, server_default="0"),
        _micros("not_before_us"),
        sa.Column("reason", sa.Text),
        autoincrement=False,
    )
    steps.index("ix_chunks_task", "chunks", ("task_id", "chunk_id"))
    steps.index("ix_chunks_state", "chunks", ("state", "chunk_id"))
    steps.table(
        "attempts",
        sa.Column("attempt_id", Big, primary_key=True, autoincrement=False),
        sa.Column("chunk_id", Big, nullable=False),
        sa.Column("task_id", Big, nullable=False),
        sa.Column("machine_id", ID, nullable=False),
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("outcome", sa.String(10)),
        sa.Column("assigned_us", sa.BigInteger, nullable=False),
        sa.Column("started_us", sa.BigInteger),
        sa.Column("ended_us", sa.BigInteger),
        sa.Column("exit_code", sa.Integer),
        sa.Column("failure", sa.String(40), nullable=False, server_default=""),
        sa.Column("reason", sa.Text),
        _number("peak_memory_mib"),
        sa.Column("directory", sa.Text, nullable=False),
        autoincrement=False,
    )
    steps.index("ix_attempts_chunk", "attempts", ("chunk_id",))
    steps.index("ix_attempts_task", "attempts", ("task_id",))
    steps.index("ix_attempts_state", "attempts", ("state", "attempt_id"))


def _results() -> None:
    steps.table(
        "results",
        sa.Column("result_id", Big, primary_key=True, autoincrement=True),
        sa.Column("task_id", Big, nullable=False),
        sa.Column("name_hash", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("chunk_id", Big, nullable=False),
        sa.Column("attempt_id", Big, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("frame", sa.Integer),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("crc32", sa.BigInteger, nullable=False),
        sa.Column("facts", Long),
        sa.Column("landed_us", sa.BigInteger),
        sa.UniqueConstraint("task_id", "name_hash", name="uq_results_name"),
    )
    steps.index("ix_results_task", "results", ("task_id", "result_id"))
    steps.index("ix_results_state", "results", ("state",))


def _small_tables() -> None:
    steps.table(
        "submissions",
        sa.Column("user_id", ID, primary_key=True, autoincrement=False),
        sa.Column("client_key", sa.String(64), primary_key=True),
        sa.Column("task_id", Big, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        autoincrement=False,
    )
    steps.index("ix_submissions_created", "submissions", ("created_us",))
    steps.table(
        "join_codes",
        sa.Column("code_hash", sa.String(100), primary_key=True),
        sa.Column("uses_left", sa.Integer, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.Column("created_by", ID, nullable=False),
        autoincrement=False,
    )


def _micros(name: str) -> sa.Column[object]:
    """A moment in microseconds since 1970 UTC."""
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _number(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.Integer, nullable=False, server_default="0")
