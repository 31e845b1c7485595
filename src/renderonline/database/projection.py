"""The projection (R2): counters, v1's columns and the `queue` row follow from the chunks, in the same transaction.

`apply` is the one function that writes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, select

from renderonline.database.schema import queue, tasks
from renderonline.farm.errors import NotFound
from renderonline.farm.tasks import ChunkState, Counters, TaskStatus, task_status

_COUNTERS: Final = {state: f"chunks_{state.value}" for state in ChunkState}


@dataclass(frozen=True, slots=True)
class TaskRow:
    """What the projection reads of a task."""

    task_id: int
    user_id: int
    render_id: int
    start_us: int | None
    start_time: datetime | None
    end_us: int | None
    end_time: datetime | None
    machine_id: int | None
    paused: bool
    canceled: bool
    frames_total: int
    frames_done: int
    reason: str | None
    counters: Counters


_PLAIN: Final = tuple(field.name for field in fields(TaskRow) if field.name != "counters")
COLUMNS: Final = tuple(tasks.c[name] for name in (*_PLAIN, *_COUNTERS.values()))
"""The columns that `task_row` reads, in its order."""
_LOOK: Final = select(*COLUMNS).where(tasks.c.task_id.in_(bindparam("ids", expanding=True))).order_by(tasks.c.task_id)
_LOCK: Final = _LOOK.with_for_update()
_WRITE: Final = (
    tasks.update()
    .where(tasks.c.task_id == bindparam("key"))
    .values(
        {
            name: bindparam(name)
            for name in (
                *_COUNTERS.values(),
                "is_running",
                "is_success",
                "start_us",
                "start_time",
                "end_us",
                "end_time",
                "machine_id",
                "paused",
                "canceled",
                "frames_done",
                "reason",
            )
        }
    )
)
_UNQUEUE: Final = queue.delete().where(queue.c.task_id == bindparam("key"))
_QUEUE: Final = queue.insert()

ENDED: Final = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELED})


@dataclass(frozen=True, slots=True)
class Moment:
    """When a transaction's changes happen: microseconds since 1970 UTC, and the server's local time for v1."""

    us: int
    local: datetime

    @classmethod
    def at(cls, seconds: float) -> "Moment":
        """The moment `seconds` after 1970 UTC."""
        local = datetime.fromtimestamp(seconds, UTC).astimezone().replace(tzinfo=None, microsecond=0)
        return cls(int(seconds * 1_000_000), local)


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task after a change."""

    task_id: int
    user_id: int
    status: TaskStatus
    counters: Counters
    frames_total: int
    frames_done: int
    reason: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.status in ENDED


@dataclass(slots=True)
class Change:
    """What one transaction does to one task. `frames_done` and `deltas` are added; None leaves a value as it is."""

    deltas: dict[ChunkState, int]
    frames_done: int = 0
    machine_id: int | None = None
    reason: str | None = None
    paused: bool | None = None
    canceled: bool | None = None


def task_row(values: Sequence[Any]) -> TaskRow:
    """A task from the values of `COLUMNS`."""
    plain = len(_PLAIN)
    return TaskRow(*(*values[:plain], Counters(*values[plain:])))


def lock(connection: Connection, task_ids: Iterable[int]) -> dict[int, TaskRow]:
    """Lock the rows of these tasks in the order of their ids; those that are gone are left out."""
    return _rows(connection, _LOCK, task_ids)


def look(connection: Connection, task_ids: Iterable[int]) -> dict[int, TaskRow]:
    """`lock` without a lock, for those who only read."""
    return _rows(connection, _LOOK, task_ids)


def _rows(connection: Connection, query: Select[Any], task_ids: Iterable[int]) -> dict[int, TaskRow]:
    ids = sorted(set(task_ids))
    return {row.task_id: task_row(row) for row in connection.execute(query, {"ids": ids})} if ids else {}


def apply(
    connection: Connection,
    task_id: int,
    deltas: Mapping[ChunkState, int],
    *,
    now_us: int,
    local_now: datetime,
    machine_id: int | None = None,
    frames_done: int = 0,
    canceled: bool | None = None,
    paused: bool | None = None,
    reason: str | None = None,
) -> TaskState:
    """Add `deltas` to a task's counters and write everything that follows from them. `NotFound` when it is gone."""
    row = lock(connection, (task_id,)).get(task_id)
    if row is None:
        raise NotFound(f"Task {task_id} does not exist.")
    change = Change(dict(deltas), frames_done, machine_id, reason, paused, canceled)
    return apply_locked(connection, row, change, Moment(now_us, local_now))


def apply_locked(connection: Connection, row: TaskRow, change: Change, moment: Moment) -> TaskState:
    """`apply` for a row that `lock` gave in the same transaction; at most once a transaction and task."""
    counters = _added(row, change.deltas)
    canceled = bool(row.canceled) if change.canceled is None else change.canceled
    paused = bool(row.paused) if change.paused is None else change.paused
    status = task_status(counters, canceled=canceled, paused=paused)
    frames_done = max(0, row.frames_done + change.frames_done)
    reason = row.reason if change.reason is None else change.reason or None
    connection.execute(
        _WRITE,
        {
            "key": row.task_id,
            **{column: getattr(counters, state.value) for state, column in _COUNTERS.items()},
            "is_running": int(status is TaskStatus.RUNNING),
            "is_success": int(status is TaskStatus.SUCCEEDED),
            **_times(row, status, moment),
            "machine_id": row.machine_id if change.machine_id is None else change.machine_id,
            "paused": int(paused),
            "canceled": int(canceled),
            "frames_done": frames_done,
            "reason": reason,
        },
    )
    _write_queue(connection, row, status)
    return TaskState(row.task_id, row.user_id, status, counters, row.frames_total, frames_done, reason)


def state_of(row: TaskRow) -> TaskState:
    """The state of a task as a row that `lock` gave says it."""
    counters = _added(row, {})
    status = task_status(counters, canceled=bool(row.canceled), paused=bool(row.paused))
    return TaskState(row.task_id, row.user_id, status, counters, row.frames_total, row.frames_done, row.reason)


def _added(row: TaskRow, deltas: Mapping[ChunkState, int]) -> Counters:
    if not deltas:
        return row.counters
    values = {state.value: getattr(row.counters, state.value) + deltas.get(state, 0) for state in ChunkState}
    if any(value < 0 for value in values.values()):
        raise AssertionError(f"Task {row.task_id} would count {values} chunks.")
    return Counters(**values)


def _times(row: TaskRow, status: TaskStatus, moment: Moment) -> dict[str, Any]:
    """Start is the first time that a machine got something; end the moment when nothing was left."""
    times = {"start_us": row.start_us, "start_time": row.start_time, "end_us": None, "end_time": None}
    if row.start_us is None and row.start_time is None and status is TaskStatus.RUNNING:
        times |= {"start_us": moment.us, "start_time": moment.local}
    if status not in ENDED:
        return times
    if row.end_us is None:
        return times | {"end_us": moment.us, "end_time": moment.local}
    return times | {"end_us": row.end_us, "end_time": row.end_time}


def _write_queue(connection: Connection, row: TaskRow, status: TaskStatus) -> None:
    if status in ENDED and row.end_us is None:
        connection.execute(_UNQUEUE, {"key": row.task_id})
    elif status not in ENDED and row.end_us is not None:
        connection.execute(_QUEUE, {"task_id": row.task_id})
