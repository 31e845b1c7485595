"""The rows that one transaction reads, changes in memory by the rules of `farm`, and writes back by key (R3.1)."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, exists, select

from renderonline.database.projection import COLUMNS, Change, Moment, TaskRow, TaskState, apply_locked, task_row
from renderonline.database.schema import attempts, chunks, results, tasks
from renderonline.farm.frames import FrameRange
from renderonline.farm.tasks import AttemptState, ChunkState, Outcome, check_transition


@dataclass(slots=True)
class ChunkRow:
    """A chunk as this transaction sees it."""

    chunk_id: int
    task_id: int
    state: ChunkState
    frames: FrameRange | None
    place: int
    tries: int
    not_before_us: int
    reason: str | None


@dataclass(slots=True)
class AttemptRow:
    """An attempt as this transaction sees it."""

    attempt_id: int
    chunk_id: int
    task_id: int
    machine_id: int
    token: str
    state: AttemptState
    directory: str
    outcome: Outcome | None = None
    started_us: int | None = None
    ended_us: int | None = None
    exit_code: int | None = None
    failure: str = ""
    reason: str | None = None
    peak_memory_mib: int = 0


_CHUNK_COLUMNS: Final = (
    chunks.c.chunk_id,
    chunks.c.task_id,
    chunks.c.state,
    chunks.c.first_frame,
    chunks.c.last_frame,
    chunks.c.frame_step,
    chunks.c.place,
    chunks.c.tries,
    chunks.c.not_before_us,
    chunks.c.reason,
)
_ATTEMPT_COLUMNS: Final = (
    attempts.c.attempt_id,
    attempts.c.chunk_id,
    attempts.c.task_id,
    attempts.c.machine_id,
    attempts.c.token,
    attempts.c.state,
    attempts.c.directory,
    attempts.c.outcome,
    attempts.c.started_us,
    attempts.c.ended_us,
    attempts.c.exit_code,
    attempts.c.failure,
    attempts.c.reason,
    attempts.c.peak_memory_mib,
)
_OF_TASK: Final = chunks.join(tasks, tasks.c.task_id == chunks.c.task_id)
_BEGUN: Final = exists().where(attempts.c.chunk_id == chunks.c.chunk_id)
_CHUNKS: Final = (
    select(*_CHUNK_COLUMNS, *COLUMNS, _BEGUN)
    .select_from(_OF_TASK)
    .where(chunks.c.chunk_id.in_(bindparam("ids", expanding=True)))
    .order_by(chunks.c.chunk_id)
    .with_for_update()
)
_ATTEMPTS: Final = (
    select(*_ATTEMPT_COLUMNS, *_CHUNK_COLUMNS, *COLUMNS)
    .select_from(_OF_TASK.join(attempts, attempts.c.chunk_id == chunks.c.chunk_id))
    .where(attempts.c.attempt_id.in_(bindparam("ids", expanding=True)))
    .order_by(attempts.c.attempt_id)
    .with_for_update()
)
_WRITE_CHUNK: Final = (
    chunks.update()
    .where(chunks.c.chunk_id == bindparam("key"))
    .values(
        state=bindparam("state"),
        tries=bindparam("tries"),
        not_before_us=bindparam("not_before_us"),
        reason=bindparam("reason"),
    )
)
_RESHAPE: Final = (
    chunks.update()
    .where(chunks.c.chunk_id == bindparam("key"))
    .values(first_frame=bindparam("first"), last_frame=bindparam("last"), frame_step=bindparam("step"), place=0)
)
_WRITE_ATTEMPT: Final = (
    attempts.update()
    .where(attempts.c.attempt_id == bindparam("key"))
    .values(
        {
            name: bindparam(name)
            for name in (
                "state",
                "outcome",
                "started_us",
                "ended_us",
                "exit_code",
                "failure",
                "reason",
                "peak_memory_mib",
            )
        }
    )
)
_NEW_ATTEMPT: Final = attempts.insert()


class Sheet:
    """The rows of one transaction. `load` first, then change, then `flush` once."""

    def __init__(self, connection: Connection, moment: Moment) -> None:
        self.connection = connection
        self.moment = moment
        self.tasks: dict[int, TaskRow] = {}
        self.chunks: dict[int, ChunkRow] = {}
        self.attempts: dict[int, AttemptRow] = {}
        self.begun: set[int] = set()
        """Of the chunks that `load_chunks` read, those that ever had an attempt."""
        self._changes: dict[int, Change] = {}
        self._written_chunks: dict[int, ChunkRow] = {}
        self._written_attempts: dict[int, AttemptRow] = {}
        self._new_attempts: list[dict[str, Any]] = []

    def load_chunks(self, chunk_ids: Iterable[int]) -> None:
        """Lock and read chunks with their tasks; those that are gone are left out."""
        for row in self._rows(_CHUNKS, chunk_ids):
            self._know(row[: len(_CHUNK_COLUMNS)], row[len(_CHUNK_COLUMNS) : -1])
            if row[-1]:
                self.begun.add(row[0])

    def load_attempts(self, attempt_ids: Iterable[int]) -> None:
        """Lock and read attempts with their chunks and tasks; those that are gone, or whose task is, are left out."""
        own, chunk = len(_ATTEMPT_COLUMNS), len(_CHUNK_COLUMNS)
        for row in self._rows(_ATTEMPTS, set(attempt_ids) - self.attempts.keys()):
            attempt = _attempt(row[:own])
            self.attempts[attempt.attempt_id] = attempt
            self._know(row[own : own + chunk], row[own + chunk :])

    def _know(self, chunk: Sequence[Any], task: Sequence[Any]) -> None:
        """Take a chunk and its task; what was read before stays, for it may have been changed."""
        if chunk[0] not in self.chunks:
            self.chunks[chunk[0]] = _chunk(chunk)
        if task[0] not in self.tasks:
            self.tasks[task[0]] = task_row(task)

    def _rows(self, query: Any, ids: Iterable[int]) -> Sequence[Any]:
        wanted = sorted(set(ids))
        return self.connection.execute(query, {"ids": wanted}).all() if wanted else ()

    def change(self, task_id: int) -> Change:
        """What this transaction does to a task; add to it."""
        return self._changes.setdefault(task_id, Change({}))

    def move(self, chunk: ChunkRow, state: ChunkState) -> None:
        """Change a chunk's state; the counters follow."""
        check_transition(chunk.state, state)
        deltas = self.change(chunk.task_id).deltas
        deltas[chunk.state] = deltas.get(chunk.state, 0) - 1
        deltas[state] = deltas.get(state, 0) + 1
        chunk.state = state
        self._written_chunks[chunk.chunk_id] = chunk

    def reshape(self, chunk: ChunkRow, frames: FrameRange | None) -> None:
        """Give a chunk that never had an attempt another range."""
        chunk.frames = frames
        values = (frames.first, frames.last, frames.step) if frames else (None, None, None)
        self.connection.execute(
            _RESHAPE, {"key": chunk.chunk_id, **dict(zip(("first", "last", "step"), values, strict=True))}
        )

    def touch(self, attempt: AttemptRow) -> None:
        """The attempt's changed fields are to be written."""
        self._written_attempts[attempt.attempt_id] = attempt

    def insert_attempt(
        self, attempt_id: int, chunk_id: int, task_id: int, machine_id: int, token: str, directory: str
    ) -> None:
        """A new lease."""
        self._new_attempts.append(
            {
                "attempt_id": attempt_id,
                "chunk_id": chunk_id,
                "task_id": task_id,
                "machine_id": machine_id,
                "token": token,
                "state": AttemptState.ASSIGNED.value,
                "assigned_us": self.moment.us,
                "directory": directory,
            }
        )

    def flush(self) -> tuple[TaskState, ...]:
        """Write everything; the states of the tasks that changed."""
        if self._new_attempts:
            self.connection.execute(_NEW_ATTEMPT, self._new_attempts)
        if self._written_attempts:
            self.connection.execute(_WRITE_ATTEMPT, [_attempt_values(row) for row in self._written_attempts.values()])
        if self._written_chunks:
            self.connection.execute(_WRITE_CHUNK, [_chunk_values(row) for row in self._written_chunks.values()])
        return tuple(
            apply_locked(self.connection, self.tasks[task_id], change, self.moment)
            for task_id, change in sorted(self._changes.items())
        )


def _attempt(values: Sequence[Any]) -> AttemptRow:
    """An attempt from the values of `_ATTEMPT_COLUMNS`."""
    attempt = AttemptRow(*values)
    attempt.state = AttemptState(attempt.state)
    attempt.outcome = Outcome(attempt.outcome) if attempt.outcome else None
    return attempt


def _chunk(values: Sequence[Any]) -> ChunkRow:
    """A chunk from the values of `_CHUNK_COLUMNS`."""
    chunk_id, task_id, state, first, last, step, *rest = values
    frames = None if first is None else FrameRange(first, last, step or 1)
    return ChunkRow(chunk_id, task_id, ChunkState(state), frames, *rest)


def _attempt_values(row: AttemptRow) -> dict[str, Any]:
    return {
        "key": row.attempt_id,
        "state": row.state.value,
        "outcome": row.outcome.value if row.outcome else None,
        "started_us": row.started_us,
        "ended_us": row.ended_us,
        "exit_code": row.exit_code,
        "failure": row.failure[:40],
        "reason": row.reason,
        "peak_memory_mib": row.peak_memory_mib,
    }


def _chunk_values(row: ChunkRow) -> dict[str, Any]:
    return {
        "key": row.chunk_id,
        "state": row.state.value,
        "tries": row.tries,
        "not_before_us": row.not_before_us,
        "reason": row.reason,
    }


# -- which results are there

_BY_HASH: Final = select(results.c.name).where(
    results.c.task_id == bindparam("task_id"),
    results.c.name_hash.in_(bindparam("hashes", expanding=True)),
    results.c.state == "landed",
)
_BY_CHUNK: Final = select(results.c.name).where(
    results.c.task_id == bindparam("task_id"),
    results.c.chunk_id == bindparam("chunk_id"),
    results.c.state == "landed",
)
_AT_ONCE: Final = 1000


def name_hash(name: str) -> str:
    """The key of an output name: one length for every database's index."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def landed_among(connection: Connection, task_id: int, names: Collection[str]) -> frozenset[str]:
    """Which of these output names of a task have landed."""
    hashes = [name_hash(name) for name in names]
    found: set[str] = set()
    for start in range(0, len(hashes), _AT_ONCE):
        part = {"task_id": task_id, "hashes": hashes[start : start + _AT_ONCE]}
        found.update(connection.execute(_BY_HASH, part).scalars())
    return frozenset(found)


def landed_of_chunk(connection: Connection, task_id: int, chunk_id: int) -> frozenset[str]:
    """The output names that attempts of this chunk have landed."""
    return frozenset(connection.execute(_BY_CHUNK, {"task_id": task_id, "chunk_id": chunk_id}).scalars())
