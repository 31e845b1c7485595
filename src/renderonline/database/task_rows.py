"""`Sheet`: the rows that one transaction reads, changes in memory by the rules of `farm`, and writes back by key (R3.1
Group commit).

Only here does a chunk change its state. The counters, the existing system's columns and the `queue` row
follow from the states and are written with them (R2 Task status).
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, bindparam, exists, func, literal, select

from renderonline.database.door import CHUNKS, reserve
from renderonline.database.queue_rows import AttemptFacts
from renderonline.database.schema import (
    FRAMES,
    attempts,
    bound,
    chunks,
    frames_of,
    inserting,
    json_texts,
    queue,
    results,
    shape_of,
    tasks,
    texts_json,
    updating,
    users,
)
from renderonline.database.statements import IDS, Statement, portions
from renderonline.farm import needs
from renderonline.farm.frames import FrameRange
from renderonline.farm.tasks import (
    AttemptState,
    ChunkState,
    Counters,
    Outcome,
    TaskStatus,
    check_transition,
    task_status,
)

ENDED: Final = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELED})


@dataclass(frozen=True, slots=True)
class Moment:
    """When a transaction's changes happen: microseconds since 1970 UTC, and the server's local time for v1."""

    us: int
    local: datetime

    @classmethod
    def at(cls, seconds: float) -> "Moment":
        """The moment `seconds` after 1970 UTC."""
        return cls(int(seconds * 1_000_000), _local(int(seconds)))


@lru_cache(2)
def _local(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).astimezone().replace(tzinfo=None)


@dataclass(slots=True)
class TaskRow:
    """A task as a transaction reads it and changes it; `Sheet.flush` writes it."""

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
    unchecked: str | None
    warnings: tuple[str, ...]
    counters: Counters

    @classmethod
    def of(cls, values: Sequence[Any]) -> "TaskRow":
        """From the values of `COLUMNS`."""
        named = dict(zip(_NAMES, values, strict=True))
        counters = Counters(**{state.value: named.pop(column) for state, column in _COUNTERS.items()})
        return cls(**named | {"warnings": json_texts(named["warnings"]), "counters": counters})

    def add(self, state: ChunkState, number: int) -> None:
        """Count chunks in this state that were made, or (negative) removed."""
        total = getattr(self.counters, state.value) + number
        if total < 0:
            raise AssertionError(f"Task {self.task_id} would count {total} chunks that are {state}.")
        self.counters = replace(self.counters, **{state.value: total})

    def move(self, old: ChunkState, new: ChunkState, number: int = 1) -> None:
        """Count chunks that change from one state to another; `Conflict` when `new` may not follow `old`."""
        if old is not new and number:
            check_transition(old, new)
            self.add(old, -number)
            self.add(new, number)

    def warn(self, texts: Iterable[str]) -> None:
        """Add warnings about the task's pictures (R16 No false success)."""
        self.warnings = needs.joined(self.warnings, texts)

    @property
    def status(self) -> TaskStatus:
        return task_status(self.counters, canceled=bool(self.canceled), paused=bool(self.paused))

    @property
    def ended(self) -> bool:
        return self.status in ENDED


_COUNTERS: Final = {state: f"chunks_{state.value}" for state in ChunkState}
_NAMES: Final = (*(one.name for one in fields(TaskRow) if one.name != "counters"), *_COUNTERS.values())
COLUMNS: Final = tuple(tasks.c[name] for name in _NAMES)
_LOOK: Final = select(*COLUMNS).where(tasks.c.task_id == bindparam("task_id"))
_LOCK: Final = _LOOK.with_for_update()
_KEPT: Final = ("start_us", "start_time", "end_us", "end_time", "machine_id", "paused", "canceled", "frames_done")
_WRITTEN: Final = (*_COUNTERS.values(), *_KEPT, "is_running", "is_success", "reason", "unchecked", "warnings")
_WRITE_TASKS: Final = Statement(updating(tasks, _WRITTEN))
_UNQUEUE: Final = queue.delete().where(queue.c.task_id == bindparam("key"))
_QUEUE: Final = queue.insert()


_KEEP: Final = Statement(
    users.update()
    .where(users.c.user_id == bindparam("key"))
    .values(kept_bytes=users.c.kept_bytes + bindparam("more", type_=BigInteger))
)


def keep_bytes(connection: Connection, more: Mapping[int, int]) -> None:
    """Note how many bytes more (or, negative, fewer) the files of tasks take, by user."""
    _KEEP.run(connection, [{"key": user_id, "more": size} for user_id, size in sorted(more.items()) if size])


def look(connection: Connection, task_id: int, *, lock: bool = False) -> TaskRow | None:
    """Read a task; `lock`: and lock its row. None when it is gone."""
    row = connection.execute(_LOCK if lock else _LOOK, {"task_id": task_id}).first()
    return None if row is None else TaskRow.of(row)


def _write(connection: Connection, changed: Sequence[TaskRow], moment: Moment) -> None:
    """Write changed tasks whose rows are locked, and everything that follows from their chunks (R2 Task status)."""
    rows = []
    for task in changed:
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
        values |= {"reason": task.reason or None, "unchecked": task.unchecked, "warnings": texts_json(task.warnings)}
        rows.append({"key": task.task_id, **values})
    _WRITE_TASKS.run(connection, rows)


@dataclass(slots=True)
class ChunkRow:
    """A chunk as this transaction sees it."""

    chunk_id: int
    task_id: int
    kind: str
    stage: int
    state: ChunkState
    place: int
    tries: int
    not_before_us: int
    reason: str | None
    frames: FrameRange | None

    @classmethod
    def of(cls, values: Sequence[Any]) -> "ChunkRow":
        """From the values of `_CHUNK`."""
        named = dict(zip(_CHUNK_NAMES, values, strict=True))
        frames = frames_of(*(named.pop(name) for name in FRAMES))
        return cls(**named | {"state": ChunkState(named["state"]), "frames": frames})


@dataclass(slots=True)
class AttemptRow:
    """An attempt as this transaction sees it."""

    attempt_id: int
    chunk_id: int
    task_id: int
    machine_id: int
    token: str
    state: AttemptState
    outcome: Outcome | None
    started_us: int | None
    ended_us: int | None
    exit_code: int | None
    failure: str
    reason: str | None
    peak_memory_mib: int


_CHUNK_NAMES: Final = (*(one.name for one in fields(ChunkRow) if one.name != "frames"), *FRAMES)
_CHUNK: Final = tuple(chunks.c[name] for name in _CHUNK_NAMES)
_ATTEMPT: Final = tuple(attempts.c[one.name] for one in fields(AttemptRow))
_OF_TASK: Final = chunks.join(tasks, tasks.c.task_id == chunks.c.task_id)
_BEGUN: Final = exists().where(attempts.c.chunk_id == chunks.c.chunk_id)
_CHUNKS: Final = Statement(
    select(*_CHUNK, *COLUMNS, _BEGUN)
    .select_from(_OF_TASK)
    .where(chunks.c.chunk_id.in_(bindparam(IDS, expanding=True)))
    .order_by(chunks.c.chunk_id)
    .with_for_update()
)
_ATTEMPTS: Final = Statement(
    select(*_ATTEMPT, *_CHUNK, *COLUMNS)
    .select_from(_OF_TASK.join(attempts, attempts.c.chunk_id == chunks.c.chunk_id))
    .where(attempts.c.attempt_id.in_(bindparam(IDS, expanding=True)))
    .order_by(attempts.c.attempt_id)
    .with_for_update()
)
_OF_CHUNK: Final = ("state", "tries", "not_before_us", "reason")
_OF_ATTEMPT: Final = ("state", "outcome", "started_us", "ended_us", "exit_code", "failure", "reason", "peak_memory_mib")
_OF_LEASE: Final = ("attempt_id", "chunk_id", "task_id", "machine_id", "token", "directory")

_WRITE_CHUNKS: Final = Statement(updating(chunks, _OF_CHUNK))
_RESHAPE: Final = updating(chunks, (*FRAMES, "place"))
_WRITE_ATTEMPTS: Final = Statement(updating(attempts, _OF_ATTEMPT))
_LEASE: Final = Statement(attempts.insert().values(bound((*_OF_LEASE, "state", "assigned_us"))))
_ITS_FRAME: Final = func.coalesce(results.c.frame, results.c.of_frame)
_GIVE_RESULTS: Final = (
    results.update()
    .where(results.c.task_id == bindparam("key"))
    .where(_ITS_FRAME.between(bindparam("first_frame"), bindparam("last_frame")))
    .where((_ITS_FRAME - bindparam("first_frame")) % bindparam("frame_step") == 0)
    .values(chunk_id=bindparam("to"))
)


class Sheet:
    """The rows of one transaction: `load_…` them, change them, then `flush` once. A row is read once only, because it
    may have been changed since."""

    def __init__(self, connection: Connection, moment: Moment) -> None:
        self.connection = connection
        self.moment = moment
        self.tasks: dict[int, TaskRow] = {}
        self.chunks: dict[int, ChunkRow] = {}
        self.attempts: dict[int, AttemptRow] = {}
        self.begun: set[int] = set()
        """The chunks among those of `load_chunks` that ever had an attempt."""
        self.kept: dict[int, int] = defaultdict(int)
        """How many bytes more the files of a user's tasks take afterwards."""
        self._changed: set[int] = set()
        self._moved: dict[int, ChunkRow] = {}
        self._touched: dict[int, AttemptRow] = {}
        self._leased: list[dict[str, Any]] = []

    def load_chunks(self, chunk_ids: Iterable[int]) -> None:
        """Lock and read chunks with their tasks; those that are gone are left out."""
        for *values, begun in _CHUNKS.rows(self.connection, sorted(set(chunk_ids))):
            self._add(values)
            if begun:
                self.begun.add(values[0])

    def load_attempts(self, attempt_ids: Iterable[int]) -> None:
        """Lock and read attempts with their chunks and tasks; those that are gone, or whose task is, are left out."""
        for row in _ATTEMPTS.rows(self.connection, sorted(set(attempt_ids) - self.attempts.keys())):
            attempt = AttemptRow(*row[: len(_ATTEMPT)])
            attempt.state = AttemptState(attempt.state)
            self.attempts[attempt.attempt_id] = attempt
            self._add(row[len(_ATTEMPT) :])

    def _add(self, row: Sequence[Any]) -> None:
        chunk, task = row[: len(_CHUNK)], row[len(_CHUNK) :]
        if chunk[0] not in self.chunks:
            self.chunks[chunk[0]] = ChunkRow.of(chunk)
        if task[0] not in self.tasks:
            self.tasks[task[0]] = TaskRow.of(task)

    def lock_task(self, task_id: int) -> TaskRow | None:
        """Lock and read a task; None when it is gone."""
        task = look(self.connection, task_id, lock=True)
        if task is not None:
            self.tasks[task_id] = task
        return task

    def task(self, task_id: int) -> TaskRow:
        """A task that was read and is about to be changed: `flush` writes it."""
        self._changed.add(task_id)
        return self.tasks[task_id]

    def move(self, chunk: ChunkRow, state: ChunkState) -> None:
        """Change the state of a chunk that was read; `Conflict` when `state` may not follow its present one."""
        self.task(chunk.task_id).move(chunk.state, state)
        chunk.state = state
        self._moved[chunk.chunk_id] = chunk

    def move_all(
        self,
        task_id: int,
        old: Iterable[ChunkState],
        new: ChunkState,
        *,
        chunk_ids: Sequence[int] | None = None,
        **values: Any,
    ) -> None:
        """Change the state of a task's chunks that are in one of the `old` states, or only of those in `chunk_ids`.

        Chunks need not be read before: each old state takes one UPDATE, however many chunks are in it. `values` are
        other columns that are written with the state. `Conflict` as in `move`.
        """
        self._write_rows()  # so that the database counts those rows in the states that they have now
        task, states = self.task(task_id), frozenset(old)
        parts = [()] if chunk_ids is None else [(chunks.c.chunk_id.in_(ids),) for ids in portions(chunk_ids)]
        for state in sorted(states):
            change = chunks.update().where(chunks.c.task_id == task_id, chunks.c.state == state.value)
            change = change.values(state=new.value, **values)
            task.move(state, new, sum(self.connection.execute(change.where(*which)).rowcount for which in parts))
        read = self.chunks.keys() if chunk_ids is None else self.chunks.keys() & set(chunk_ids)
        for chunk in map(self.chunks.__getitem__, read):
            if chunk.task_id == task_id and chunk.state in states:
                for name, value in {"state": new, **values}.items():
                    setattr(chunk, name, value)

    def add_chunks(self, task_id: int, rows: Sequence[Mapping[str, Any]]) -> range:
        """Insert chunks of a task that was read; returns their ids."""
        ids = reserve(self.connection, CHUNKS, len(rows))
        new = [{"task_id": task_id, "chunk_id": chunk_id, **row} for chunk_id, row in zip(ids, rows, strict=True)]
        self.connection.execute(inserting(chunks), new)
        for row in rows:
            self.task(task_id).add(ChunkState(row["state"]), 1)
        return ids

    def reshape(self, chunk: ChunkRow, frames: FrameRange | None, place: int = 0) -> None:
        """Change the range of a chunk that has no live attempt."""
        chunk.frames = frames
        self.connection.execute(_RESHAPE, {"key": chunk.chunk_id, "place": place, **shape_of(frames)})

    def recut(self, chunk: ChunkRow, waiting: Sequence[FrameRange], done: Sequence[FrameRange]) -> tuple[int, ...]:
        """Cut a waiting chunk into ranges that wait and ranges whose frames have landed; the chunk itself gets the
        first range that waits. Returns the ids of the others that wait."""
        self.reshape(chunk, waiting[0], chunk.place)
        same = {name: getattr(chunk, name) for name in ("kind", "stage", "place", "tries")}
        states = [(ChunkState.WAITING, chunk.reason)] * (len(waiting) - 1) + [(ChunkState.SUCCEEDED, None)] * len(done)
        pieces = (*waiting[1:], *done)
        rows = [
            {**same, "state": state.value, "reason": reason, **shape_of(frames)}
            for (state, reason), frames in zip(states, pieces, strict=True)
        ]
        ids = self.add_chunks(chunk.task_id, rows)
        owners = [
            {"key": chunk.task_id, "to": chunk_id, **shape_of(frames)}
            for chunk_id, frames in zip(ids, pieces, strict=True)
        ]
        self.connection.execute(_GIVE_RESULTS, owners)
        return tuple(ids[: len(waiting) - 1])

    def touch(self, attempt: AttemptRow) -> None:
        """Have the attempt's changed fields written."""
        self._touched[attempt.attempt_id] = attempt

    def lease(self, attempt: AttemptFacts) -> None:
        """Insert a new attempt."""
        state = {"state": AttemptState.ASSIGNED.value, "assigned_us": self.moment.us}
        self._leased.append({name: getattr(attempt, name) for name in _OF_LEASE} | state)

    def flush(self) -> tuple[TaskRow, ...]:
        """Write everything that changed; returns the changed tasks as they are now. To be called once, at the end."""
        _LEASE.run(self.connection, self._leased)
        self._write_rows()
        changed = tuple(self.tasks[key] for key in sorted(self._changed))
        _write(self.connection, changed, self.moment)
        keep_bytes(self.connection, self.kept)
        return changed

    def _write_rows(self) -> None:
        for statement, names, rows in (
            (_WRITE_ATTEMPTS, _OF_ATTEMPT, self._touched),
            (_WRITE_CHUNKS, _OF_CHUNK, self._moved),
        ):
            values = [{"key": key} | {name: getattr(row, name) for name in names} for key, row in rows.items()]
            statement.run(self.connection, values)


_LANDED: Final = select(results.c.name).where(results.c.task_id == bindparam("task_id"), results.c.state == "landed")
_BY_HASH: Final = _LANDED.where(results.c.name_hash.in_(bindparam("hashes", expanding=True)))
_FRAMES_LANDED: Final = _LANDED.with_only_columns(results.c.frame).where(
    results.c.frame.between(bindparam("first"), bindparam("last"))
)
STALE_HASH: Final = literal("s") + func.substr(results.c.name_hash, 2)
"""The key of a result that is to be made again: its former key is free for the next result."""
MAKE_STALE: Final = results.update().where(results.c.state == "landed").values(state="stale", name_hash=STALE_HASH)
"""Marks results that are to be made again; add the conditions that select them."""


def name_hash(name: str) -> str:
    """The key of an output name: of one length, as every database's index needs it."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def result_keys(name: str) -> tuple[str, str]:
    """The key of an output name, and the one of its stale result."""
    key = name_hash(name)
    return key, f"s{key[1:]}"


def landed_among(connection: Connection, task_id: int, names: Collection[str]) -> frozenset[str]:
    """Which of these output names of a task have landed."""
    parts = ({"task_id": task_id, "hashes": part} for part in portions([name_hash(name) for name in names]))
    return frozenset(name for part in parts for name in connection.scalars(_BY_HASH, part))


def landed_frames(connection: Connection, task_id: int, frames: FrameRange) -> frozenset[int]:
    """Which of these frames of a task have landed."""
    between = {"task_id": task_id, "first": frames.first, "last": frames.last}
    return frozenset(connection.scalars(_FRAMES_LANDED, between)) & frozenset(frames.frames())
