"""The projection (R2): counters, v1's columns and the `queue` row follow from the chunks, in the same transaction.

`apply` is the one function that writes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select

from renderonline.database.schema import queue, tasks
from renderonline.farm.tasks import ChunkState, Counters, TaskStatus, task_status

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
    """A task as a transaction finds it, or leaves it."""

    task_id: int
    user_id: int
    render_id: int
    start_us: int | None
    start_time: datetime | None
    end_us: int | None
    end_time: datetime | None
    machine_id: int | None
    paused: int
    canceled: int
    frames_total: int
    frames_done: int
    reason: str | None
    counters: Counters

    @classmethod
    def of(cls, values: Sequence[Any]) -> "TaskState":
        """From the values of `COLUMNS`."""
        return cls(*(*values[: -len(_COUNTERS)], Counters(*values[-len(_COUNTERS) :])))

    @property
    def status(self) -> TaskStatus:
        return task_status(self.counters, canceled=bool(self.canceled), paused=bool(self.paused))

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.status in ENDED


@dataclass(slots=True)
class Change:
    """What one transaction does to one task: `deltas` and `frames_done` are added, `values` take the place of a task's
    `machine_id`, `reason`, `paused` or `canceled`."""

    deltas: dict[ChunkState, int] = field(default_factory=dict)
    frames_done: int = 0
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, state: ChunkState, count: int) -> None:
        """Count so many chunks more in this state."""
        self.deltas[state] = self.deltas.get(state, 0) + count


_COUNTERS: Final = {state: f"chunks_{state.value}" for state in ChunkState}
COLUMNS: Final = tuple(
    tasks.c[name] for name in (*(one.name for one in fields(TaskState) if one.name != "counters"), *_COUNTERS.values())
)
_LOOK: Final = select(*COLUMNS).where(tasks.c.task_id == bindparam("task_id"))
_LOCK: Final = _LOOK.with_for_update()
_KEPT: Final = ("start_us", "start_time", "end_us", "end_time", "machine_id", "paused", "canceled", "frames_done")
_WRITTEN: Final = (*_COUNTERS.values(), *_KEPT, "is_running", "is_success", "reason")
_WRITE: Final = (
    tasks.update().where(tasks.c.task_id == bindparam("key")).values({name: bindparam(name) for name in _WRITTEN})
)
_UNQUEUE: Final = queue.delete().where(queue.c.task_id == bindparam("key"))
_QUEUE: Final = queue.insert()


def look(connection: Connection, task_id: int, *, lock: bool) -> TaskState | None:
    """Read a task, and lock its row; None when it is gone."""
    row = connection.execute(_LOCK if lock else _LOOK, {"task_id": task_id}).first()
    return None if row is None else TaskState.of(row)


def apply(connection: Connection, row: TaskState, change: Change, moment: Moment) -> TaskState:
    """Change a task whose row is locked, and write everything that follows; at most once a transaction and task."""
    done = max(0, row.frames_done + change.frames_done)
    after = replace(row, counters=added(row, change), frames_done=done, **change.values)
    status = after.status
    if status is TaskStatus.RUNNING and row.start_us is None and row.start_time is None:
        after = replace(after, start_us=moment.us, start_time=moment.local)
    if status in ENDED and row.end_us is None:
        after = replace(after, end_us=moment.us, end_time=moment.local)
        connection.execute(_UNQUEUE, {"key": row.task_id})
    elif status not in ENDED and row.end_us is not None:
        after = replace(after, end_us=None, end_time=None)
        connection.execute(_QUEUE, {"task_id": row.task_id})
    values = {name: getattr(after, name) for name in _KEPT}
    values |= {column: getattr(after.counters, state.value) for state, column in _COUNTERS.items()}
    values |= {"is_running": int(status is TaskStatus.RUNNING), "is_success": int(status is TaskStatus.SUCCEEDED)}
    connection.execute(_WRITE, {"key": row.task_id, "reason": after.reason or None, **values})
    return after


def added(row: TaskState, change: Change) -> Counters:
    """A task's counters with a change."""
    if not change.deltas:
        return row.counters
    values = {state.value: getattr(row.counters, state.value) + change.deltas.get(state, 0) for state in ChunkState}
    if any(value < 0 for value in values.values()):
        raise AssertionError(f"Task {row.task_id} would count {values} chunks.")
    return Counters(**values)
