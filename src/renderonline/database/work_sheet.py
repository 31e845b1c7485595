"""The rows that one transaction reads, changes in memory by the rules of `farm`, and writes back by key
(R3.1 Group commit)."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from sqlalchemy import Connection, bindparam, exists, func, literal, select

from renderonline.database.ids import CHUNKS, reserve
from renderonline.database.projection import COLUMNS, Moment, TaskState, apply
from renderonline.database.rows import FRAMES, frames_of, inserting, portions, shape_of, updating
from renderonline.database.schema import attempts, chunks, results, tasks
from renderonline.database.work_loading import Attempt
from renderonline.farm.frames import FrameRange
from renderonline.farm.tasks import AttemptState, ChunkState, Outcome, check_transition


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


_CHUNK: Final = tuple(chunks.c[name] for name in (*(one.name for one in fields(ChunkRow)[:-1]), *FRAMES))
_ATTEMPT: Final = tuple(attempts.c[one.name] for one in fields(AttemptRow))
_OF_TASK: Final = chunks.join(tasks, tasks.c.task_id == chunks.c.task_id)
_BEGUN: Final = exists().where(attempts.c.chunk_id == chunks.c.chunk_id)
_CHUNKS: Final = (
    select(*_CHUNK, *COLUMNS, _BEGUN)
    .select_from(_OF_TASK)
    .where(chunks.c.chunk_id.in_(bindparam("ids", expanding=True)))
    .order_by(chunks.c.chunk_id)
    .with_for_update()
)
_ATTEMPTS: Final = (
    select(*_ATTEMPT, *_CHUNK, *COLUMNS)
    .select_from(_OF_TASK.join(attempts, attempts.c.chunk_id == chunks.c.chunk_id))
    .where(attempts.c.attempt_id.in_(bindparam("ids", expanding=True)))
    .order_by(attempts.c.attempt_id)
    .with_for_update()
)
_OF_CHUNK: Final = ("state", "tries", "not_before_us", "reason")
_OF_ATTEMPT: Final = ("state", "outcome", "started_us", "ended_us", "exit_code", "failure", "reason", "peak_memory_mib")
_OF_LEASE: Final = ("attempt_id", "chunk_id", "task_id", "machine_id", "token", "directory")


_WRITE_CHUNK: Final = updating(chunks, _OF_CHUNK)
_CANCEL_WAITING: Final = (
    chunks.update()
    .where(chunks.c.task_id == bindparam("key"), chunks.c.state == ChunkState.WAITING.value)
    .values(state=ChunkState.CANCELED.value, reason=bindparam("why"))
)
_RESHAPE: Final = updating(chunks, (*FRAMES, "place"))
_WRITE_ATTEMPT: Final = updating(attempts, _OF_ATTEMPT)
_ITS_FRAME: Final = func.coalesce(results.c.frame, results.c.of_frame)
_GIVE_RESULTS: Final = (
    results.update()
    .where(results.c.task_id == bindparam("key"))
    .where(_ITS_FRAME.between(bindparam("first_frame"), bindparam("last_frame")))
    .where((_ITS_FRAME - bindparam("first_frame")) % bindparam("frame_step") == 0)
    .values(chunk_id=bindparam("to"))
)


class Sheet:
    """The rows of one transaction. `load_…` first, then change, then `flush` once. What was read before is not read
    again, for it may have been changed."""

    def __init__(self, connection: Connection, moment: Moment) -> None:
        self.connection = connection
        self.moment = moment
        self.tasks: dict[int, TaskState] = {}
        self.chunks: dict[int, ChunkRow] = {}
        self.attempts: dict[int, AttemptRow] = {}
        self.begun: set[int] = set()
        """Of the chunks that `load_chunks` read, those that ever had an attempt."""
        self._changed: set[int] = set()
        self._moved: dict[int, ChunkRow] = {}
        self._touched: dict[int, AttemptRow] = {}
        self._leased: list[dict[str, Any]] = []

    def load_chunks(self, chunk_ids: Iterable[int]) -> None:
        """Lock and read chunks with their tasks; those that are gone are left out."""
        for *values, begun in self._rows(_CHUNKS, chunk_ids):
            self._know(values)
            if begun:
                self.begun.add(values[0])

    def load_attempts(self, attempt_ids: Iterable[int]) -> None:
        """Lock and read attempts with their chunks and tasks; those that are gone, or whose task is, are left out."""
        for row in self._rows(_ATTEMPTS, set(attempt_ids) - self.attempts.keys()):
            attempt = AttemptRow(*row[: len(_ATTEMPT)])
            attempt.state = AttemptState(attempt.state)
            self.attempts[attempt.attempt_id] = attempt
            self._know(row[len(_ATTEMPT) :])

    def _know(self, row: Sequence[Any]) -> None:
        chunk, task = row[: len(_CHUNK)], row[len(_CHUNK) :]
        if chunk[0] not in self.chunks:
            known = self.chunks[chunk[0]] = ChunkRow(*(*chunk[:-3], frames_of(*chunk[-3:])))
            known.state = ChunkState(known.state)
        if task[0] not in self.tasks:
            self.tasks[task[0]] = TaskState.of(task)

    def _rows(self, query: Any, ids: Iterable[int]) -> Sequence[Any]:
        wanted = sorted(set(ids))
        return self.connection.execute(query, {"ids": wanted}).all() if wanted else ()

    def task(self, task_id: int) -> TaskState:
        """A task that is to be changed."""
        self._changed.add(task_id)
        return self.tasks[task_id]

    def move(self, chunk: ChunkRow, state: ChunkState) -> None:
        """Change a chunk's state; the counters follow."""
        check_transition(chunk.state, state)
        task = self.task(chunk.task_id)
        task.count(chunk.state, -1)
        task.count(state, 1)
        chunk.state = state
        self._moved[chunk.chunk_id] = chunk

    def cancel_waiting(self, task_id: int, reason: str) -> None:
        """Cancel every chunk of a task that waits, also those that were not read."""
        known = [one for one in self.chunks.values() if one.task_id == task_id and one.state is ChunkState.WAITING]
        for chunk in known:
            self.move(chunk, ChunkState.CANCELED)
            chunk.reason = reason
        task = self.task(task_id)
        if left := task.counters.waiting:  # those that were read are written again by `flush`
            self.connection.execute(_CANCEL_WAITING, {"key": task_id, "why": reason})
            task.count(ChunkState.WAITING, -left)
            task.count(ChunkState.CANCELED, left)

    def reshape(self, chunk: ChunkRow, frames: FrameRange | None, place: int = 0) -> None:
        """Give a chunk without a live attempt another range."""
        chunk.frames = frames
        self.connection.execute(_RESHAPE, {"key": chunk.chunk_id, "place": place, **shape_of(frames)})

    def recut(self, chunk: ChunkRow, waiting: Sequence[FrameRange], done: Sequence[FrameRange]) -> tuple[int, ...]:
        """Cut a chunk that waits into ranges that wait and ranges whose frames have landed; the chunk becomes the
        first that waits. Gives the ids of the others that wait."""
        self.reshape(chunk, waiting[0], chunk.place)
        pieces = [(ChunkState.WAITING, one) for one in waiting[1:]] + [(ChunkState.SUCCEEDED, one) for one in done]
        first = reserve(self.connection, CHUNKS, len(pieces))
        same = {name: getattr(chunk, name) for name in ("task_id", "kind", "stage", "place", "tries")}
        new, given = [], []
        for chunk_id, (state, frames) in enumerate(pieces, first):
            self.task(chunk.task_id).count(state, 1)
            reason = chunk.reason if state is ChunkState.WAITING else None
            new.append({**same, "chunk_id": chunk_id, "state": state.value, "reason": reason, **shape_of(frames)})
            given.append({"key": chunk.task_id, "to": chunk_id, **shape_of(frames)})
        self.connection.execute(inserting(chunks), new)
        self.connection.execute(_GIVE_RESULTS, given)
        return tuple(range(first, first + len(waiting) - 1))

    def touch(self, attempt: AttemptRow) -> None:
        """The attempt's changed fields are to be written."""
        self._touched[attempt.attempt_id] = attempt

    def lease(self, attempt: Attempt) -> None:
        """Insert a new attempt."""
        state = {"state": AttemptState.ASSIGNED.value, "assigned_us": self.moment.us}
        self._leased.append({name: getattr(attempt, name) for name in _OF_LEASE} | state)

    def flush(self) -> tuple[TaskState, ...]:
        """Write everything; the tasks that changed, as they are now."""
        if self._leased:
            self.connection.execute(inserting(attempts), self._leased)
        for statement, names, rows in (
            (_WRITE_ATTEMPT, _OF_ATTEMPT, self._touched),
            (_WRITE_CHUNK, _OF_CHUNK, self._moved),
        ):
            values = [{"key": key} | {name: getattr(row, name) for name in names} for key, row in rows.items()]
            if values:
                self.connection.execute(statement, values)
        return tuple(apply(self.connection, self.tasks[key], self.moment) for key in sorted(self._changed))


_LANDED: Final = select(results.c.name).where(results.c.task_id == bindparam("task_id"), results.c.state == "landed")
_BY_HASH: Final = _LANDED.where(results.c.name_hash.in_(bindparam("hashes", expanding=True)))
_FRAMES_LANDED: Final = _LANDED.with_only_columns(results.c.frame).where(
    results.c.frame.between(bindparam("first"), bindparam("last"))
)
STALE_HASH: Final = literal("s") + func.substr(results.c.name_hash, 2)
"""The key of a result that is to be made again: it leaves its own free for the next one."""
MAKE_STALE: Final = results.update().where(results.c.state == "landed").values(state="stale", name_hash=STALE_HASH)
"""Results are to be made again; where it says which."""


def name_hash(name: str) -> str:
    """The key of an output name: one length for every database's index."""
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
