"""What people do to tasks: cancel, delete, pause, resume, change, retry, make a film; and how long tasks stay.

Each operation locks the task's row and can be repeated. `user_id` is the owner that the task must have (None: any);
`NotFound` when the task does not exist or has another owner.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import BigInteger, Connection, bindparam, cast, func, select

from renderonline.database.queue_rows import BLOCKED
from renderonline.database.schema import (
    attempts,
    chunks,
    deliveries,
    frames_of,
    inputs,
    json_object,
    queue,
    renders,
    results,
    subscriptions,
    tasks,
    update,
    users,
    waits_for,
)
from renderonline.database.statements import portions
from renderonline.database.submission_rows import check_limit
from renderonline.database.task_rows import MAKE_STALE, Moment, Sheet, TaskRow, keep_bytes, look
from renderonline.farm import needs
from renderonline.farm.errors import Conflict, InvalidRequest, NotFound
from renderonline.farm.frames import format_frames
from renderonline.farm.result_names import Film
from renderonline.farm.tasks import LIVE, AttemptState, ChunkKind, ChunkState, Outcome, TaskStatus, searched

CONDEMNED: Final = 2
"""The value of `tasks.canceled` while a task is being deleted: its files may be gone, so its rows must follow."""
_OPEN: Final = (ChunkState.WAITING, *sorted(LIVE))
_FRESH: Final = {"tries": 0, "not_before_us": 0, "reason": None}
_MADE: Final = select(*(results.c[name] for name in ("chunk_id", "result_id", "frame", "of_frame", "state"))).where(
    results.c.state.in_(("landing", "landed"))
)
_A_FRAME: Final = select(results.c.result_id).where(results.c.frame.is_not(None), results.c.state != "landing").limit(1)
_NOW, _AT_THE_END = 0, 1
"""The stages of a task's films."""
_AGAIN: Final = (ChunkState.WAITING, ChunkState.FAILED, ChunkState.CANCELED)
"""Chunks in these states start again when a task is retried."""


class Selection(NamedTuple):
    """The chunks (by id) and frames of a task that are to be rendered again, in any state. Neither: the whole task."""

    chunk_ids: frozenset[int] = frozenset()
    frames: frozenset[int] = frozenset()


class StoppedAttempt(NamedTuple):
    """An attempt that was ended because of its task."""

    attempt_id: int
    machine_id: int
    directory: str


@dataclass(frozen=True, slots=True)
class Acted:
    """A changed task, and the attempts that its machines have to stop. `landing`: results that are to be made again are
    landing just now; repeat the operation when they have landed."""

    state: TaskRow
    stopped: tuple[StoppedAttempt, ...] = ()
    landing: bool = False


def cancel_task(
    connection: Connection, task_id: int, moment: Moment, *, user_id: int | None, queued: bool = False
) -> Acted:
    """Take a task from the queue; `Conflict` (code `not_in_queue`) when it ended otherwise, or (`queued`) at all."""
    sheet, task = _opened(connection, task_id, moment, user_id)
    if task.ended and (queued or not task.canceled):
        raise Conflict(f"Task with identifier {task_id} is not in the queue.", code="not_in_queue")
    return Acted(task) if task.ended else _cancel(sheet, task)


def _cancel(sheet: Sheet, task: TaskRow, mark: int = 1, reason: str = "Canceled.") -> Acted:
    stopped = _stop(sheet, attempts.c.task_id == task.task_id, "the task was canceled")
    sheet.move_all(task.task_id, _OPEN, ChunkState.CANCELED)
    task.canceled, task.reason = mark, reason
    sheet.flush()
    return Acted(task, stopped)


def _stop(sheet: Sheet, which: Any, reason: str) -> tuple[StoppedAttempt, ...]:
    """End these attempts if they are live; that does not count as a failure."""
    stopped = _attempts(sheet.connection, which & (attempts.c.state != AttemptState.ENDED.value))
    ended = {"state": AttemptState.ENDED.value, "outcome": Outcome.CANCELED.value, "ended_us": sheet.moment.us}
    if stopped:
        by_id = attempts.c.attempt_id.in_([attempt.attempt_id for attempt in stopped])
        sheet.connection.execute(attempts.update().where(by_id).values(**ended, reason=reason))
    return stopped


def _attempts(connection: Connection, which: Any) -> tuple[StoppedAttempt, ...]:
    columns = (attempts.c.attempt_id, attempts.c.machine_id, attempts.c.directory)
    query = select(*columns).where(which).order_by(attempts.c.attempt_id)
    return tuple(StoppedAttempt(*row) for row in connection.execute(query))


@dataclass(frozen=True, slots=True)
class Condemned:
    """A task that is about to be deleted, and what it has on disks. `had_ended`: it had ended before; `shared`: another
    task uses its render."""

    canceled: Acted
    had_ended: bool
    scene: str
    file_name: str
    attempts: tuple[StoppedAttempt, ...]
    shared: bool


def condemn_task(
    connection: Connection, task_id: int, moment: Moment, *, user_id: int | None, only_ended: bool = False
) -> Condemned:
    """First step of deleting: take the task from the queue, mark it, and return what is to be removed from disks.
    `only_ended`: `Conflict` when it has not ended, or a task that has not ended waits for it.

    It can be repeated: a task that is marked and still there was interrupted between the steps (`list_condemned`).
    """
    sheet, task = _opened(connection, task_id, moment, user_id)
    if only_ended and not may_go(connection, task_id):
        raise Conflict(f"Task {task_id} is still needed.")
    had_ended = task.ended
    canceled = _cancel(sheet, task, CONDEMNED, "It is being deleted.")
    files = select(renders.c.file_path, renders.c.file_name).where(renders.c.render_id == task.render_id)
    scene, file_name = connection.execute(files).first() or ("", "")
    tried = _attempts(connection, attempts.c.task_id == task_id)
    return Condemned(
        canceled=canceled,
        had_ended=had_ended,
        scene=scene,
        file_name=file_name,
        attempts=tried,
        shared=_is_shared(connection, task),
    )


def list_condemned(connection: Connection) -> tuple[int, ...]:
    """Tasks whose deletion has begun and has not ended."""
    return tuple(connection.scalars(select(tasks.c.task_id).where(tasks.c.canceled == CONDEMNED)))


def _is_shared(connection: Connection, task: TaskRow) -> bool:
    others = (tasks.c.render_id == task.render_id) & (tasks.c.task_id != task.task_id)
    return connection.scalar(select(tasks.c.task_id).where(others).limit(1)) is not None


def delete_task(connection: Connection, task_id: int) -> None:
    """Second step: delete the rows. Since the first step no attempt of the task can have started."""
    task = look(connection, task_id, lock=True)
    if task is None:
        return
    shared = _is_shared(connection, task)
    keep_bytes(connection, {task.user_id: -int(connection.scalar(_ITS_SIZE, {"task": task_id}) or 0)})
    of_task = [table.c.task_id for table in (deliveries, results, attempts, chunks, inputs, queue, waits_for, tasks)]
    for column in (*of_task, waits_for.c.waits_for_task_id):
        connection.execute(column.table.delete().where(column == task_id))
    if not shared:
        connection.execute(renders.delete().where(renders.c.render_id == task.render_id))


def pause_task(
    connection: Connection, task_id: int, moment: Moment, *, paused: bool, now: bool = False, user_id: int | None
) -> Acted:
    """Start no chunk of a task any more, or go on; `now`: running chunks are stopped and wait. `Conflict` when it has
    ended."""
    sheet, task = _opened(connection, task_id, moment, user_id)
    if task.ended:
        raise Conflict(f"Task {task_id} has ended; there is nothing to pause or resume.")
    sheet.task(task_id).paused = int(paused)
    stopped: tuple[StoppedAttempt, ...] = ()
    if now and task.counters.live:
        stopped = _stop(sheet, attempts.c.task_id == task_id, "the task was paused")
        sheet.move_all(task_id, LIVE, ChunkState.WAITING)
    sheet.flush()
    return Acted(task, stopped)


def note_check(
    connection: Connection,
    task_id: int,
    moment: Moment,
    *,
    unchecked: str | None,
    warnings: Sequence[str],
    failure: str,
) -> TaskRow | None:
    """Store what a machine found in a task's scene, or (`unchecked`) why none looked at it; None when the task is gone.
    `failure`: why the task is not to be rendered; a task that is being rendered already goes on."""
    sheet = Sheet(connection, moment)
    if sheet.lock_task(task_id) is None:
        return None
    task = sheet.task(task_id)
    task.unchecked = unchecked
    task.warn(warnings)
    if failure and not task.ended and not task.counters.live:
        sheet.move_all(task_id, (ChunkState.WAITING,), ChunkState.CANCELED)
        task.reason = failure
    sheet.flush()
    return task


def change_task(
    connection: Connection, task_id: int, moment: Moment, *, changes: Mapping[str, Any], user_id: int | None
) -> Acted:
    """Change name, priority or running_limit, also of a task that has ended."""
    _, task = _opened(connection, task_id, moment, user_id)
    if (name := changes.get("name")) is not None:
        file_name = connection.scalar(select(renders.c.file_name).where(renders.c.render_id == task.render_id))
        changes = {**changes, "searched": searched(name, file_name or "")}
    update(connection, tasks, task_id, changes)
    return Acted(task)


def requeue_task(
    connection: Connection, task_id: int, moment: Moment, *, selection: Selection | None = None, user_id: int | None
) -> Acted:
    """Put chunks back to waiting, with all their tries: those that failed, were canceled or wait after a failure; or
    the `selection`, also chunks that run or succeeded. Results that are to be made again become stale, and their files
    stay until the next ones have landed; a chunk that renders a selected frame for the first time goes on.

    A task that had ended counts against its user's queue limit again (`LimitReached`); one that was paused goes on; one
    that was canceled is canceled again at the end, unless all of its canceled chunks are put back.
    `Conflict` when nothing failed, `InvalidRequest` for chunks and frames that the task does not have.
    """
    sheet, task = _opened(connection, task_id, moment, user_id)
    if selection is None and task.status is TaskStatus.SUCCEEDED:
        raise Conflict(f"No part of task {task_id} failed. To render it again: renderonline requeue {task_id}")
    _count_again(connection, task)
    wanted = _selected(connection, task_id, selection)
    dropped = [result for _, made in wanted for result in made]
    stopped: tuple[StoppedAttempt, ...] = ()
    by_state: dict[ChunkState, list[int]] = defaultdict(list)
    for chunk, _ in wanted:
        by_state[ChunkState(chunk.state)].append(chunk.chunk_id)
    for state, chunk_ids in by_state.items():
        for ids in portions(chunk_ids) if state in LIVE else ():
            stopped += _stop(sheet, attempts.c.chunk_id.in_(ids), "it is to be rendered again")
        sheet.move_all(task_id, (state,), ChunkState.WAITING, chunk_ids=chunk_ids, **_FRESH)
    for ids in portions([result.result_id for result in dropped]):
        connection.execute(MAKE_STALE.where(results.c.result_id.in_(ids)))
        # Files that no attempt landed are written in their place: nothing is known of them until they are whole again.
        nobodys = (results.c.result_id.in_(ids), results.c.attempt_id == 0)
        sheet.kept[task.user_id] -= int(connection.scalar(select(func.sum(results.c.size)).where(*nobodys)) or 0)
        connection.execute(results.delete().where(*nobodys))
    sheet.task(task_id).frames_done -= sum(_frames_lost(chunk, made) for chunk, made in wanted)
    task.paused = 0
    task.canceled = int(task.canceled and task.counters.canceled > 0)
    if selection is not None and not any(selection):  # the old warnings are about pictures that are all replaced
        task.warnings = needs.of_scene(_facts(connection, task), sum(not _is_film(chunk) for chunk, _ in wanted))
    if not (task.counters.failed or task.counters.canceled):
        task.reason = None
    sheet.flush()
    return Acted(task, stopped, landing=any(result.state == "landing" for result in dropped))


def _count_again(connection: Connection, task: TaskRow) -> None:
    if task.canceled == CONDEMNED:
        raise Conflict(f"Task {task.task_id} is being deleted.")
    if task.ended:
        check_limit(connection, task.user_id, lock=True)


def _selected(connection: Connection, task_id: int, selection: Selection | None) -> list[tuple[Any, Sequence[Any]]]:
    """The chunks that are to be rendered again, each with its results that become stale; lowest stages first."""
    parts = select(chunks).where(chunks.c.task_id == task_id).order_by(chunks.c.stage, chunks.c.chunk_id)
    known = connection.execute(parts).all()
    if selection is None:
        lowest = next((chunk.stage for chunk in known if chunk.state in _AGAIN), None)
        later = (lowest is not None and chunk.stage > lowest for chunk in known)
        return [(chunk, ()) for chunk, is_later in zip(known, later, strict=True) if is_later or chunk.state in _AGAIN]
    unknown = set(selection.frames)
    results_of: dict[int, list[Any]] = defaultdict(list)
    for result in connection.execute(_MADE.where(results.c.task_id == task_id)):
        results_of[result.chunk_id].append(result)
    found: list[tuple[Any, Sequence[Any]]] = []
    for chunk in known:
        made, frames = results_of[chunk.chunk_id], selection.frames.intersection(_frames(chunk))
        unknown -= frames
        # A later stage uses the results of the earlier ones.
        whole = chunk.chunk_id in selection.chunk_ids or bool(found and chunk.stage > found[0][0].stage)
        whole = whole or not (any(selection) or _is_film(chunk))
        if not whole and any(result.frame is not None for result in made):
            made = [result for result in made if result.frame in frames or result.of_frame in frames]
        if whole or (frames and (made or chunk.state not in LIVE)):
            found.append((chunk, made))
    if unknown:
        raise InvalidRequest(f"Task {task_id} has no frame {format_frames(sorted(unknown))[:60]}.")
    if missing := selection.chunk_ids.difference(chunk.chunk_id for chunk in known):
        raise InvalidRequest(f"Task {task_id} has no chunk {min(missing)}: see renderonline logs {task_id} --list")
    return found


def film_task(connection: Connection, task_id: int, moment: Moment, *, film: Film, user_id: int | None) -> Acted:
    """Make a film of the frames that have landed; while others are still to come, a second one when all are there.

    A task that had ended counts against its user's queue limit again (`LimitReached`); one that was canceled is
    canceled again at the end. One that is paused stays so while frames are to come, but its film is made at once.
    `Conflict` without frames.
    """
    sheet, task = _opened(connection, task_id, moment, user_id)
    if not task.frames_done or connection.scalar(_A_FRAME.where(results.c.task_id == task_id)) is None:
        raise Conflict(
            f"No frame of task {task_id} has landed yet: there is nothing to make a film of.", code="no_frames"
        )
    _count_again(connection, task)
    update(connection, tasks, task_id, {"film": str(film.of_scene(_facts(connection, task)))})
    known = connection.execute(select(chunks).where(chunks.c.task_id == task_id)).all()
    films = {chunk.stage: chunk for chunk in known if _is_film(chunk)}
    stopped: tuple[StoppedAttempt, ...] = ()
    rendering = any(chunk.state in _OPEN and not _is_film(chunk) for chunk in known)
    for stage in (_NOW, _AT_THE_END) if rendering else (_AT_THE_END,):
        if (chunk := films.get(stage)) is not None:
            stopped += _stop(sheet, attempts.c.chunk_id == chunk.chunk_id, "the film is made again")
            state = ChunkState(chunk.state)
            sheet.move_all(task_id, (state,), ChunkState.WAITING, chunk_ids=(chunk.chunk_id,), **_FRESH)
        else:
            new = {"kind": ChunkKind.FILM.value, "stage": stage, "state": ChunkState.WAITING.value}
            sheet.add_chunks(task_id, [new])
    if not rendering:
        task.paused = 0
    task.canceled = int(task.canceled and task.counters.canceled > 0)
    sheet.flush()
    return Acted(task, stopped)


def _facts(connection: Connection, task: TaskRow) -> dict[str, Any]:
    """The facts of the task's scene."""
    return json_object(connection.scalar(select(renders.c.facts).where(renders.c.render_id == task.render_id)))


def _is_film(chunk: Any) -> bool:
    return bool(chunk.kind == ChunkKind.FILM)


def _frames(chunk: Any) -> range:
    frames = frames_of(chunk.first_frame, chunk.last_frame, chunk.frame_step)
    return frames.frames() if frames is not None else range(0)


def _frames_lost(chunk: Any, dropped: Sequence[Any]) -> int:
    """How many frames are not done any more; where the engine names no files they were counted with their chunk."""
    if chunk.state == ChunkState.SUCCEEDED and all(result.frame is None for result in dropped):
        return len(_frames(chunk))
    return sum(result.frame is not None and result.state == "landed" for result in dropped)


def _opened(connection: Connection, task_id: int, moment: Moment, user_id: int | None) -> tuple[Sheet, TaskRow]:
    """A task whose row is locked, to be changed."""
    sheet = Sheet(connection, moment)
    return sheet, _owned(sheet.lock_task(task_id), task_id, user_id)


def _owned(task: TaskRow | None, task_id: int, user_id: int | None) -> TaskRow:
    if task is None or user_id not in (None, task.user_id):
        raise NotFound(f"Task {task_id} does not exist.")
    return task


@dataclass(frozen=True, slots=True)
class Story:
    """Why a task is in its state: the reasons of its chunks, the tasks that it waits for, and the failure class of its
    newest failed attempt ("" unless the task failed)."""

    state: TaskRow
    reasons: tuple[str, ...]
    blocked_by: tuple[int, ...]
    failure: str


def task_story(connection: Connection, task_id: int, *, user_id: int | None) -> Story:
    """What the database knows about a task's state."""
    task = _owned(look(connection, task_id), task_id, user_id)
    blocked = connection.scalars(BLOCKED.where(waits_for.c.task_id == task_id))
    failure = ""
    if task.status is TaskStatus.FAILED:
        failed = select(attempts.c.failure).where(attempts.c.task_id == task_id, attempts.c.failure != "")
        failure = connection.scalar(failed.order_by(attempts.c.attempt_id.desc()).limit(1)) or ""
    return Story(task, tuple(dict.fromkeys(_reasons(connection, task))), tuple(blocked), failure)


def _reasons(connection: Connection, task: TaskRow) -> list[str]:
    """The reasons of a few of a task's chunks, the first of them first. Its chunks that wait are not all looked at: one
    that failed before is among those that were tried lately."""
    its = {"task": task.task_id}
    found = {row.chunk_id: row.reason for row in connection.execute(_TRIED_LATELY, its)}
    if task.counters.failed or task.counters.canceled:
        first, last = connection.execute(_SPAN, its).one()
        for state in (ChunkState.FAILED, ChunkState.CANCELED):
            rows = connection.execute(_IN_STATE, {**its, "state": state.value, "first": first, "last": last})
            found |= {row.chunk_id: row.reason for row in rows}
    return [found[chunk_id] for chunk_id in sorted(found)[:_REASONS]]


_REASONS: Final = 5
_LATELY: Final = 1000
"""How many of a task's newest attempts are searched for what went wrong."""
_ITS: Final = chunks.c.task_id == bindparam("task")
_OF_ITS: Final = select(chunks.c.chunk_id, chunks.c.reason).where(_ITS, chunks.c.reason.is_not(None))
_NEWEST: Final = (
    select(attempts.c.chunk_id)
    .where(attempts.c.task_id == bindparam("task"))
    .order_by(attempts.c.attempt_id.desc())
    .limit(_LATELY)
    .subquery()
)
_TRIED_LATELY: Final = (
    _OF_ITS.where(chunks.c.chunk_id.in_(select(_NEWEST.c.chunk_id))).order_by(chunks.c.chunk_id).limit(_REASONS)
)
_SPAN: Final = select(
    select(func.min(chunks.c.chunk_id)).where(_ITS).scalar_subquery(),
    select(func.max(chunks.c.chunk_id)).where(_ITS).scalar_subquery(),
)
_IN_STATE: Final = (
    _OF_ITS.where(chunks.c.state == bindparam("state"))
    .where(chunks.c.chunk_id.between(bindparam("first"), bindparam("last")))
    .order_by(chunks.c.chunk_id)
    .limit(_REASONS)
)


DAY_US: Final = 24 * 3600 * 1_000_000
_later = tasks.alias("later")
_WAITED_FOR: Final = (
    select(waits_for.c.task_id)
    .join(_later, _later.c.task_id == waits_for.c.task_id)
    .where(waits_for.c.waits_for_task_id == tasks.c.task_id, _later.c.end_us.is_(None))
)
_MAY_GO: Final = tasks.c.end_us.is_not(None) & ~_WAITED_FOR.exists()
_INPUT_SIZE: Final = select(func.sum(inputs.c.size)).where(inputs.c.task_id == tasks.c.task_id).scalar_subquery()
_RESULT_SIZE: Final = select(func.sum(results.c.size)).where(results.c.task_id == tasks.c.task_id).scalar_subquery()
_SIZE: Final = cast(func.coalesce(_INPUT_SIZE, renders.c.file_size, 0) + func.coalesce(_RESULT_SIZE, 0), BigInteger)
_SCENES: Final = tasks.outerjoin(renders, renders.c.render_id == tasks.c.render_id)
_STORED: Final = (
    select(tasks.c.task_id, _SIZE, _MAY_GO)
    .select_from(_SCENES)
    .where(tasks.c.user_id == bindparam("user"))
    .order_by(tasks.c.end_us, tasks.c.task_id)
)
_ITS_SIZE: Final = select(_SIZE).select_from(_SCENES).where(tasks.c.task_id == bindparam("task"))
_TAKEN: Final = select(func.sum(_SIZE)).select_from(_SCENES).where(tasks.c.user_id == users.c.user_id)
KEPT_BYTES: Final = cast(func.coalesce(_TAKEN.correlate(users).scalar_subquery(), 0), BigInteger)
"""How many bytes all tasks of a user take, added up; `users.kept_bytes` says it without adding."""
_MINE: Final = select(subscriptions.c.keep_days).join(users, users.c.subscription_id == subscriptions.c.subscription_id)
KEEP_DAYS: Final = _MINE.where(users.c.user_id == tasks.c.user_id).correlate(tasks).scalar_subquery().label("keep_days")
"""How many days a task stays after its end, by its owner's subscription."""
_END: Final = bindparam("now", type_=BigInteger) - cast(KEEP_DAYS, BigInteger) * DAY_US
_DUE: Final = select(tasks.c.task_id).where(KEEP_DAYS > 0, tasks.c.end_us < _END, _MAY_GO).limit(1000)
_ONE: Final = select(tasks.c.task_id).where(tasks.c.task_id == bindparam("task"), _MAY_GO)


class StoredTask(NamedTuple):
    """How many bytes a task's inputs and results take, and whether it may be deleted: it and all tasks that wait for it
    have ended."""

    task_id: int
    size: int
    may_go: bool


def stored_tasks(connection: Connection, user_id: int) -> tuple[StoredTask, ...]:
    """The tasks of a user, in the order of their ends."""
    return tuple(StoredTask(*row) for row in connection.execute(_STORED, {"user": user_id}))


def count_kept_bytes(connection: Connection) -> None:
    """Recount how many bytes the tasks of each user take."""
    connection.execute(users.update().values(kept_bytes=KEPT_BYTES))


def expired(connection: Connection, now_us: int) -> tuple[int, ...]:
    """Tasks that have stayed for their `keep_days` and may be deleted, at most a thousand."""
    return tuple(connection.scalars(_DUE, {"now": now_us}))


def may_go(connection: Connection, task_id: int) -> bool:
    """Whether a task has ended and nothing waits for it."""
    return connection.scalar(_ONE, {"task": task_id}) is not None


def gone(connection: Connection, kind: Literal["task", "attempt"], ids: Collection[int]) -> frozenset[int]:
    """These tasks or attempts without those that the database has."""
    column = tasks.c.task_id if kind == "task" else attempts.c.attempt_id
    known = (connection.scalars(select(column).where(column.in_(part))) for part in portions(sorted(ids)))
    return frozenset(ids).difference(*known)
