"""Adopting tasks of the existing system: each gets one chunk, and our columns are filled from its own (R7.6).

    ended                                settled: succeeded or failed, as the row says
    in `queue`, running on a machine     running, with an attempt whose id is the task's own
    in `queue` otherwise                 waiting
    neither ended nor in `queue`         canceled (the existing system leaves dequeued tasks like that)

The same is done for tasks that somebody inserts by hand later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, func, inspect, select, update

from renderonline.database import ids
from renderonline.database.schema import attempts, chunks, machines, metadata, queue, renders, tasks
from renderonline.farm.tasks import AttemptState, ChunkKind, ChunkState

BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction adopted; `last_task_id` is null when nothing was left."""

    tasks: int
    last_task_id: int | None


def is_empty(connection: Connection) -> bool:
    """Whether no table of ours or of the existing system is there."""
    present = set(inspect(connection).get_table_names())
    return not present & set(metadata.tables)


def adopt_tasks(connection: Connection, *, after: int = 0, now: datetime | None = None) -> Batch:
    """Adopt the next tasks that have no chunk and an id above `after`, some hundreds at once.

    `now`: local time, for tasks that bear no time at all.
    """
    rows = connection.execute(_without_chunks(after)).all()
    if not rows:
        return Batch(0, None)
    first_chunk = ids.reserve(connection, ids.CHUNKS, len(rows))
    now = now or datetime.now().replace(microsecond=0)  # noqa: DTZ005 (v1's times are local)
    adopted = [_Adopted(row, first_chunk + place, now) for place, row in enumerate(rows)]
    connection.execute(chunks.insert(), [one.chunk() for one in adopted])
    live = [one.attempt() for one in adopted if one.state is ChunkState.RUNNING]
    if live:
        connection.execute(attempts.insert(), live)
    for one in adopted:
        connection.execute(update(tasks).where(tasks.c.task_id == one.row.task_id).values(**one.columns()))
    _leave_queue(connection, (one.row.task_id for one in adopted if one.settled))
    return Batch(len(rows), rows[-1].task_id)


def tidy_queue(connection: Connection) -> None:
    """Remove queue rows of tasks that don't exist, and all but the first of each task's."""
    lowest = select(func.min(queue.c.queue_id).label("queue_id")).group_by(queue.c.task_id).subquery()
    stale = connection.scalars(
        select(queue.c.queue_id)
        .outerjoin(tasks, tasks.c.task_id == queue.c.task_id)
        .outerjoin(lowest, lowest.c.queue_id == queue.c.queue_id)
        .where(tasks.c.task_id.is_(None) | lowest.c.queue_id.is_(None))
    ).all()
    if stale:
        connection.execute(delete(queue).where(queue.c.queue_id.in_(stale)))


def micros(local: datetime | None) -> int | None:
    """A local time of v1 in microseconds since 1970 UTC; null for none and for times that no clock has shown."""
    if local is None or local.year < 1971:
        return None
    try:
        return int(local.timestamp() * 1_000_000)
    except (OverflowError, ValueError, OSError):
        return None


def _without_chunks(after: int) -> Any:
    queued = select(queue.c.task_id).distinct().subquery()
    return (
        select(
            tasks.c.task_id,
            tasks.c.queue_time,
            tasks.c.start_time,
            tasks.c.end_time,
            tasks.c.is_running,
            tasks.c.is_success,
            tasks.c.machine_id,
            machines.c.machine_id.label("known_machine"),
            renders.c.file_path,
            queued.c.task_id.label("queued"),
        )
        .outerjoin(chunks, chunks.c.task_id == tasks.c.task_id)
        .outerjoin(renders, renders.c.render_id == tasks.c.render_id)
        .outerjoin(machines, machines.c.machine_id == tasks.c.machine_id)
        .outerjoin(queued, queued.c.task_id == tasks.c.task_id)
        .where(tasks.c.task_id > after, chunks.c.task_id.is_(None))
        .order_by(tasks.c.task_id)
        .limit(BATCH)
    )


def _leave_queue(connection: Connection, task_ids: Iterable[int]) -> None:
    settled = list(task_ids)
    if settled:
        connection.execute(delete(queue).where(queue.c.task_id.in_(settled)))


class _Adopted:
    """A task of the existing system and what becomes of it."""

    def __init__(self, row: Row[Any], chunk_id: int, now: datetime) -> None:
        self.row = row
        self.now = now
        self.chunk_id = chunk_id
        self.state = _state(row)
        self.queue_us = micros(row.queue_time) or micros(row.start_time) or micros(row.end_time) or micros(now) or 0

    @property
    def settled(self) -> bool:
        return self.state not in {ChunkState.WAITING, ChunkState.RUNNING}

    @property
    def _reason(self) -> str | None:
        if self.row.file_path is None and self.state is ChunkState.FAILED and self.row.end_time is None:
            return "Its render is missing in the database that it was adopted from."
        return None

    def chunk(self) -> Mapping[str, Any]:
        return {
            "chunk_id": self.chunk_id,
            "task_id": self.row.task_id,
            "kind": ChunkKind.RENDER,
            "state": self.state,
            "reason": self._reason,
        }

    def attempt(self) -> Mapping[str, Any]:
        started = micros(self.row.start_time) or self.queue_us
        return {
            "attempt_id": self.row.task_id,  # what the existing node answers with (R7.6)
            "chunk_id": self.chunk_id,
            "task_id": self.row.task_id,
            "machine_id": self.row.machine_id,
            "token": "",
            "state": AttemptState.RUNNING,
            "assigned_us": started,
            "started_us": started,
            "directory": str(PurePosixPath(self.row.file_path).parent),
        }

    def columns(self) -> Mapping[str, Any]:
        """Our columns of the task, and v1's where they contradict each other."""
        row, running = self.row, self.state is ChunkState.RUNNING
        ended = (row.end_time or row.start_time or row.queue_time or self.now) if self.settled else None
        started = None if self.state is ChunkState.WAITING else micros(row.start_time)
        return {
            "queue_us": self.queue_us,
            "start_us": started or (self.queue_us if running else None),
            "end_us": (micros(ended) or self.queue_us) if self.settled else None,
            "end_time": ended,
            "is_running": int(running),
            "is_success": int(self.state is ChunkState.SUCCEEDED),
            "canceled": int(self.state is ChunkState.CANCELED),
            "reason": self._reason,
            f"chunks_{self.state}": 1,
        } | ({"machine_id": None, "start_time": None} if self.state is ChunkState.WAITING else {})


def _state(row: Row[Any]) -> ChunkState:
    if row.end_time is not None and not row.is_running:
        return ChunkState.SUCCEEDED if row.is_success else ChunkState.FAILED
    if row.queued is None:
        if row.end_time is not None:
            return ChunkState.SUCCEEDED if row.is_success else ChunkState.FAILED
        return ChunkState.CANCELED
    if row.file_path is None:
        return ChunkState.FAILED
    if row.is_running and row.known_machine is not None:
        return ChunkState.RUNNING
    return ChunkState.WAITING
