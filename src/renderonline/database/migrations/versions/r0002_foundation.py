"""What our farm adds: wider ids; roles, shares, definitions, machine secrets; chunks, attempts, results and the rest."""

from functools import partial

from sqlalchemy import BigInteger, Integer, SmallInteger, String, Text, UniqueConstraint

from renderonline.database.columns import Big, Flag, Id, Long, key, optional, required
from renderonline.database.migrations import steps

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_count = partial(required, Integer, default="0")
_micros = partial(required, BigInteger, default="0")
_text = partial(required, default="")


def upgrade() -> None:
    _widen()
    _v1_tables()
    _work()
    _small_tables()


def _widen() -> None:
    """255 engines, machines and subscriptions are not enough."""
    for table, name in (("users", "user_id"), ("subscriptions", "subscription_id"), ("engines", "engine_id"),
                        ("machines", "machine_id")):
        steps.widen(table, name, counts=True)
    for table, name in (("users", "subscription_id"), ("subscriptions", "queue_limit"), ("renders", "engine_id"),
                        ("tasks", "user_id")):
        steps.widen(table, name)
    steps.widen("tasks", "machine_id", nullable=True)


def _v1_tables() -> None:
    steps.columns("users", *required(String(20), "role", default="artist"), *_micros("created_us"))
    steps.columns("subscriptions", *required(Integer, "share", default="1"))
    steps.columns("engines", *optional(Long, "definition"), *required(Flag, "is_enabled", default="1"))
    steps.columns(
        "machines",
        *_text(String(100), "name", "secret_hash"),
        *required(String(20), "wish", default="active"),
        *_text(String(255), "wish_reason"),
        *_text(String(64), "instance"),
        *_micros("last_seq", "created_us", "seen_us"),
        *optional(Long, "facts"),
    )
    steps.columns("renders", *optional(Long, "values", "template"))
    steps.columns(
        "tasks",
        *_text(String(255), "name"),
        *required(SmallInteger, "priority", default="50"),
        *required(Flag, "paused", "canceled", default="0"),
        *_micros("queue_us"),
        *optional(BigInteger, "start_us", "end_us"),
        *optional(Long, "frames"),
        *_count("chunk_size", "frames_total", "frames_done"),
        *_count("chunks_waiting", "chunks_assigned", "chunks_running"),
        *_count("chunks_succeeded", "chunks_failed", "chunks_canceled"),
        *optional(Text, "reason"),
    )
    steps.index("ix_tasks_user", "tasks", "user_id", "task_id")
    steps.index("ix_tasks_user_end", "tasks", "user_id", "end_us")
    steps.index("ix_tasks_end", "tasks", "end_us", "task_id")
    steps.index("ix_queue_task", "queue", "task_id")


def _work() -> None:
    steps.table(
        "chunks",
        *key(Big, "chunk_id"),
        *required(Big, "task_id"),
        *required(String(10), "kind", "state"),
        *required(SmallInteger, "stage", "tries", default="0"),
        *optional(Integer, "first_frame", "last_frame", "frame_step"),
        *_count("place"),
        *_micros("not_before_us"),
        *optional(Text, "reason"),
    )
    steps.index("ix_chunks_task", "chunks", "task_id", "chunk_id")
    steps.index("ix_chunks_state", "chunks", "state", "chunk_id")
    steps.table(
        "attempts",
        *key(Big, "attempt_id"),
        *required(Big, "chunk_id", "task_id"),
        *required(Id, "machine_id"),
        *required(String(64), "token"),
        *required(String(10), "state"),
        *optional(String(10), "outcome"),
        *required(BigInteger, "assigned_us"),
        *optional(BigInteger, "started_us", "ended_us"),
        *optional(Integer, "exit_code"),
        *_text(String(40), "failure"),
        *optional(Text, "reason"),
        *_count("peak_memory_mib"),
        *required(Text, "directory"),
    )
    steps.index("ix_attempts_chunk", "attempts", "chunk_id")
    steps.index("ix_attempts_task", "attempts", "task_id")
    steps.index("ix_attempts_state", "attempts", "state", "attempt_id")
    steps.table(
        "results",
        *key(Big, "result_id", counts=True),
        *required(Big, "task_id", "chunk_id", "attempt_id"),
        *required(String(64), "name_hash"),
        *required(Text, "name"),
        *required(String(10), "state"),
        *optional(Integer, "frame"),
        *required(BigInteger, "size", "crc32"),
        *required(String(64), "digest"),
        *optional(Long, "facts"),
        *optional(BigInteger, "landed_us"),
        UniqueConstraint("task_id", "name_hash", name="uq_results_name"),
    )
    steps.index("ix_results_task", "results", "task_id", "result_id")
    steps.index("ix_results_state", "results", "state")


def _small_tables() -> None:
    steps.table("waits_for", *key(Big, "task_id", "waits_for_task_id"))
    steps.index("ix_waits_for_other", "waits_for", "waits_for_task_id")
    steps.table(
        "submissions",
        *key(Id, "user_id"),
        *key(String(64), "client_key"),
        *required(Big, "task_id"),
        *required(BigInteger, "created_us"),
    )
    steps.index("ix_submissions_created", "submissions", "created_us")
    steps.table(
        "join_codes",
        *key(String(100), "code_hash"),
        *required(Integer, "uses_left"),
        *required(BigInteger, "expires_us"),
        *required(Id, "created_by"),
    )
