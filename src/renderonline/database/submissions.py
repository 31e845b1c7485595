"""Submitting a task: everything of it in one transaction, within the user's limit, exactly once (R4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, CursorResult, bindparam, func, select

from renderonline.database.schema import (
    chunks,
    queue,
    renders,
    submissions,
    subscriptions,
    tasks,
    users,
    waits_for,
)
from renderonline.farm.errors import InvalidRequest, LimitReached, NotAuthenticated
from renderonline.farm.frames import FrameRange
from renderonline.farm.tasks import ChunkKind, ChunkState

REMEMBERED_US: Final = 7 * 24 * 3600 * 1_000_000
"""How long a submission's key is known: 7 days."""

KEY_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk to make. `frames` is null for a chunk without frames; `stage`: ready when all lower ones succeeded."""

    chunk_id: int
    frames: FrameRange | None
    kind: ChunkKind = ChunkKind.RENDER
    stage: int = 0


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to make; everything in it has been checked, and its file lies at `file_path`.

    `arguments`: the engine's argument line for v1 readers. `values`, `template`: JSON (object, list of words).
    `frames`: canonical range, "" without frames. `queue_time` is local (R1.2). `client_key`: "" without one.
    `chunks` are in the order in which they shall be rendered.
    """

    user_id: int
    engine_id: int
    file_name: str
    file_path: str
    file_size: int
    arguments: str
    values: str
    template: str
    queue_us: int
    queue_time: datetime
    chunks: Sequence[NewChunk]
    frames: str = ""
    frames_total: int = 0
    chunk_size: int = 0
    name: str = ""
    priority: int = 50
    paused: bool = False
    client_key: str = ""
    waits_for: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Submitted:
    """A task that is in the database. `repeated`: it was there before, by the same key; nothing was stored."""

    task_id: int
    render_id: int
    repeated: bool = False


# Built once: SQLAlchemy takes longer to build a statement than SQLite to run it.
_FIND: Final = (
    select(submissions.c.task_id, submissions.c.client_key, submissions.c.created_us, tasks.c.render_id)
    .outerjoin(tasks, tasks.c.task_id == submissions.c.task_id)
    .where(submissions.c.user_id == bindparam("user"), submissions.c.client_key == bindparam("key"))
)
_FORGET: Final = submissions.delete().where(
    submissions.c.user_id == bindparam("user"), submissions.c.client_key == bindparam("key")
)
_REMEMBER: Final = submissions.insert()
_ACCOUNT: Final = (
    select(users.c.is_active, subscriptions.c.queue_limit)
    .outerjoin(subscriptions, subscriptions.c.subscription_id == users.c.subscription_id)
    .where(users.c.user_id == bindparam("user"))
)
_LOCK_ACCOUNT: Final = _ACCOUNT.with_for_update()
_QUEUED: Final = select(func.count()).select_from(
    select(queue.c.queue_id)
    .join(tasks, tasks.c.task_id == queue.c.task_id)
    .where(tasks.c.user_id == bindparam("user"), tasks.c.end_us.is_(None))
    .limit(bindparam("most"))
    .subquery()
)
_BEFORE: Final = select(
    _QUEUED.scalar_subquery().label("queued"),
    select(chunks.c.task_id).where(chunks.c.chunk_id == bindparam("chunk")).scalar_subquery().label("committed"),
    select(submissions.c.task_id)
    .where(submissions.c.user_id == bindparam("user"), submissions.c.client_key == bindparam("key"))
    .scalar_subquery()
    .label("known"),
)
"""All that must be known before anything is written, in one round trip; after the account is locked."""
_RENDER_OF: Final = select(tasks.c.render_id).where(tasks.c.task_id == bindparam("task"))
_RENDER: Final = renders.insert()
_TASK: Final = tasks.insert()
_CHUNKS: Final = chunks.insert()
_QUEUE: Final = queue.insert()


def find(connection: Connection, user_id: int, client_key: str, *, now_us: int) -> Submitted | None:
    """The task that this user submitted with this key in the last 7 days. To be asked before a body is read."""
    if not client_key:
        return None
    row = connection.execute(_FIND, {"user": user_id, "key": client_key}).first()
    if row is None or row.client_key != client_key or row.created_us <= now_us - REMEMBERED_US:
        return None
    return Submitted(row.task_id, row.render_id or 0, repeated=True)


def check_limit(connection: Connection, user_id: int) -> None:
    """Raise `LimitReached` when the user may have no further task; to refuse early. `submit` decides."""
    account = connection.execute(_ACCOUNT, {"user": user_id}).first()
    limit = (account.queue_limit or 0) if account else 0
    _check_limit(limit, connection.scalar(_QUEUED, {"user": user_id, "most": limit}))


def submit(connection: Connection, new: NewTask) -> Submitted:
    """Put a task into the database: render, task, chunks, queue row, what it waits for, the client's key.

    `LimitReached` with the contract's message, `NotAuthenticated` when the account has been switched off,
    `InvalidRequest` for tasks to wait for that don't exist.
    """
    if len(new.client_key) > KEY_LENGTH:
        raise InvalidRequest(f"The key of a submission (Idempotency-Key) has at most {KEY_LENGTH} characters.")
    # Two submissions of one user go one after the other, on whatever connections (R3.3).
    account = connection.execute(_LOCK_ACCOUNT, {"user": new.user_id}).first()
    if account is None or account.is_active != 1:
        raise NotAuthenticated("Your account is not active any more.")
    limit = account.queue_limit or 0
    before = connection.execute(
        _BEFORE,
        {"user": new.user_id, "most": limit, "chunk": new.chunks[0].chunk_id, "key": new.client_key},
    ).one()
    if before.known is not None:
        known = find(connection, new.user_id, new.client_key, now_us=new.queue_us)
        if known is not None:
            return known
        connection.execute(_FORGET, {"user": new.user_id, "key": new.client_key})  # it is older than 7 days
    if before.committed is not None:  # only the answer to the commit was lost (R3.2)
        return Submitted(before.committed, connection.scalar(_RENDER_OF, {"task": before.committed}) or 0)
    _check_limit(limit, before.queued)
    _check_waits(connection, new)
    render_id = _key(connection.execute(_RENDER, _render_row(new)))
    task_id = _key(connection.execute(_TASK, _task_row(new, render_id)))
    connection.execute(_CHUNKS, _chunk_rows(new, task_id))
    connection.execute(_QUEUE, {"task_id": task_id})
    if new.waits_for:
        rows = [{"task_id": task_id, "waits_for_task_id": other} for other in sorted(set(new.waits_for))]
        connection.execute(waits_for.insert(), rows)
    _remember(connection, new, task_id)
    return Submitted(task_id, render_id)


def forget_old(connection: Connection, *, now_us: int) -> int:
    """Remove keys older than 7 days; gives how many."""
    return connection.execute(submissions.delete().where(submissions.c.created_us <= now_us - REMEMBERED_US)).rowcount


def _check_limit(limit: int, queued: int | None) -> None:
    if (queued or 0) >= limit:
        raise LimitReached(f"Queue limit {limit} reached for your subscription.")


def _check_waits(connection: Connection, new: NewTask) -> None:
    wanted = set(new.waits_for)
    if not wanted:
        return
    found = set(
        connection.scalars(select(tasks.c.task_id).where(tasks.c.task_id.in_(wanted), tasks.c.user_id == new.user_id))
    )
    if missing := sorted(wanted - found):
        raise InvalidRequest(f"There is no task {missing[0]} of yours to wait for.")


def _key(inserted: CursorResult[Any]) -> int:
    assert inserted.inserted_primary_key is not None
    return int(inserted.inserted_primary_key[0])


def _render_row(new: NewTask) -> dict[str, object]:
    return {
        "file_name": new.file_name,
        "file_path": new.file_path,
        "file_size": new.file_size,
        "arguments": new.arguments,
        "engine_id": new.engine_id,
        "values": new.values,
        "template": new.template,
    }


def _task_row(new: NewTask, render_id: int) -> dict[str, object]:
    return {
        "user_id": new.user_id,
        "queue_time": new.queue_time.replace(microsecond=0, tzinfo=None),
        "is_running": 0,
        "is_success": 0,
        "render_id": render_id,
        "name": new.name,
        "priority": new.priority,
        "paused": int(new.paused),
        "queue_us": new.queue_us,
        "frames": new.frames or None,
        "chunk_size": new.chunk_size,
        "frames_total": new.frames_total,
        "chunks_waiting": len(new.chunks),
    }


def _chunk_rows(new: NewTask, task_id: int) -> list[dict[str, object]]:
    return [
        {
            "chunk_id": chunk.chunk_id,
            "task_id": task_id,
            "kind": chunk.kind.value,
            "stage": chunk.stage,
            "state": ChunkState.WAITING.value,
            "first_frame": chunk.frames.first if chunk.frames else None,
            "last_frame": chunk.frames.last if chunk.frames else None,
            "frame_step": chunk.frames.step if chunk.frames else None,
            "place": place,
        }
        for place, chunk in enumerate(new.chunks)
    ]


def _remember(connection: Connection, new: NewTask, task_id: int) -> None:
    if not new.client_key:
        return
    connection.execute(
        _REMEMBER,
        {
            "user_id": new.user_id,
            "client_key": new.client_key,
            "task_id": task_id,
            "created_us": new.queue_us,
        },
    )
