"""Adopting tasks of the existing system: each gets one chunk, and our columns are filled from its own
(R7.6 Adopted tasks).

    ended                                settled: succeeded or failed, as the row says
    in `queue`, running on a machine     running, with an attempt whose id is the task's own
    in `queue` otherwise                 waiting
    neither ended nor in `queue`         canceled (the existing system leaves dequeued tasks like that)

The same is done later for tasks that are inserted by hand.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, delete, func, select, update

from renderonline.database import door
from renderonline.database.schema import AnyRow, attempts, chunks, machines, queue, renders, tasks
from renderonline.database.task_rows import keep_bytes
from renderonline.farm.tasks import LIVE, SETTLED, AttemptState, ChunkKind, ChunkState, searched

_BATCH: Final = 500


def adopt_tasks(connection: Connection, *, after: int = 0, now: datetime | None = None) -> Sequence[int]:
    """Adopt the next tasks that have no chunk and an id above `after`, some hundreds at once; returns their ids.

    `now`: local time, for tasks that have no time at all.
    """
    rows = connection.execute(_without_chunks(after)).all()
    if not rows:
        return ()
    chunk_ids = door.reserve(connection, door.CHUNKS, len(rows))
    now = now or datetime.now().replace(microsecond=0)  # noqa: DTZ005 (v1's times are local)
    adopted = [(chunk_id, row, _state(row)) for chunk_id, row in zip(chunk_ids, rows, strict=True)]
    connection.execute(chunks.insert(), [_chunk(chunk_id, row, state) for chunk_id, row, state in adopted])
    if live := [_attempt(chunk_id, row, now) for chunk_id, row, state in adopted if state in LIVE]:
        connection.execute(attempts.insert(), live)
    for _, row, state in adopted:
        connection.execute(update(tasks).where(tasks.c.task_id == row.task_id).values(**_columns(row, state, now)))
    more: dict[int, int] = defaultdict(int)
    for row in rows:
        more[row.user_id] += row.file_size or 0
    keep_bytes(connection, more)
    settled = [row.task_id for _, row, state in adopted if state in SETTLED]
    connection.execute(delete(queue).where(queue.c.task_id.in_(settled)))
    return [row.task_id for row in rows]


def fill_searched(connection: Connection, *, after: int) -> Sequence[int]:
    """Give the next tasks of earlier versions with an id above `after` the text that is searched; returns their ids."""
    query = select(tasks.c.task_id, tasks.c.name, renders.c.file_name)
    query = query.outerjoin(renders, renders.c.render_id == tasks.c.render_id).order_by(tasks.c.task_id).limit(_BATCH)
    rows = connection.execute(query.where(tasks.c.task_id > after, tasks.c.searched == "")).all()
    if rows:
        filled = [{"key": row.task_id, "text": searched(row.name, row.file_name or "")} for row in rows]
        this = update(tasks).where(tasks.c.task_id == bindparam("key"))
        connection.execute(this.values(searched=bindparam("text")), filled)
    return [row.task_id for row in rows]


def tidy_queue(connection: Connection) -> None:
    """Remove queue rows of tasks that don't exist, and all but the first of each task's."""
    lowest = select(func.min(queue.c.queue_id).label("queue_id")).group_by(queue.c.task_id).subquery()
    stale = connection.scalars(
        select(queue.c.queue_id)
        .outerjoin(tasks, tasks.c.task_id == queue.c.task_id)
        .outerjoin(lowest, lowest.c.queue_id == queue.c.queue_id)
        .where(tasks.c.task_id.is_(None) | lowest.c.queue_id.is_(None))
    ).all()
    connection.execute(delete(queue).where(queue.c.queue_id.in_(stale)))


def micros(local: datetime | None) -> int | None:
    """A local time of v1 in microseconds since 1970 UTC; null for none and for times before 1971."""
    if local is None or local.year < 1971:
        return None
    try:
        return int(local.timestamp() * 1_000_000)
    except (OverflowError, ValueError, OSError):
        return None


def _without_chunks(after: int) -> Select[*tuple[Any, ...]]:
    queued = select(queue.c.task_id).distinct().subquery()
    return (
        select(
            *(tasks, machines.c.machine_id.label("known_machine"), queued.c.task_id.label("queued")),
            *(renders.c.file_path, renders.c.file_name, renders.c.file_size),
        )
        .outerjoin(chunks, chunks.c.task_id == tasks.c.task_id)
        .outerjoin(renders, renders.c.render_id == tasks.c.render_id)
        .outerjoin(machines, machines.c.machine_id == tasks.c.machine_id)
        .outerjoin(queued, queued.c.task_id == tasks.c.task_id)
        .where(tasks.c.task_id > after, chunks.c.task_id.is_(None))
        .order_by(tasks.c.task_id)
        .limit(_BATCH)
    )


def _state(row: AnyRow) -> ChunkState:
    if row.end_time is not None and (row.queued is None or not row.is_running):
        return ChunkState.SUCCEEDED if row.is_success else ChunkState.FAILED
    if row.queued is None:
        return ChunkState.CANCELED
    if row.file_path is None:
        return ChunkState.FAILED
    return ChunkState.RUNNING if row.is_running and row.known_machine is not None else ChunkState.WAITING


def _reason(row: AnyRow, state: ChunkState) -> str | None:
    lost = row.file_path is None and state is ChunkState.FAILED and row.end_time is None
    return "Its render is missing in the database that it was adopted from." if lost else None


def _queue_us(row: AnyRow, now: datetime) -> int:
    return next((us for time in (row.queue_time, row.start_time, row.end_time, now) if (us := micros(time))), 0)


def _chunk(chunk_id: int, row: AnyRow, state: ChunkState) -> Mapping[str, Any]:
    about = {"kind": ChunkKind.RENDER, "state": state, "reason": _reason(row, state)}
    return {"chunk_id": chunk_id, "task_id": row.task_id, **about}


def _attempt(chunk_id: int, row: AnyRow, now: datetime) -> Mapping[str, Any]:
    started = micros(row.start_time) or _queue_us(row, now)
    return {
        "attempt_id": row.task_id,  # what the existing node answers with (R7.6 Adopted tasks)
        "chunk_id": chunk_id,
        "task_id": row.task_id,
        "machine_id": row.machine_id,
        "token": "",
        "state": AttemptState.RUNNING,
        "assigned_us": started,
        "started_us": started,
        "directory": str(PurePosixPath(row.file_path).parent),
    }


def _columns(row: AnyRow, state: ChunkState, now: datetime) -> Mapping[str, Any]:
    """Our columns of the task, and v1's where they contradict each other."""
    queue_us, running, waiting = _queue_us(row, now), state is ChunkState.RUNNING, state is ChunkState.WAITING
    ended = (row.end_time or row.start_time or row.queue_time or now) if state in SETTLED else None
    return {
        "queue_us": queue_us,
        "start_us": None if waiting else micros(row.start_time) or (queue_us if running else None),
        "end_us": (micros(ended) or queue_us) if ended else None,
        "end_time": ended,
        "is_running": int(running),
        "is_success": int(state is ChunkState.SUCCEEDED),
        "canceled": int(state is ChunkState.CANCELED),
        "reason": _reason(row, state),
        f"chunks_{state}": 1,
        "searched": searched(row.name, row.file_name or ""),
    } | ({"machine_id": None, "start_time": None} if waiting else {})
