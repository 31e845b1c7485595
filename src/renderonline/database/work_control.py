"""What people do to tasks: cancel, delete, pause, resume, try again. One operation each, guarded by the task's row.

`user_id` is whose the task must be (None: anybody's); `NotFound` when it is not there or not theirs.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, func, select

from renderonline.database.projection import Change, Moment, TaskState, apply, look
from renderonline.database.schema import (
    attempts,
    chunks,
    queue,
    renders,
    results,
    subscriptions,
    tasks,
    users,
    waits_for,
)
from renderonline.farm.errors import Conflict, LimitReached, NotFound
from renderonline.farm.tasks import AttemptState, ChunkState, Outcome

NOT_QUEUED: Final = "not_in_queue"
_OPEN: Final = (ChunkState.WAITING, ChunkState.ASSIGNED, ChunkState.RUNNING)
_AGAIN: Final = (ChunkState.FAILED, ChunkState.CANCELED)


class Stopped(NamedTuple):
    """An attempt whose task is taken away."""

    attempt_id: int
    machine_id: int
    directory: str


@dataclass(frozen=True, slots=True)
class Canceled:
    """A task that was canceled, and what is to be stopped."""

    state: TaskState
    stopped: tuple[Stopped, ...] = ()


def cancel_task(connection: Connection, task_id: int, moment: Moment, *, user_id: int | None) -> Canceled:
    """Take a task from the queue; `Conflict` (code `not_in_queue`) when it has ended."""
    row = _theirs(connection, task_id, user_id)
    if row.ended:
        raise Conflict(f"Task with identifier {task_id} is not in the queue.", code=NOT_QUEUED)
    return _cancel(connection, row, moment)


def _cancel(connection: Connection, row: TaskState, moment: Moment) -> Canceled:
    live = (attempts.c.task_id == row.task_id) & (attempts.c.state != AttemptState.ENDED.value)
    stopped = _attempts(connection, live)
    ended = {"state": AttemptState.ENDED.value, "outcome": Outcome.CANCELED.value, "ended_us": moment.us}
    if stopped:
        by_id = attempts.c.attempt_id.in_([one.attempt_id for one in stopped])
        connection.execute(attempts.update().where(by_id).values(**ended, reason="the task was canceled"))
    open_chunks = (chunks.c.task_id == row.task_id) & chunks.c.state.in_(_OPEN)
    connection.execute(chunks.update().where(open_chunks).values(state=ChunkState.CANCELED.value))
    deltas = {state: -getattr(row.counters, state.value) for state in _OPEN}
    deltas[ChunkState.CANCELED] = -sum(deltas.values())
    change = Change(deltas, values={"canceled": 1, "reason": "Canceled."})
    return Canceled(apply(connection, row, change, moment), stopped)


def _attempts(connection: Connection, which: Any) -> tuple[Stopped, ...]:
    columns = (attempts.c.attempt_id, attempts.c.machine_id, attempts.c.directory)
    query = select(*columns).where(which).order_by(attempts.c.attempt_id)
    return tuple(Stopped(*row) for row in connection.execute(query))


@dataclass(frozen=True, slots=True)
class Condemned:
    """A task that is about to be deleted, and what of it lies on disks. `shared`: another task uses its render."""

    canceled: Canceled
    scene: str
    attempts: tuple[Stopped, ...]
    shared: bool


def condemn_task(connection: Connection, task_id: int, moment: Moment, *, user_id: int | None) -> Condemned:
    """First step of deleting: take the task from the queue, and say what is to be removed from disks.

    It can be repeated: a stop between the steps leaves a canceled task that is deleted again.
    """
    row = _theirs(connection, task_id, user_id)
    canceled = Canceled(row) if row.ended else _cancel(connection, row, moment)
    scene = connection.scalar(select(renders.c.file_path).where(renders.c.render_id == row.render_id)) or ""
    tried = _attempts(connection, attempts.c.task_id == task_id)
    return Condemned(canceled, scene, tried, _is_shared(connection, row))


def _is_shared(connection: Connection, row: TaskState) -> bool:
    others = (tasks.c.render_id == row.render_id) & (tasks.c.task_id != row.task_id)
    return connection.scalar(select(tasks.c.task_id).where(others).limit(1)) is not None


def delete_task(connection: Connection, task_id: int) -> None:
    """Second step: the rows."""
    row = look(connection, task_id, lock=True)
    if row is None:
        return
    shared = _is_shared(connection, row)
    for column in (
        *(table.c.task_id for table in (results, attempts, chunks, queue, waits_for, tasks)),
        waits_for.c.waits_for_task_id,
    ):
        connection.execute(column.table.delete().where(column == task_id))
    if not shared:
        connection.execute(renders.delete().where(renders.c.render_id == row.render_id))


def pause_task(connection: Connection, task_id: int, moment: Moment, *, paused: bool, user_id: int | None) -> TaskState:
    """Start nothing new of a task, or go on. `Conflict` when it has ended."""
    row = _theirs(connection, task_id, user_id)
    if row.ended:
        raise Conflict(f"Task {task_id} has ended; there is nothing to pause or resume.")
    return apply(connection, row, Change(values={"paused": int(paused)}), moment)


def retry_task(connection: Connection, task_id: int, moment: Moment, *, user_id: int | None) -> TaskState:
    """Put failed and canceled chunks back to waiting, and let those that wait start at once.

    A task that had ended counts against its user's queue limit again (`LimitReached`). `Conflict` when there is
    nothing to try again.
    """
    row = _theirs(connection, task_id, user_id)
    again = {state: -getattr(row.counters, state.value) for state in _AGAIN}
    if not any(again.values()) and not row.counters.waiting:
        raise Conflict(f"Task {task_id} has no failed or canceled part that could be tried again.")
    if row.ended:
        _check_limit(connection, row.user_id)
    which = (chunks.c.task_id == task_id) & chunks.c.state.in_((ChunkState.WAITING, *_AGAIN))
    fresh = {"state": ChunkState.WAITING.value, "tries": 0, "not_before_us": 0, "reason": None}
    connection.execute(chunks.update().where(which).values(fresh))
    deltas = {**again, ChunkState.WAITING: -sum(again.values())}
    return apply(connection, row, Change(deltas, values={"canceled": 0, "paused": 0, "reason": None}), moment)


def _check_limit(connection: Connection, user_id: int) -> None:
    limit = connection.scalar(
        select(subscriptions.c.queue_limit)
        .join(users, subscriptions.c.subscription_id == users.c.subscription_id)
        .where(users.c.user_id == user_id)
        .with_for_update()
    )
    theirs = select(func.count()).select_from(queue.join(tasks, tasks.c.task_id == queue.c.task_id))
    queued = connection.scalar(theirs.where(tasks.c.user_id == user_id)) or 0
    if limit is not None and queued >= limit:
        raise LimitReached(f"Queue limit {limit} reached for your subscription.")


def _theirs(connection: Connection, task_id: int, user_id: int | None, *, lock: bool = True) -> TaskState:
    row = look(connection, task_id, lock=lock)
    if row is None or user_id not in (None, row.user_id):
        raise NotFound(f"Task {task_id} does not exist.")
    return row


@dataclass(frozen=True, slots=True)
class Story:
    """What `explain` tells of a task: where it stands, the reasons of its chunks, the tasks that it waits for."""

    state: TaskState
    reasons: tuple[str, ...]
    blocked_by: tuple[int, ...]


def task_story(connection: Connection, task_id: int, *, user_id: int | None) -> Story:
    """What is known of a task in the database."""
    row = _theirs(connection, task_id, user_id, lock=False)
    told = select(chunks.c.reason).where(chunks.c.task_id == task_id, chunks.c.reason.is_not(None))
    reasons = connection.execute(told.order_by(chunks.c.chunk_id).limit(5)).scalars()
    blocked = connection.execute(
        select(waits_for.c.waits_for_task_id)
        .join(tasks, tasks.c.task_id == waits_for.c.waits_for_task_id)
        .where(waits_for.c.task_id == task_id, tasks.c.is_success == 0)
    ).scalars()
    return Story(row, tuple(dict.fromkeys(reasons)), tuple(blocked))
