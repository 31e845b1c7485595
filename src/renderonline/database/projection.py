"""The projection (R2 Task status): counters, v1's columns and the `queue` row follow from the chunks, in the same
transaction.

`apply` is the one function that writes them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select

from renderonline.database.rows import json_texts, texts_json, updating
from renderonline.database.schema import queue, tasks
from renderonline.farm import telling
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


@dataclass(slots=True)
class TaskState:
    """A task as a transaction finds it, and changes it; `apply` writes what follows."""

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
    warnings: tuple[str, ...]
    counters: Counters

    @classmethod
    def of(cls, values: Sequence[Any]) -> "TaskState":
        """From the values of `COLUMNS`."""
        *plain, warnings = values[: -len(_COUNTERS)]
        return cls(*(*plain, json_texts(warnings), Counters(*values[-len(_COUNTERS) :])))

    def count(self, state: ChunkState, by: int) -> None:
        """So many more of its chunks are in this state."""
        number = getattr(self.counters, state.value) + by
        if number < 0:
            raise AssertionError(f"Task {self.task_id} would count {number} chunks that are {state}.")
        self.counters = replace(self.counters, **{state.value: number})

    def warn(self, texts: Iterable[str]) -> None:
        """Something more that a person must know of its pictures (R16 No false success)."""
        self.warnings = telling.joined(self.warnings, texts)

    @property
    def status(self) -> TaskStatus:
        return task_status(self.counters, canceled=bool(self.canceled), paused=bool(self.paused))

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.status in ENDED


_COUNTERS: Final = {state: f"chunks_{state.value}" for state in ChunkState}
COLUMNS: Final = tuple(
    tasks.c[name] for name in (*(one.name for one in fields(TaskState) if one.name != "counters"), *_COUNTERS.values())
)
_LOOK: Final = select(*COLUMNS).where(tasks.c.task_id == bindparam("task_id"))
_LOCK: Final = _LOOK.with_for_update()
_KEPT: Final = ("start_us", "start_time", "end_us", "end_time", "machine_id", "paused", "canceled", "frames_done")
_WRITTEN: Final = (*_COUNTERS.values(), *_KEPT, "is_running", "is_success", "reason", "warnings")
_WRITE: Final = updating(tasks, _WRITTEN)
_UNQUEUE: Final = queue.delete().where(queue.c.task_id == bindparam("key"))
_QUEUE: Final = queue.insert()


def look(connection: Connection, task_id: int, *, lock: bool) -> TaskState | None:
    """Read a task, and lock its row; None when it is gone."""
    row = connection.execute(_LOCK if lock else _LOOK, {"task_id": task_id}).first()
    return None if row is None else TaskState.of(row)


def apply(connection: Connection, task: TaskState, moment: Moment) -> TaskState:
    """Write a changed task whose row is locked, and everything that follows; at most once a transaction and task."""
    status = task.status
    task.frames_done = max(0, task.frames_done)
    if status is TaskStatus.RUNNING and task.start_us is None and task.start_time is None:
        task.start_us, task.start_time = moment.us, moment.local
    if status in ENDED and task.end_us is None:
        task.end_us, task.end_time = moment.us, moment.local
        connection.execute(_UNQUEUE, {"key": task.task_id})
    elif status not in ENDED and task.end_us is not None:
        task.end_us = task.end_time = None
        connection.execute(_QUEUE, {"task_id": task.task_id})
    values = {name: getattr(task, name) for name in _KEPT}
    values |= {column: getattr(task.counters, state.value) for state, column in _COUNTERS.items()}
    values |= {"is_running": int(status is TaskStatus.RUNNING), "is_success": int(status is TaskStatus.SUCCEEDED)}
    values |= {"reason": task.reason or None, "warnings": texts_json(task.warnings)}
    connection.execute(_WRITE, {"key": task.task_id, **values})
    return task
