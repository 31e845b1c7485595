"""What a submission is checked against; submitting a task, within the user's limit and exactly once
(R4.1 Submit once); and leasing its chunks to machines.

Each function is one operation of a group commit: it locks and reads the rows that it changes (tasks, then chunks, then
attempts, each in the order of ids), applies the pure rules of `farm`, and writes by key.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Table, bindparam, func, select

from renderonline.database.queue_rows import AttemptFacts, QueuedChunk, TaskFacts, is_at_once, load_facts
from renderonline.database.schema import (
    FRAMES,
    argtypes,
    attempts,
    bound,
    chunks,
    engines,
    inputs,
    inserting,
    queue,
    renders,
    results,
    shape_of,
    submissions,
    subscriptions,
    tasks,
    texts_json,
    users,
    waits_for,
)
from renderonline.database.statements import Statement, portions
from renderonline.database.task_rows import MAKE_STALE, ChunkRow, Moment, Sheet, TaskRow, keep_bytes, landed_frames
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import InvalidRequest, LimitReached, NotAuthenticated
from renderonline.farm.frames import FrameRange, covering, cut, parse_frames
from renderonline.farm.needs import NOTHING, Needs
from renderonline.farm.tasks import ChunkKind, ChunkState, InputFile, searched
from renderonline.protocol.link import encode

_REMEMBERED_US: Final = 7 * 24 * 3600 * 1_000_000
"""How long a submission's key is known at least: 7 days."""
REMEMBERED: Final = 1000
"""The keys of this many of the newest tasks are known longer, so that no key is lost when the clock jumps."""
_KEY_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class NewEngine:
    """An engine to add. `definition` is the TOML of its definition; null for an engine of the existing system, which
    has a template alone. `download_path` is where its uploaded files go."""

    name: str
    extension: str
    download_path: str
    render_argument: str
    definition: str | None = None
    is_enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow(NewEngine):
    """An engine of the farm."""

    engine_id: int


_OF_ENGINE: Final = (
    *("engine_id", "name", "extension", "download_path", "render_argument", "definition", "is_enabled"),
)
_ENGINES: Final = Statement(select(*(engines.c[name] for name in _OF_ENGINE)).order_by(engines.c.engine_id))
_ARGTYPES: Final = Statement(
    select(argtypes.c.argtype_id, argtypes.c.type, argtypes.c.regex).order_by(argtypes.c.argtype_id)
)
_NAMES: Final = Statement(
    select(subscriptions.c.names).where(subscriptions.c.subscription_id == bindparam("subscription"))
)


def list_engines(connection: Connection) -> tuple[EngineRow, ...]:
    """All engines by id."""
    return tuple(
        EngineRow(**dict(zip(_OF_ENGINE, row, strict=True)) | {"is_enabled": bool(row[-1])})
        for row in _ENGINES.every(connection)
    )


def list_argtypes(connection: Connection) -> tuple[ArgType, ...]:
    """All argument types by id."""
    return tuple(ArgType(name, kind, regex or "") for name, kind, regex in _ARGTYPES.every(connection))


def names_of(connection: Connection, subscription_id: int | None) -> str:
    """A subscription's template for the names of results, "" for none."""
    found = _NAMES.first(connection, {"subscription": subscription_id})
    return str(found[0]) if found else ""


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk to make. `frames` is null for a chunk without frames; `stage`: ready when all lower ones succeeded."""

    chunk_id: int
    frames: FrameRange | None
    kind: ChunkKind = ChunkKind.RENDER
    stage: int = 0


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to make; everything in it has been checked, and its file lies at `file_path`.

    `arguments`: the engine's argument line for v1 readers. `values`, `template`: JSON (object, list of words).
    `frames`: canonical range, "" without frames. `queue_time` is local (R1.2 Stored times). `chunks` are in the order
    of rendering; `results_in`: the folder of the task's directory for its results ("": beside the scene).
    """

    user_id: int
    engine_id: int
    file_name: str
    file_path: str
    file_size: int
    arguments: str
    values: str
    template: str
    queue_us: int
    queue_time: datetime
    chunks: Sequence[NewChunk]
    frames: str = ""
    frames_total: int = 0
    chunk_size: int = 0
    name: str = ""
    priority: int = 50
    paused: bool = False
    client_key: str = ""
    waits_for: Sequence[int] = ()
    notify: bool = False
    needs: Needs = NOTHING
    running_limit: int = 0
    inputs: Sequence[InputFile] = ()
    facts: str | None = None
    film: str = ""
    warnings: Sequence[str] = ()
    results_in: str = ""
    strict: bool = False
    unchecked: str | None = None
    names: str = ""
    deliver: str = ""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A task in the database. `repeated`: it was there before, by the same key; nothing was stored."""

    task_id: int
    repeated: bool = False


# Built once: SQLAlchemy takes longer to build a statement than SQLite to run it.
_SAME_KEY: Final = (submissions.c.user_id == bindparam("user"), submissions.c.client_key == bindparam("key"))
_FIND: Final = Statement(select(submissions.c.task_id, submissions.c.client_key).where(*_SAME_KEY))
_OF_ACCOUNT: Final = (
    select(users.c.is_active, subscriptions.c.queue_limit)
    .outerjoin(subscriptions, subscriptions.c.subscription_id == users.c.subscription_id)
    .where(users.c.user_id == bindparam("user"))
)
_ACCOUNT: Final = Statement(_OF_ACCOUNT)
_LOCK_ACCOUNT: Final = Statement(_OF_ACCOUNT.with_for_update())
_UNSETTLED: Final = select(func.count()).select_from(
    select(queue.c.queue_id)
    .join(tasks, tasks.c.task_id == queue.c.task_id)
    .where(tasks.c.user_id == bindparam("user"), tasks.c.end_us.is_(None))
    .limit(bindparam("most"))
    .subquery()
)
_QUEUED: Final = Statement(_UNSETTLED)
_BEFORE: Final = Statement(
    select(
        _UNSETTLED.scalar_subquery(),
        select(chunks.c.task_id).where(chunks.c.chunk_id == bindparam("chunk")).scalar_subquery(),
        select(submissions.c.task_id).where(*_SAME_KEY).scalar_subquery(),
    )
)
"""Everything that `submit` checks before it writes, in one round trip; after the account is locked."""
_OF_RENDER: Final = ("file_name", "file_path", "file_size", "arguments", "engine_id", "values", "template", "facts")
_OF_TASK: Final = (
    *("user_id", "name", "priority", "queue_us", "chunk_size", "frames_total", "running_limit", "film", "results_in"),
)
_MORE_OF_TASK: Final = (
    *("queue_time", "is_running", "is_success", "render_id", "paused", "notify", "strict", "unchecked", "needs"),
    *("frames", "names", "deliver", "warnings", "chunks_waiting", "searched"),
)
_OF_INPUT: Final = ("name", "size", "crc32", "digest")
_OF_CHUNK: Final = ("task_id", "state", "place", "chunk_id", "kind", "stage", *FRAMES)


def _adding(table: Table, *names: str) -> Statement:
    return Statement(table.insert().values(bound(names)))


_ADD_RENDER: Final = _adding(renders, *_OF_RENDER)
_ADD_TASK: Final = _adding(tasks, *_OF_TASK, *_MORE_OF_TASK)
_ADD_CHUNKS: Final = _adding(chunks, *_OF_CHUNK)
_ADD_TO_QUEUE: Final = _adding(queue, "task_id")
_ADD_INPUTS: Final = _adding(inputs, "task_id", *_OF_INPUT)
_ADD_KEY: Final = _adding(submissions, "user_id", "client_key", "task_id", "created_us")
_INPUTS: Final = (
    select(*(inputs.c[name] for name in _OF_INPUT))
    .where(inputs.c.task_id == bindparam("task"))
    .order_by(inputs.c.input_id)
)


def find(connection: Connection, user_id: int, client_key: str) -> Submitted | None:
    """The task that this user submitted with this key, None after `forget_old` has removed it."""
    if not client_key:
        return None
    task_id, key = _FIND.first(connection, {"user": user_id, "key": client_key}) or (0, "")
    return Submitted(task_id, repeated=True) if key == client_key else None


def check_limit(connection: Connection, user_id: int, *, lock: bool = False) -> None:
    """Raise `LimitReached` when the user may have no further task. `lock`: and lock the account."""
    _, limit = (_LOCK_ACCOUNT if lock else _ACCOUNT).first(connection, {"user": user_id}) or (0, 0)
    queued = _QUEUED.first(connection, {"user": user_id, "most": limit or 0})
    assert queued is not None
    _check_limit(limit or 0, queued[0])


def submit(connection: Connection, new: NewTask) -> Submitted:
    """Put a task into the database: render, task, chunks, queue row, what it waits for, the client's key.

    `LimitReached` with the contract's message, `NotAuthenticated` when the account is not active any more,
    `InvalidRequest` for tasks to wait for that don't exist.
    """
    if len(new.client_key) > _KEY_LENGTH:
        raise InvalidRequest(f"The key of a submission (Idempotency-Key) has at most {_KEY_LENGTH} characters.")
    # Two submissions of one user go one after the other, on whatever connections (R3.3 Database sessions).
    is_active, limit = _LOCK_ACCOUNT.first(connection, {"user": new.user_id}) or (0, 0)
    limit, key = limit or 0, {"user": new.user_id, "key": new.client_key}
    before = _BEFORE.first(connection, {**key, "most": limit, "chunk": new.chunks[0].chunk_id})
    assert before is not None
    queued, committed, same_key = before
    # The same operation: only the answer to its commit was lost (R3.2 Repeatable operations).
    if committed is not None:
        return Submitted(committed)
    if is_active != 1:
        raise NotAuthenticated("Your account is not active any more.")
    if same_key is not None:
        known = find(connection, new.user_id, new.client_key)
        if known is not None:
            return known
        connection.execute(submissions.delete().where(*_SAME_KEY), key)  # for MySQL another letter case is the same key
    _check_limit(limit, queued)
    _check_waits(connection, new)
    render_id = _ADD_RENDER.add(connection, {name: getattr(new, name) for name in _OF_RENDER})
    task_id = _ADD_TASK.add(connection, _task_row(new, render_id))
    same = {"task_id": task_id, "state": ChunkState.WAITING}
    for places in portions(range(len(new.chunks))):
        parts = ((place, new.chunks[place]) for place in places)
        _ADD_CHUNKS.run(connection, [{**same, "place": place, **_chunk_row(chunk)} for place, chunk in parts])
    _ADD_TO_QUEUE.run(connection, [{"task_id": task_id}])
    if new.waits_for:
        others = [{"task_id": task_id, "waits_for_task_id": other} for other in sorted(set(new.waits_for))]
        connection.execute(inserting(waits_for), others)
    add_inputs(connection, task_id, new.inputs)
    keep_bytes(connection, {new.user_id: sum(file.size for file in new.inputs) if new.inputs else new.file_size})
    if new.client_key:
        row = {"user_id": new.user_id, "client_key": new.client_key, "task_id": task_id, "created_us": new.queue_us}
        _ADD_KEY.run(connection, [row])
    return Submitted(task_id)


def add_inputs(connection: Connection, task_id: int, files: Sequence[InputFile]) -> None:
    """Store the facts of the files that a task was submitted with."""
    for some in portions(files):
        rows = [{"task_id": task_id, **{name: getattr(file, name) for name in _OF_INPUT}} for file in some]
        _ADD_INPUTS.run(connection, rows)


def list_inputs(connection: Connection, task_id: int) -> tuple[InputFile, ...]:
    """The files that a task was submitted with; empty for tasks of the existing system and of older versions."""
    return tuple(InputFile(*row) for row in connection.execute(_INPUTS, {"task": task_id}))


def forget_old(connection: Connection, *, now_us: int) -> int:
    """Remove the keys that need not be known any more; returns how many."""
    old = submissions.c.created_us <= now_us - _REMEMBERED_US
    early = submissions.c.task_id <= (connection.scalar(select(func.max(tasks.c.task_id))) or 0) - REMEMBERED
    return connection.execute(submissions.delete().where(old, early)).rowcount


def _check_limit(limit: int, queued: int) -> None:
    if queued >= limit:
        raise LimitReached(f"Queue limit {limit} reached for your subscription.")


def _check_waits(connection: Connection, new: NewTask) -> None:
    if not new.waits_for:
        return
    theirs = select(tasks.c.task_id).where(tasks.c.task_id.in_(new.waits_for), tasks.c.user_id == new.user_id)
    if missing := sorted(set(new.waits_for) - set(connection.scalars(theirs))):
        raise InvalidRequest(f"There is no task {missing[0]} of yours to wait for.")


def _chunk_row(chunk: NewChunk) -> dict[str, Any]:
    return {"chunk_id": chunk.chunk_id, "kind": chunk.kind, "stage": chunk.stage, **shape_of(chunk.frames)}


def _task_row(new: NewTask, render_id: int) -> dict[str, Any]:
    return {name: getattr(new, name) for name in _OF_TASK} | {
        "searched": searched(new.name, new.file_name),
        "queue_time": new.queue_time.replace(microsecond=0, tzinfo=None),
        "is_running": 0,
        "is_success": 0,
        "render_id": render_id,
        "paused": int(new.paused),
        "notify": int(new.notify),
        "strict": int(new.strict),
        "unchecked": new.unchecked,
        "needs": None if new.needs == NOTHING else encode(new.needs),
        "frames": new.frames or None,
        "names": new.names or None,
        "deliver": new.deliver or None,
        "warnings": texts_json(new.warnings),
        "chunks_waiting": len(new.chunks),
    }


def is_committed(connection: Connection, user_id: int, file_path: str) -> bool:
    """Whether a task with this uploaded file was committed, for a commit whose answer was lost. Waits for a transaction
    that still runs: it holds the account's row (R3.3 Database sessions)."""
    _LOCK_ACCOUNT.first(connection, {"user": user_id})
    theirs = select(tasks.c.task_id).join(renders, renders.c.render_id == tasks.c.render_id)
    this = (tasks.c.user_id == user_id) & (renders.c.file_path == file_path)
    return connection.scalar(theirs.where(this).limit(1)) is not None


def names_directory(connection: Connection, directory: str) -> bool:
    """Whether the uploaded file of any task lies in `directory`: asked at start for files that a killed program left on
    the disk. Reads all renders."""
    inside = renders.c.file_path.startswith(f"{directory}/", autoescape=True)
    return connection.scalar(select(renders.c.render_id).where(inside).limit(1)) is not None


MOST_PIECES: Final = 200
"""A chunk with more gaps than this is rendered again as a whole."""


class LeasedChunk(NamedTuple):
    """A leased chunk. `missing`: the range of it that is still to be rendered; None: all. `pieces`: the waiting chunks
    that were cut off from it (R4.2 Chunk ranges); `film`: it makes a film."""

    frames: FrameRange | None
    missing: FrameRange | None = None
    pieces: tuple[QueuedChunk, ...] = ()
    film: bool = False


@dataclass(slots=True)
class Assigned:
    """The leases that were made, by attempt id; an attempt that is missing here can't be leased now."""

    leases: dict[int, LeasedChunk] = field(default_factory=dict)
    tasks: tuple[TaskRow, ...] = ()
    facts: Mapping[int, TaskFacts] = field(default_factory=dict)


def assign(
    connection: Connection, wanted: Sequence[AttemptFacts], moment: Moment, *, facts_of: Collection[int] = ()
) -> Assigned:
    """Lease chunks to machines. `facts_of`: tasks of which the caller needs the facts as well."""
    assigned = Assigned(facts=load_facts(connection, facts_of))
    sheet = Sheet(connection, moment)
    sheet.load_chunks(new.chunk_id for new in wanted)
    for new in wanted:
        chunk = _leasable(sheet, new)
        lease = None if chunk is None else _lease(sheet, chunk, steps=new.steps)
        if chunk is None or lease is None:
            continue
        sheet.move(chunk, ChunkState.ASSIGNED)
        sheet.task(new.task_id).machine_id = new.machine_id
        sheet.lease(new)
        assigned.leases[new.attempt_id] = lease
    assigned.tasks = sheet.flush()
    return assigned


def submit_and_lease(
    connection: Connection, new: NewTask, ahead: Sequence[AttemptFacts], moment: Moment
) -> tuple[Submitted, Assigned]:
    """Submit a task and lease its first chunks in the same transaction; the task of `ahead` is the new one."""
    submitted = submit(connection, new)
    if submitted.repeated or not ahead:
        return submitted, Assigned()
    wanted = [replace(attempt, task_id=submitted.task_id) for attempt in ahead]
    return submitted, assign(connection, wanted, moment, facts_of=(submitted.task_id,))


def _leasable(sheet: Sheet, new: AttemptFacts) -> ChunkRow | None:
    task, chunk = sheet.tasks.get(new.task_id), sheet.chunks.get(new.chunk_id)
    if task is None or chunk is None or chunk.state is not ChunkState.WAITING:
        return None
    if task.paused and not is_at_once(chunk.kind, chunk.stage):
        return None
    return chunk if not new.whole or _make_whole(sheet, chunk) else None


def _lease(sheet: Sheet, chunk: ChunkRow, *, steps: bool | None) -> LeasedChunk | None:
    """The lease of a chunk; None: late results completed it. A chunk whose missing frames are not one range is cut into
    the fewest ranges of missing and of landed frames."""
    if chunk.kind == ChunkKind.FILM:
        sheet.connection.execute(_OLD_FILM, {"key": chunk.task_id})
        return LeasedChunk(None, film=True)
    if chunk.frames is None or chunk.chunk_id not in sheet.begun:
        return LeasedChunk(chunk.frames)
    landed = landed_frames(sheet.connection, chunk.task_id, chunk.frames)
    if not landed:
        return LeasedChunk(chunk.frames)
    stepped = steps or chunk.frames.step > 1
    missing = covering(set(chunk.frames.frames()) - landed, steps=stepped)
    if not missing:
        sheet.move(chunk, ChunkState.SUCCEEDED)
        return None
    if len(missing) == 1:
        return LeasedChunk(chunk.frames, missing[0])
    done = covering(landed, steps=stepped)
    if steps is None or len(missing) + len(done) > MOST_PIECES:
        return LeasedChunk(chunk.frames)
    waiting = sheet.recut(chunk, missing, done)
    return LeasedChunk(chunk.frames, pieces=tuple(QueuedChunk(chunk_id, chunk.place) for chunk_id in waiting))


_FILMS: Final = select(chunks.c.chunk_id).where(
    chunks.c.task_id == bindparam("key"), chunks.c.kind == ChunkKind.FILM.value
)
_OLD_FILM: Final = MAKE_STALE.where(results.c.task_id == bindparam("key"), results.c.chunk_id.in_(_FILMS))


def _make_whole(sheet: Sheet, chunk: ChunkRow) -> bool:
    """Replace all chunks of a task, none of which ever had an attempt, by this one (R4.2 Chunk ranges)."""
    connection, task_id = sheet.connection, chunk.task_id
    frames = connection.scalar(select(tasks.c.frames).where(tasks.c.task_id == task_id))
    ranges = cut(parse_frames(frames), 0) if frames else ()
    tried = select(attempts.c.attempt_id).where(attempts.c.task_id == task_id).limit(1)
    if len(ranges) > 1 or connection.scalar(tried) is not None:
        return False
    others = chunks.delete().where(chunks.c.task_id == task_id, chunks.c.chunk_id != chunk.chunk_id)
    removed = connection.execute(others.where(chunks.c.kind == ChunkKind.RENDER.value)).rowcount
    sheet.reshape(chunk, ranges[0] if ranges else None)
    sheet.task(task_id).add(ChunkState.WAITING, -removed)
    return True
