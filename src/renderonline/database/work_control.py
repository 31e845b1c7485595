"""What people do to tasks: cancel, delete, pause, resume, try again. One operation each, guarded by the task's row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, select

from renderonline.database.projection import Change, Moment, TaskRow, TaskState, apply_locked, lock, look, state_of
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


@dataclass(frozen=True, slots=True)
class Stopped:
    """An attempt that was live when its task was taken away."""

    attempt_id: int
    machine_id: int
    directory: str


@dataclass(frozen=True, slots=True)
class Canceled:
    """A task that was canceled, and what is to be stopped."""

    state: TaskState
    stopped: tuple[Stopped, ...] = ()


def cancel_task(connection: Connection, task_id: int, moment: Moment, *, user_id: int | None = None) -> Canceled:
    """Take a task from the queue. `user_id`: whose it must be (None: anybody's).

    `NotFound` when it is not there or not theirs, `Conflict` (code `not_in_queue`) when it has ended.
    """
    row = _locked(connection, task_id, user_id)
    if state_of(row).ended:
        raise Conflict(f"Task with identifier {task_id} is not in the queue.", code=NOT_QUEUED)
    return _cancel(connection, row, moment)


def _cancel(connection: Connection, row: TaskRow, moment: Moment) -> Canceled:
    stopped = _live(connection, row.task_id)
    if stopped:
        connection.execute(
            attempts.update()
            .where(attempts.c.attempt_id.in_([one.attempt_id for one in stopped]))
            .values(
                state=AttemptState.ENDED.value,
                outcome=Outcome.CANCELED.value,
                ended_us=moment.us,
                reason="the task was canceled",
            )
        )
    connection.execute(
        chunks.update()
        .where(chunks.c.task_id == row.task_id, chunks.c.state.in_([state.value for state in _OPEN]))
        .values(state=ChunkState.CANCELED.value)
    )
    counters = state_of(row).counters
    deltas = {state: -getattr(counters, state.value) for state in _OPEN}
    deltas[ChunkState.CANCELED] = -sum(deltas.values())
    state = apply_locked(connection, row, Change(deltas, canceled=True, reason="Canceled."), moment)
    return Canceled(state, stopped)


def _live(connection: Connection, task_id: int) -> tuple[Stopped, ...]:
    query = (
        select(attempts.c.attempt_id, attempts.c.machine_id, attempts.c.directory)
        .where(attempts.c.task_id == task_id, attempts.c.state != AttemptState.ENDED.value)
        .order_by(attempts.c.attempt_id)
    )
    return tuple(Stopped(row.attempt_id, row.machine_id, row.directory) for row in connection.execute(query))


@dataclass(frozen=True, slots=True)
class Condemned:
    """A task that is about to be deleted, and what of it lies on disks. `shared`: another task uses its render."""

    canceled: Canceled
    scene: str
    attempts: tuple[Stopped, ...]
    shared: bool = False


def condemn_task(connection: Connection, task_id: int, moment: Moment, *, user_id: int | None = None) -> Condemned:
    """First step of deleting: take the task from the queue, and say what is to be removed from disks.

    It can be repeated: a stop between the steps leaves a canceled task that is deleted again.
    """
    row = _locked(connection, task_id, user_id)
    state = state_of(row)
    canceled = Canceled(state) if state.ended else _cancel(connection, row, moment)
    scene = connection.scalar(select(renders.c.file_path).where(renders.c.render_id == row.render_id))
    users_of_render = connection.scalar(select(func.count()).select_from(tasks).where(_same_render(row)))
    every = connection.execute(
        select(attempts.c.attempt_id, attempts.c.machine_id, attempts.c.directory).where(attempts.c.task_id == task_id)
    )
    tried = tuple(Stopped(one.attempt_id, one.machine_id, one.directory) for one in every)
    return Condemned(canceled, scene or "", tried, bool(users_of_render))


def _same_render(row: TaskRow) -> Any:
    return (tasks.c.render_id == row.render_id) & (tasks.c.task_id != row.task_id)


def delete_task(connection: Connection, task_id: int) -> bool:
    """Second step: the rows. Whether the task was there."""
    row = lock(connection, (task_id,)).get(task_id)
    if row is None:
        return False
    for table in (results, attempts, chunks, queue):
        connection.execute(table.delete().where(table.c.task_id == task_id))
    connection.execute(
        waits_for.delete().where((waits_for.c.task_id == task_id) | (waits_for.c.waits_for_task_id == task_id))
    )
    if not connection.scalar(select(func.count()).select_from(tasks).where(_same_render(row))):
        connection.execute(renders.delete().where(renders.c.render_id == row.render_id))
    connection.execute(tasks.delete().where(tasks.c.task_id == task_id))
    return True


def pause_task(
    connection: Connection, task_id: int, moment: Moment, *, paused: bool, user_id: int | None = None
) -> TaskState:
    """Start nothing new of a task, or go on. `Conflict` when it has ended."""
    row = _locked(connection, task_id, user_id)
    if state_of(row).ended:
        raise Conflict(f"Task {task_id} has ended; there is nothing to pause or resume.")
    return apply_locked(connection, row, Change({}, paused=paused), moment)


def retry_task(connection: Connection, task_id: int, moment: Moment, *, user_id: int | None = None) -> TaskState:
    """Put failed and canceled chunks back to waiting, and let those that wait start at once.

    A task that had ended counts against its user's queue limit again (`LimitReached`). `Conflict` when there is
    nothing to try again.
    """
    row = _locked(connection, task_id, user_id)
    state = state_of(row)
    again = {ChunkState.FAILED: state.counters.failed, ChunkState.CANCELED: state.counters.canceled}
    if not any(again.values()) and not state.counters.waiting:
        raise Conflict(f"Task {task_id} has no failed or canceled part that could be tried again.")
    if state.ended:
        _check_limit(connection, row.user_id)
    connection.execute(
        chunks.update()
        .where(
            chunks.c.task_id == task_id,
            chunks.c.state.in_([ChunkState.WAITING.value, *(key.value for key in again)]),
        )
        .values(state=ChunkState.WAITING.value, tries=0, not_before_us=0, reason=None)
    )
    deltas = {key: -count for key, count in again.items()} | {ChunkState.WAITING: sum(again.values())}
    return apply_locked(connection, row, Change(deltas, canceled=False, paused=False, reason=""), moment)


def _check_limit(connection: Connection, user_id: int) -> None:
    limit = connection.scalar(
        select(subscriptions.c.queue_limit)
        .select_from(users.join(subscriptions, subscriptions.c.subscription_id == users.c.subscription_id))
        .where(users.c.user_id == user_id)
        .with_for_update()
    )
    queued = connection.scalar(
        select(func.count())
        .select_from(queue.join(tasks, tasks.c.task_id == queue.c.task_id))
        .where(tasks.c.user_id == user_id)
    )
    if limit is not None and (queued or 0) >= limit:
        raise LimitReached(f"Queue limit {limit} reached for your subscription.")


def _locked(connection: Connection, task_id: int, user_id: int | None) -> TaskRow:
    return _theirs(lock(connection, (task_id,)).get(task_id), task_id, user_id)


def _theirs(row: TaskRow | None, task_id: int, user_id: int | None) -> TaskRow:
    if row is None or user_id not in (None, row.user_id):
        raise NotFound(f"Task {task_id} does not exist.")
    return row


# -- what `explain` needs to know

_STATES: Final = (
    select(chunks.c.reason, chunks.c.tries, chunks.c.state)
    .where(chunks.c.task_id == bindparam("task_id"), chunks.c.reason.is_not(None))
    .order_by(chunks.c.chunk_id)
    .limit(5)
)


@dataclass(frozen=True, slots=True)
class Story:
    """What is known of a task in the database: where it stands, and the latest reasons of its chunks."""

    state: TaskState
    paused: bool
    priority: int
    reasons: tuple[str, ...] = ()
    blocked_by: tuple[int, ...] = ()


def task_story(connection: Connection, task_id: int, *, user_id: int | None = None) -> Story:
    """What `explain` tells; `NotFound` when it is not there or not theirs."""
    row = _theirs(look(connection, (task_id,)).get(task_id), task_id, user_id)
    state = state_of(row)
    reasons: Sequence[Any] = connection.execute(_STATES, {"task_id": task_id}).all()
    blocked = connection.execute(
        select(waits_for.c.waits_for_task_id)
        .select_from(waits_for.join(tasks, tasks.c.task_id == waits_for.c.waits_for_task_id))
        .where(waits_for.c.task_id == task_id, tasks.c.is_success == 0)
    )
    priority = connection.scalar(select(tasks.c.priority).where(tasks.c.task_id == task_id))
    return Story(
        state,
        bool(row.paused),
        priority or 0,
        tuple(dict.fromkeys(one.reason for one in reasons)),
        tuple(blocked.scalars()),
    )
