"""Tasks, chunks, attempts and results, as users see them.

Lists come in pages, newest first where time matters; `Page.next` is the cursor of the next page.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    Executable,
    Select,
    String,
    Table,
    and_,
    bindparam,
    cast,
    func,
    null,
    or_,
    select,
)

from renderonline.database.control_rows import DAY_US, KEEP_DAYS
from renderonline.database.schema import (
    FRAMES,
    LIVE_ATTEMPT,
    AnyRow,
    attempts,
    chunks,
    engines,
    frames_of,
    from_row,
    json_object,
    json_texts,
    machines,
    renders,
    results,
    tasks,
    the_row,
    users,
)
from renderonline.farm.errors import InvalidRequest, NotFound
from renderonline.farm.tasks import Counters, Landed, TaskStatus, task_status
from renderonline.protocol.existing import NEWEST_TASKS, EngineInfo, RenderInfo, TaskEntry, TaskInfo, task_not_found

T = TypeVar("T")

_MAX_PAGE: Final = 500
_LONGEST_SEARCH: Final = 200


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list, and the cursor of the next page; null on the last."""

    items: tuple[T, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks to list. `user_id` null: of all users. `status` null: any. `engine`: a name or a number. `search`: a
    task's number, or a part of its name, its file's name or its owner's e-mail."""

    user_id: int | None = None
    status: TaskStatus | None = None
    engine: str = ""
    search: str = ""


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task as its owner sees it, and the path of its file. Times are microseconds since 1970 UTC. `machine_ids`:
    machines that render a part of it now; when it has ended, the last of them. `facts`: of the scene, {} in lists;
    `unchecked`: why no machine looked at its scene before it was rendered, null: one did, or its engine can't;
    `delete_us`: when it is deleted, null: never."""

    task_id: int
    name: str
    user_id: int
    email: str
    engine: str
    engine_id: int
    status: TaskStatus
    priority: int
    running_limit: int
    paused: bool
    file_name: str
    file_path: str
    file_size: int
    arguments: Mapping[str, str]
    frames: str
    chunk_size: int
    frames_total: int
    frames_done: int
    chunks: Counters
    queue_us: int
    start_us: int | None
    end_us: int | None
    delete_us: int | None
    reason: str | None
    machine_ids: tuple[int, ...]
    notify: bool
    needs: Mapping[str, Any]
    film: str
    names: str
    deliver: str
    unchecked: str | None
    warnings: tuple[str, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChunkView:
    """A chunk. `frames`: its range, null for a chunk without frames."""

    chunk_id: int
    kind: str
    stage: int
    state: str
    frames: str | None
    place: int
    tries: int
    not_before_us: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class AttemptView:
    """An attempt; `machine` is the machine's name, "" when it is gone, the frames are its chunk's."""

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
    frames: str | None


@dataclass(frozen=True, slots=True)
class ResultView:
    """A landed file, perhaps one that is to be made again. `facts`: of the picture; `machine_id` null when the attempt
    is gone; `of_frame`: the frame that a file belongs to which is not a frame itself; `folder`: its folder below the
    task's directory."""

    name: str
    folder: str
    frame: int | None
    of_frame: int | None
    size: int
    digest: str
    crc32: int
    attempt_id: int
    machine_id: int | None
    landed_us: int
    facts: Mapping[str, Any]


class SceneFile(NamedTuple):
    """The file that a task was submitted with, its owner, the folder in which results land ("": beside it), and the
    names of results outside the farm (`farm.result_names`)."""

    user_id: int
    file_path: str
    file_name: str
    results_in: str
    names: str | None


def _present(table: Table, *names: str) -> list[ColumnElement[Any]]:
    """Columns of a table that is joined and may have no row: text is "" then, a number 0."""

    def present(column: Column[Any]) -> ColumnElement[Any]:
        if isinstance(column.type, String):
            return func.coalesce(column, "")
        return cast(func.coalesce(column, 0), BigInteger)  # MySQL would make it a decimal

    return [present(table.c[name]).label(name) for name in names]


_SCENE: Final = _present(renders, "file_name", "file_size", "engine_id")
_WITH_SCENE: Final = tasks.outerjoin(renders, renders.c.render_id == tasks.c.render_id).outerjoin(
    engines, engines.c.engine_id == renders.c.engine_id
)
_V1: Final = select(
    *(tasks.c[one.name] for one in fields(TaskInfo)),
    *(*_SCENE, *_present(renders, "arguments")),
    *_present(engines, "name", "extension", "download_path", "render_argument"),
).select_from(_WITH_SCENE)
_TASK: Final = select(
    tasks,
    *(*_SCENE, *_present(renders, "file_path")),
    renders.c["values"].label("values_json"),
    func.coalesce(engines.c.name, "").label("engine"),
    *(*_present(users, "email"), KEEP_DAYS),
).select_from(_WITH_SCENE.outerjoin(users, users.c.user_id == tasks.c.user_id))
_THIS: Final = tasks.c.task_id == bindparam("task_id")
_ONE_TASK: Final = _TASK.add_columns(renders.c.facts).where(_THIS)
_THESE: Final[BindParameter[Any]] = bindparam("ids", expanding=True)
_THESE_TASKS: Final = _TASK.add_columns(null().label("facts")).where(tasks.c.task_id.in_(_THESE))
_LIVE_ON: Final = (
    select(attempts.c.task_id, attempts.c.machine_id)
    .where(LIVE_ATTEMPT, attempts.c.task_id.in_(_THESE))
    .distinct()
    .order_by(attempts.c.machine_id)
)
_SCENE_FILE: Final = (
    select(tasks.c.user_id, *_present(renders, "file_path", "file_name"), tasks.c.results_in, tasks.c.names)
    .outerjoin(renders, renders.c.render_id == tasks.c.render_id)
    .where(_THIS)
)
_ATTEMPT: Final = (
    select(attempts, *(chunks.c[name] for name in FRAMES))
    .add_columns(func.coalesce(machines.c.name, "").label("machine"), *_present(tasks, "user_id"))
    .outerjoin(tasks, tasks.c.task_id == attempts.c.task_id)
    .outerjoin(chunks, chunks.c.chunk_id == attempts.c.chunk_id)
    .outerjoin(machines, machines.c.machine_id == attempts.c.machine_id)
)
_RESULT: Final = (
    select(results, attempts.c.machine_id)
    .outerjoin(attempts, attempts.c.attempt_id == results.c.attempt_id)
    .where(results.c.state.in_(("landed", "stale")))
)
_LANDED: Final = and_(results.c.task_id == bindparam("task_id"), results.c.state != "landing")
_LANDED_FILES: Final = select(results.c.name, results.c.folder, *(results.c[name] for name in Landed._fields)).where(
    _LANDED
)
_LANDED_FRAMES: Final = select(results.c.name, func.coalesce(results.c.frame, results.c.of_frame)).where(_LANDED)


def v1_newest(connection: Connection, user_id: int) -> tuple[TaskEntry, ...]:
    """A user's newest tasks in v1's shape, by task id descending."""
    query = _V1.where(tasks.c.user_id == user_id).order_by(tasks.c.task_id.desc()).limit(NEWEST_TASKS)
    return tuple(
        TaskEntry(
            from_row(TaskInfo, row),
            from_row(RenderInfo, row),
            from_row(EngineInfo, row),
        )
        for row in connection.execute(query)
    )


def list_tasks(
    connection: Connection, wanted: TaskFilter, *, limit: int = 50, cursor: str | None = None
) -> Page[TaskView]:
    """A page of tasks, newest first."""
    if len(wanted.search) > _LONGEST_SEARCH:
        raise InvalidRequest(f"A search has at most {_LONGEST_SEARCH} characters.")
    # The ids come from an index alone, however many tasks it passes over: only rows that are shown are read.
    found = _page(connection, _ids(wanted), tasks.c.task_id, limit, cursor, newest_first=True)
    ids = [row.task_id for row in found.items]
    rows = {row.task_id: row for row in connection.execute(_THESE_TASKS, {"ids": ids})}
    machine_ids = _live_machines(connection, ids)
    return Page(tuple(_task(rows[task_id], machine_ids) for task_id in ids), found.next)


def get_task(connection: Connection, task_id: int, *, user_id: int | None = None) -> TaskView:
    """One task; `user_id`: the owner that it must have (null: any). `NotFound` with the contract's message."""
    row = _of_task(connection, _ONE_TASK, task_id, user_id)
    return _task(row, _live_machines(connection, [task_id]))


def scene_file(connection: Connection, task_id: int, *, user_id: int | None = None) -> SceneFile:
    """Where a task's files lie and who owns them; otherwise as `get_task`."""
    return SceneFile(*_of_task(connection, _SCENE_FILE, task_id, user_id))


def _of_task(connection: Connection, query: Executable, task_id: int, user_id: int | None) -> AnyRow:
    row = connection.execute(query, {"task_id": task_id}).first() if 0 <= task_id < 2**63 else None
    if row is None or user_id not in (None, row.user_id):
        raise NotFound(task_not_found(task_id))
    return row


def list_chunks(
    connection: Connection, task_id: int, limit: int = 100, cursor: str | None = None, ids: Sequence[int] = ()
) -> Page[ChunkView]:
    """A page of a task's chunks, by id; `ids`: only these."""
    query = select(chunks).where(chunks.c.task_id == task_id, *_only(chunks.c.chunk_id, ids))
    return _each(partial(_part, ChunkView), _page(connection, query, chunks.c.chunk_id, limit, cursor))


def list_attempts(
    connection: Connection, task_id: int | None, limit: int = 100, cursor: str | None = None, ids: Sequence[int] = ()
) -> Page[AttemptView]:
    """A page of the attempts of a task (null: of all tasks), newest first; `ids`: only these."""
    query = _ATTEMPT if task_id is None else _ATTEMPT.where(attempts.c.task_id == task_id)
    query = query.where(*_only(attempts.c.attempt_id, ids))
    page = _page(connection, query, attempts.c.attempt_id, limit, cursor, newest_first=True)
    return _each(partial(_part, AttemptView), page)


def get_attempt(connection: Connection, attempt_id: int) -> AttemptView:
    """One attempt, or `NotFound`."""
    known = attempt_id if 0 <= attempt_id < 2**63 else 0
    query = _ATTEMPT.where(attempts.c.attempt_id == known)
    return _part(AttemptView, the_row(connection, query, f"There is no attempt {attempt_id}."))


def list_results(
    connection: Connection, task_id: int, limit: int = 100, cursor: str | None = None, ids: Sequence[int] = ()
) -> Page[ResultView]:
    """A page of a task's landed files, in the order of their ids; `ids`: only these."""
    query = _RESULT.where(results.c.task_id == task_id, *_only(results.c.result_id, ids))
    return _each(_result, _page(connection, query, results.c.result_id, limit, cursor))


def latest_result(connection: Connection, task_id: int) -> ResultView | None:
    """The newest landed file of a task, None when there is none."""
    newest = _RESULT.where(results.c.task_id == task_id).order_by(results.c.result_id.desc())
    row = connection.execute(newest.limit(1)).first()
    return None if row is None else _result(row)


def landed_files(connection: Connection, task_id: int) -> dict[str, Landed]:
    """The facts of all landed files of a task, by their path in its directory."""
    rows = connection.execute(_LANDED_FILES, {"task_id": task_id}).all()
    return {f"{row[1]}/{row[0]}" if row[1] else row[0]: Landed(*row[2:]) for row in rows}


def landed_file(connection: Connection, task_id: int, name: str) -> tuple[str, Landed]:
    """The path in the task's directory and the facts of the landed file of this name, or `NotFound`."""
    found = connection.execute(_LANDED_FILES.where(results.c.name == name), {"task_id": task_id})
    for its_name, folder, *facts in found:
        if its_name == name:  # MySQL compares without regard to letter case
            return f"{folder}/{name}" if folder else name, Landed(*facts)
    raise NotFound(f"Task {task_id} has no result {name}.")


def frame_numbers(connection: Connection, task_id: int, name: str = "") -> dict[str, int | None]:
    """The frame that each landed file of a task is or belongs to, by the file's name. `name`: of this file only, and
    perhaps of others."""
    query = _LANDED_FRAMES.where(results.c.name == name) if name else _LANDED_FRAMES
    return {row.name: row[1] for row in connection.execute(query, {"task_id": task_id})}


def _page(
    connection: Connection,
    query: Select[*tuple[Any, ...]],
    key: ColumnElement[int],
    limit: int,
    cursor: str | None,
    *,
    newest_first: bool = False,
) -> Page[AnyRow]:
    limit = max(1, min(limit, _MAX_PAGE))
    if cursor:
        if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 19 and int(cursor) < 2**63):
            raise InvalidRequest("The cursor does not come from this list. Start again without one.")
        query = query.where(key < int(cursor) if newest_first else key > int(cursor))
    query = query.add_columns(key.label("page_key")).order_by(key.desc() if newest_first else key.asc())
    rows = connection.execute(query.limit(limit + 1)).all()
    return Page(tuple(rows[:limit]), str(rows[limit - 1].page_key) if len(rows) > limit else None)


def _only(key: ColumnElement[int], ids: Sequence[int]) -> list[ColumnElement[bool]]:
    return [key.in_(ids)] if ids else []


def _each(view: Callable[[AnyRow], T], page: Page[AnyRow]) -> Page[T]:
    return Page(tuple(map(view, page.items)), page.next)


def _ids(wanted: TaskFilter) -> Select[tuple[int]]:
    query = select(tasks.c.task_id)
    if wanted.user_id is not None:
        query = query.where(tasks.c.user_id == wanted.user_id)
    if wanted.status is not None:
        query = query.where(tasks.c.status == wanted.status.value)
    if wanted.engine:
        named = func.lower(engines.c.name) == wanted.engine.lower()
        is_number = wanted.engine.isascii() and wanted.engine.isdigit() and len(wanted.engine) < 10
        of = or_(named, engines.c.engine_id == int(wanted.engine)) if is_number else named
        query = query.select_from(_WITH_SCENE).where(of)
    if search := wanted.search:
        theirs = select(users.c.user_id).where(users.c.email.icontains(search, autoescape=True))
        found = [tasks.c.searched.contains(search.lower(), autoescape=True), tasks.c.user_id.in_(theirs)]
        if search.isascii() and search.isdigit() and len(search) < 19:
            found.append(tasks.c.task_id == int(search))
        query = query.where(or_(*found))
    return query


def _live_machines(connection: Connection, task_ids: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """The machines that have live attempts of these tasks. Live attempts are few, however many there ever were."""
    found: dict[int, tuple[int, ...]] = {}
    for task_id, machine_id in connection.execute(_LIVE_ON, {"ids": list(task_ids)}):
        found[task_id] = (*found.get(task_id, ()), machine_id)
    return found


def _task(row: AnyRow, live: Mapping[int, tuple[int, ...]]) -> TaskView:
    counters = Counters(**{one.name: getattr(row, f"chunks_{one.name}") for one in fields(Counters)})
    last = () if row.end_us is None or row.machine_id is None else (row.machine_id,)
    return from_row(
        TaskView,
        row,
        name=row.name or row.file_name,
        delete_us=row.end_us + row.keep_days * DAY_US if row.end_us and row.keep_days else None,
        status=task_status(counters, canceled=bool(row.canceled), paused=bool(row.paused)),
        names=row.names or "",
        deliver=row.deliver or "",
        needs=json_object(row.needs),
        warnings=json_texts(row.warnings),
        facts=json_object(row.facts),
        arguments=json_object(row.values_json),
        frames=row.frames or "",
        chunks=counters,
        machine_ids=live.get(row.task_id) or last,
    )


def _part(kind: type[T], row: AnyRow) -> T:
    """A view with the frames of its chunk."""
    frames = frames_of(row.first_frame, row.last_frame, row.frame_step)
    return from_row(kind, row, frames=None if frames is None else str(frames))


def _result(row: AnyRow) -> ResultView:
    return from_row(ResultView, row, landed_us=row.landed_us or 0, facts=json_object(row.facts))
