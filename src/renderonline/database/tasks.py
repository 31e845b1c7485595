"""Tasks, chunks, attempts and results: reading them. Writing is `submissions`, `work` and `projection`.

Lists come in pages, newest first where time matters; `Page.next` is the cursor of the next one.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, or_, select

from renderonline.database.schema import attempts, chunks, engines, machines, queue, renders, results, tasks, users
from renderonline.farm.errors import InvalidRequest, NotFound
from renderonline.farm.tasks import AttemptState, Counters, TaskStatus, task_status
from renderonline.protocol.v1 import NEWEST_TASKS, EngineInfo, RenderInfo, TaskEntry, TaskInfo, task_not_found

T = TypeVar("T")

MAX_PAGE: Final = 500
_LONGEST_SEARCH: Final = 200


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list, and the cursor of the next page; null on the last."""

    items: tuple[T, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which tasks to list. `user_id` null: everybody's. `status` null: any. `engine`: a name or a number. `search`: a
    task's number, or a part of its name, its file's name or its owner's e-mail."""

    user_id: int | None = None
    status: TaskStatus | None = None
    engine: str = ""
    search: str = ""


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task as its owner sees it, and where its file lies. Times are microseconds since 1970 UTC."""

    task_id: int
    name: str
    user_id: int
    email: str
    engine: str
    engine_id: int
    status: TaskStatus
    priority: int
    paused: bool
    canceled: bool
    render_id: int
    file_name: str
    file_path: str
    file_size: int
    arguments: Mapping[str, str]
    command_line: str
    """The argument line as v1 has it."""
    frames: str
    chunk_size: int
    frames_total: int
    frames_done: int
    chunks: Counters
    is_queued: bool
    """Whether it has a row in `queue`: it waits or runs."""
    queue_us: int
    start_us: int | None
    end_us: int | None
    reason: str | None
    machine_ids: tuple[int, ...] = ()
    """Machines that have a part of it now; of a task that has ended the one that had the last."""


@dataclass(frozen=True, slots=True)
class ChunkView:
    """A chunk. `first_frame`, `last_frame`, `frame_step` are null for a chunk without frames."""

    chunk_id: int
    kind: str
    stage: int
    state: str
    first_frame: int | None
    last_frame: int | None
    frame_step: int | None
    place: int
    tries: int
    not_before_us: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class AttemptView:
    """An attempt; `machine` is the machine's name, "" when it is gone, `frames` its chunk's range."""

    attempt_id: int
    task_id: int
    user_id: int
    chunk_id: int
    machine_id: int
    machine: str
    state: str
    outcome: str | None
    assigned_us: int
    started_us: int | None
    ended_us: int | None
    exit_code: int | None
    failure: str
    reason: str | None
    peak_memory_mib: int
    first_frame: int | None
    last_frame: int | None
    frame_step: int | None


@dataclass(frozen=True, slots=True)
class ResultView:
    """A landed file. `facts`: what the picture says of itself; `machine_id` null when the attempt is gone."""

    result_id: int
    name: str
    frame: int | None
    size: int
    digest: str
    crc32: int
    attempt_id: int
    machine_id: int | None
    landed_us: int
    facts: Mapping[str, Any] = field(default_factory=dict)


# -- tasks

_TASK: Final = (
    select(
        tasks,
        users.c.email,
        engines.c.name.label("engine"),
        renders.c.file_name,
        renders.c.file_path,
        renders.c.file_size,
        renders.c.arguments,
        renders.c.engine_id,
        renders.c["values"].label("values_json"),
        select(func.count()).select_from(queue).where(queue.c.task_id == tasks.c.task_id).label("queued"),
    )
    .select_from(tasks)
    .outerjoin(renders, renders.c.render_id == tasks.c.render_id)
    .outerjoin(engines, engines.c.engine_id == renders.c.engine_id)
    .outerjoin(users, users.c.user_id == tasks.c.user_id)
)
_LIVE: Final = (AttemptState.ASSIGNED.value, AttemptState.RUNNING.value)


def v1_newest(connection: Connection, user_id: int, count: int = NEWEST_TASKS) -> tuple[TaskEntry, ...]:
    """A user's newest tasks in v1's shape, by task id descending."""
    rows = connection.execute(
        select(
            tasks.c.task_id,
            tasks.c.user_id,
            tasks.c.queue_time,
            tasks.c.start_time,
            tasks.c.end_time,
            tasks.c.is_running,
            tasks.c.is_success,
            tasks.c.render_id,
            tasks.c.machine_id,
            renders.c.file_name,
            renders.c.file_size,
            renders.c.arguments,
            renders.c.engine_id,
            engines.c.name,
            engines.c.extension,
            engines.c.download_path,
            engines.c.render_argument,
        )
        .outerjoin(renders, renders.c.render_id == tasks.c.render_id)
        .outerjoin(engines, engines.c.engine_id == renders.c.engine_id)
        .where(tasks.c.user_id == user_id)
        .order_by(tasks.c.task_id.desc())
        .limit(count)
    )
    return tuple(_v1_entry(row) for row in rows)


def list_tasks(connection: Connection, wanted: Wanted, *, limit: int = 50, cursor: str | None = None) -> Page[TaskView]:
    """A page of tasks, newest first."""
    if len(wanted.search) > _LONGEST_SEARCH:
        raise InvalidRequest(f"A search has at most {_LONGEST_SEARCH} characters.")
    query = _TASK.where(*_conditions(wanted))
    rows, following = _page(connection, query, tasks.c.task_id, limit, cursor, newest_first=True)
    machine_ids = _live_machines(connection, [row.task_id for row in rows])
    return Page(tuple(_task(row, machine_ids) for row in rows), following)


def get_task(connection: Connection, task_id: int, *, user_id: int | None = None) -> TaskView:
    """One task; `user_id` not null: it must be theirs. `NotFound` with the contract's message."""
    if not 0 <= task_id < 2**63:
        raise NotFound(task_not_found(task_id))
    query = _TASK.where(tasks.c.task_id == task_id)
    if user_id is not None:
        query = query.where(tasks.c.user_id == user_id)
    row = connection.execute(query).first()
    if row is None:
        raise NotFound(task_not_found(task_id))
    return _task(row, _live_machines(connection, [task_id]))


# -- parts of a task


def list_chunks(
    connection: Connection, task_id: int, *, limit: int = 100, cursor: str | None = None
) -> Page[ChunkView]:
    """A page of a task's chunks, by id."""
    columns = [chunks.c[one.name] for one in fields(ChunkView)]
    query = select(*columns).where(chunks.c.task_id == task_id)
    rows, following = _page(connection, query, chunks.c.chunk_id, limit, cursor)
    return Page(tuple(_chunk(row) for row in rows), following)


def list_attempts(
    connection: Connection, task_id: int, *, limit: int = 100, cursor: str | None = None
) -> Page[AttemptView]:
    """A page of a task's attempts, newest first."""
    query = _ATTEMPT.where(attempts.c.task_id == task_id)
    rows, following = _page(connection, query, attempts.c.attempt_id, limit, cursor, newest_first=True)
    return Page(tuple(_attempt(row) for row in rows), following)


def get_attempt(connection: Connection, attempt_id: int) -> AttemptView:
    """One attempt, or `NotFound`; whose it is says `user_id`."""
    row = None
    if 0 <= attempt_id < 2**63:
        row = connection.execute(_ATTEMPT.where(attempts.c.attempt_id == attempt_id)).first()
    if row is None:
        raise NotFound(f"There is no attempt {attempt_id}.")
    return _attempt(row)


def list_results(
    connection: Connection, task_id: int, *, limit: int = 100, cursor: str | None = None
) -> Page[ResultView]:
    """A page of a task's landed files, in the order in which they were announced."""
    query = _RESULT.where(results.c.task_id == task_id)
    rows, following = _page(connection, query, results.c.result_id, limit, cursor)
    return Page(tuple(_result(row) for row in rows), following)


def get_result(connection: Connection, task_id: int, name: str) -> ResultView:
    """One landed file of a task by its name, or `NotFound`."""
    rows = connection.execute(_RESULT.where(results.c.task_id == task_id, results.c.name == name))
    row = next((row for row in rows if row.name == name), None)  # MySQL compares without regard to letter case
    if row is None:
        raise NotFound(f"Task {task_id} has no result {name}.")
    return _result(row)


def landed_files(connection: Connection, task_id: int) -> dict[str, ResultView]:
    """All landed files of a task by name: their sizes and CRCs, for an archive."""
    found = connection.execute(_RESULT.where(results.c.task_id == task_id).order_by(results.c.result_id))
    return {row.name: _result(row) for row in found}


_ATTEMPT: Final = (
    select(
        attempts,
        tasks.c.user_id,
        machines.c.name.label("machine"),
        chunks.c.first_frame,
        chunks.c.last_frame,
        chunks.c.frame_step,
    )
    .select_from(attempts)
    .outerjoin(tasks, tasks.c.task_id == attempts.c.task_id)
    .outerjoin(chunks, chunks.c.chunk_id == attempts.c.chunk_id)
    .outerjoin(machines, machines.c.machine_id == attempts.c.machine_id)
)
_RESULT: Final = (
    select(results, attempts.c.machine_id)
    .select_from(results)
    .outerjoin(attempts, attempts.c.attempt_id == results.c.attempt_id)
    .where(results.c.state == "landed")
)


# -- how


def _page(
    connection: Connection,
    query: Select[Any],
    key: ColumnElement[int],
    limit: int,
    cursor: str | None,
    *,
    newest_first: bool = False,
) -> tuple[list[Row[*tuple[Any, ...]]], str | None]:
    limit = max(1, min(limit, MAX_PAGE))
    if cursor:
        if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 19 and int(cursor) < 2**63):
            raise InvalidRequest("The cursor is none that this list has given. Start again without one.")
        query = query.where(key < int(cursor) if newest_first else key > int(cursor))
    order: Callable[[], Any] = key.desc if newest_first else key.asc
    rows = list(connection.execute(query.order_by(order()).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    rows = rows[:limit]
    return rows, str(getattr(rows[-1], str(getattr(key, "name"))))  # noqa: B009


def _conditions(wanted: Wanted) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.user_id is not None:
        conditions.append(tasks.c.user_id == wanted.user_id)
    if wanted.status is not None:
        conditions.append(_has_status(wanted.status))
    if wanted.engine:
        named = func.lower(engines.c.name) == wanted.engine.lower()
        is_number = wanted.engine.isascii() and wanted.engine.isdigit() and len(wanted.engine) < 10
        conditions.append(or_(named, engines.c.engine_id == int(wanted.engine)) if is_number else named)
    if wanted.search:
        conditions.append(_matches(wanted.search))
    return conditions


def _matches(search: str) -> ColumnElement[bool]:
    found = [column.icontains(search, autoescape=True) for column in (tasks.c.name, renders.c.file_name, users.c.email)]
    if search.isascii() and search.isdigit() and len(search) < 19:
        found.append(tasks.c.task_id == int(search))
    return or_(*found)


def _has_status(status: TaskStatus) -> ColumnElement[bool]:
    """`farm.tasks.task_status` as a condition."""
    if status is TaskStatus.CANCELED:
        return tasks.c.canceled != 0
    live = tasks.c.chunks_assigned + tasks.c.chunks_running
    settled = tasks.c.chunks_waiting + live == 0
    bad = tasks.c.chunks_failed + tasks.c.chunks_canceled
    waits = and_(tasks.c.chunks_waiting > 0, live == 0)
    condition = {
        TaskStatus.FAILED: and_(settled, bad > 0),
        TaskStatus.SUCCEEDED: and_(settled, bad == 0),
        TaskStatus.RUNNING: live > 0,
        TaskStatus.PAUSED: and_(waits, tasks.c.paused != 0),
        TaskStatus.QUEUED: and_(waits, tasks.c.paused == 0),
    }[status]
    return and_(tasks.c.canceled == 0, condition)


def _live_machines(connection: Connection, task_ids: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """Which machines have live attempts of these tasks. Live attempts are few, however many there ever were."""
    wanted = set(task_ids)
    if not wanted:
        return {}
    rows = connection.execute(
        select(attempts.c.task_id, attempts.c.machine_id)
        .where(attempts.c.state.in_(_LIVE), attempts.c.task_id.in_(wanted))
        .distinct()
        .order_by(attempts.c.machine_id)
    )
    found: dict[int, tuple[int, ...]] = {}
    for row in rows:
        found[row.task_id] = (*found.get(row.task_id, ()), row.machine_id)
    return found


def counters_of(row: Row[*tuple[Any, ...]]) -> Counters:
    """The counters in a row of `tasks`."""
    return Counters(**{one.name: getattr(row, f"chunks_{one.name}") for one in fields(Counters)})


def _task(row: Row[*tuple[Any, ...]], live: Mapping[int, tuple[int, ...]]) -> TaskView:
    counters = counters_of(row)
    last = (row.machine_id,) if row.machine_id is not None else ()
    return TaskView(
        task_id=row.task_id,
        name=row.name or row.file_name or "",
        user_id=row.user_id,
        email=row.email or "",
        engine=row.engine or "",
        engine_id=row.engine_id or 0,
        status=task_status(counters, canceled=bool(row.canceled), paused=bool(row.paused)),
        priority=row.priority,
        paused=bool(row.paused),
        canceled=bool(row.canceled),
        render_id=row.render_id,
        file_name=row.file_name or "",
        file_path=row.file_path or "",
        file_size=row.file_size or 0,
        arguments=_object(row.values_json),
        command_line=row.arguments or "",
        frames=row.frames or "",
        chunk_size=row.chunk_size,
        frames_total=row.frames_total,
        frames_done=row.frames_done,
        chunks=counters,
        is_queued=row.queued > 0,
        queue_us=row.queue_us,
        start_us=row.start_us,
        end_us=row.end_us,
        reason=row.reason,
        machine_ids=live.get(row.task_id) or (last if row.end_us is not None else ()),
    )


def _v1_entry(row: Row[*tuple[Any, ...]]) -> TaskEntry:
    return TaskEntry(
        task=TaskInfo(
            task_id=row.task_id,
            user_id=row.user_id,
            queue_time=row.queue_time,
            start_time=row.start_time,
            end_time=row.end_time,
            is_running=bool(row.is_running),
            is_success=bool(row.is_success),
            render_id=row.render_id,
            machine_id=row.machine_id,
        ),
        render=RenderInfo(
            render_id=row.render_id,
            file_name=row.file_name or "",
            file_size=row.file_size or 0,
            arguments=row.arguments or "",
            engine_id=row.engine_id or 0,
        ),
        engine=EngineInfo(
            engine_id=row.engine_id or 0,
            name=row.name or "",
            extension=row.extension or "",
            download_path=row.download_path or "",
            render_argument=row.render_argument or "",
        ),
    )


def _chunk(row: Row[*tuple[Any, ...]]) -> ChunkView:
    return ChunkView(**{one.name: getattr(row, one.name) for one in fields(ChunkView)})


def _attempt(row: Row[*tuple[Any, ...]]) -> AttemptView:
    values = {one.name: getattr(row, one.name) for one in fields(AttemptView)}
    return AttemptView(**{**values, "machine": row.machine or "", "user_id": row.user_id or 0})


def _result(row: Row[*tuple[Any, ...]]) -> ResultView:
    values = {one.name: getattr(row, one.name) for one in fields(ResultView)}
    return ResultView(**{**values, "landed_us": row.landed_us or 0, "facts": _object(row.facts)})


def _object(text: str | None) -> dict[str, Any]:
    """A JSON object of a column; empty when there is none."""
    if not text:
        return {}
    value = json.loads(text)
    return value if isinstance(value, dict) else {}
