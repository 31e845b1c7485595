"""What the dispatcher's memory is rebuilt from: tasks in the queue, their waiting chunks, live attempts, machines."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, bindparam, func, select

from renderonline.database.projection import TaskState, look, state_of
from renderonline.database.schema import (
    attempts,
    chunks,
    engines,
    machines,
    queue,
    renders,
    subscriptions,
    tasks,
    users,
)
from renderonline.database.schema import waits_for as waits
from renderonline.farm.frames import FrameRange
from renderonline.farm.tasks import AttemptState, ChunkState, Outcome

_FAILURES: Final = (Outcome.FAILED.value, Outcome.LOST.value, Outcome.TIMED_OUT.value, Outcome.STALLED.value)


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What is needed to write a task's command. `values` and `template` are None for renders of the existing system,
    whose `arguments` are one finished string."""

    task_id: int
    user_id: int
    engine: str
    download_path: str
    definition: str | None
    scene: str
    arguments: str
    values: Mapping[str, str] | None
    template: tuple[str, ...] | None
    frames: str


_FACTS: Final = (
    select(
        tasks.c.task_id,
        tasks.c.user_id,
        tasks.c.frames,
        engines.c.name,
        engines.c.download_path,
        engines.c.definition,
        renders.c.file_path,
        renders.c.arguments,
        renders.c["values"].label("given"),
        renders.c.template,
    )
    .select_from(
        tasks.join(renders, renders.c.render_id == tasks.c.render_id).join(
            engines, engines.c.engine_id == renders.c.engine_id
        )
    )
    .where(tasks.c.task_id.in_(bindparam("ids", expanding=True)))
)


def load_facts(connection: Connection, task_ids: Collection[int]) -> dict[int, TaskFacts]:
    """The facts of these tasks; those that are gone are left out."""
    if not task_ids:
        return {}
    rows = connection.execute(_FACTS, {"ids": sorted(task_ids)})
    return {row.task_id: _facts(row) for row in rows}


def _facts(row: Any) -> TaskFacts:
    values, template = row.given, row.template
    return TaskFacts(
        task_id=row.task_id,
        user_id=row.user_id,
        engine=row.name,
        download_path=row.download_path,
        definition=row.definition,
        scene=row.file_path,
        arguments=row.arguments,
        values=None if values is None else json.loads(values),
        template=None if template is None else tuple(json.loads(template)),
        frames=row.frames or "",
    )


@dataclass(frozen=True, slots=True)
class QueuedChunk:
    """A waiting chunk. `avoid`: machines on which it failed; `held_by`: the v1 machine that must answer first because
    its renderer may still write (R7.4)."""

    chunk_id: int
    place: int = 0
    not_before_us: int = 0
    avoid: frozenset[int] = frozenset()
    held_by: int | None = None


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """A task in the queue, as the dispatcher keeps it.

    `one_range`: its frames are one range, or it has none; `begun`: some chunk of it ever had an attempt;
    `chunk_count` counts all its chunks, `chunks` are those that wait; `waits_for`: tasks that must succeed first.
    """

    task_id: int
    user_id: int
    priority: int
    queued_us: int
    engine: str
    download_path: str
    chunk_count: int
    chunks: tuple[QueuedChunk, ...]
    one_range: bool = True
    begun: bool = False
    paused: bool = False
    waits_for: frozenset[int] = frozenset()


_QUEUED: Final = (
    select(
        tasks.c.task_id,
        tasks.c.user_id,
        tasks.c.priority,
        tasks.c.queue_us,
        tasks.c.paused,
        tasks.c.frames,
        engines.c.name,
        engines.c.download_path,
        (
            tasks.c.chunks_waiting
            + tasks.c.chunks_assigned
            + tasks.c.chunks_running
            + tasks.c.chunks_succeeded
            + tasks.c.chunks_failed
            + tasks.c.chunks_canceled
        ).label("chunk_count"),
    )
    .select_from(
        tasks.join(renders, renders.c.render_id == tasks.c.render_id).join(
            engines, engines.c.engine_id == renders.c.engine_id
        )
    )
    .where(tasks.c.task_id.in_(select(queue.c.task_id)), tasks.c.canceled == 0)
)
_WAITING: Final = select(
    chunks.c.chunk_id, chunks.c.task_id, chunks.c.place, chunks.c.not_before_us, chunks.c.stage
).where(chunks.c.state == ChunkState.WAITING.value)
_STAGES: Final = (
    select(chunks.c.task_id, func.min(chunks.c.stage).label("stage"))
    .where(chunks.c.state != ChunkState.SUCCEEDED.value)
    .group_by(chunks.c.task_id)
)
_OLD_ATTEMPTS: Final = (
    select(chunks.c.chunk_id, attempts.c.attempt_id, attempts.c.machine_id, attempts.c.outcome)
    .select_from(chunks.join(attempts, attempts.c.chunk_id == chunks.c.chunk_id))
    .where(chunks.c.state == ChunkState.WAITING.value, chunks.c.tries > 0, attempts.c.state == AttemptState.ENDED.value)
    .order_by(attempts.c.attempt_id)
)
_BEGUN: Final = select(attempts.c.task_id).distinct()
_BLOCKED: Final = (
    select(waits.c.task_id, waits.c.waits_for_task_id)
    .select_from(waits.join(tasks, tasks.c.task_id == waits.c.waits_for_task_id))
    .where(tasks.c.is_success == 0)
)
_V1: Final = select(machines.c.machine_id).where(machines.c.secret_hash == "")


def load_queue(connection: Connection, task_ids: Collection[int] | None = None) -> tuple[QueuedTask, ...]:
    """The tasks in the queue with their waiting chunks, or those of them that are named."""

    def of(query: Select[Any], column: Any) -> Iterable[Row[Any]]:
        return connection.execute(query if task_ids is None else query.where(column.in_(sorted(task_ids))))

    blocked = defaultdict(set)
    for row in of(_BLOCKED, waits.c.task_id):
        blocked[row.task_id].add(row.waits_for_task_id)
    old = _old_attempts(connection, of(_OLD_ATTEMPTS, chunks.c.task_id))
    waiting = _waiting(list(of(_WAITING, chunks.c.task_id)), lambda: of(_STAGES, chunks.c.task_id), old)
    in_queue = _BEGUN if task_ids is not None else _BEGUN.where(attempts.c.task_id.in_(select(queue.c.task_id)))
    begun = {row.task_id for row in of(in_queue, attempts.c.task_id)}
    return tuple(
        QueuedTask(
            task_id=row.task_id,
            user_id=row.user_id,
            priority=row.priority,
            queued_us=row.queue_us,
            engine=row.name,
            download_path=row.download_path,
            chunk_count=row.chunk_count,
            chunks=tuple(waiting.get(row.task_id, ())),
            one_range="," not in (row.frames or ""),
            begun=row.task_id in begun,
            paused=bool(row.paused),
            waits_for=frozenset(blocked.get(row.task_id, ())),
        )
        for row in of(_QUEUED, tasks.c.task_id)
    )


def _waiting(rows: list[Row[Any]], stages: Any, old: Mapping[int, QueuedChunk]) -> dict[int, list[QueuedChunk]]:
    """The chunks that wait, of each task only those of its lowest stage that is not done."""
    current = {row.task_id: row.stage for row in stages()} if any(row.stage for row in rows) else {}
    waiting: dict[int, list[QueuedChunk]] = defaultdict(list)
    for row in rows:
        if row.stage <= current.get(row.task_id, row.stage):
            known = old.get(row.chunk_id)
            chunk = QueuedChunk(row.chunk_id, row.place, row.not_before_us)
            if known is not None:
                chunk = replace(chunk, avoid=known.avoid, held_by=known.held_by)
            waiting[row.task_id].append(chunk)
    return waiting


def _old_attempts(connection: Connection, rows: Iterable[Row[Any]]) -> dict[int, QueuedChunk]:
    """Where chunks failed, and which v1 machine lost them last; by chunk."""
    v1: set[int] | None = None
    found: dict[int, QueuedChunk] = {}
    for row in rows:
        if v1 is None:
            v1 = set(connection.execute(_V1).scalars())
        chunk = found.get(row.chunk_id, QueuedChunk(row.chunk_id))
        avoid = chunk.avoid | {row.machine_id} if row.outcome in _FAILURES else chunk.avoid
        held_by = row.machine_id if row.outcome == Outcome.LOST.value and row.machine_id in v1 else None
        found[row.chunk_id] = replace(chunk, avoid=avoid, held_by=held_by)
    return found


@dataclass(frozen=True, slots=True)
class LiveAttempt:
    """An attempt that some machine has, or had when we were stopped."""

    attempt_id: int
    token: str
    chunk_id: int
    task_id: int
    user_id: int
    machine_id: int
    state: AttemptState
    directory: str
    place: int
    frames: FrameRange | None


_LIVE: Final = (
    select(
        attempts.c.attempt_id,
        attempts.c.token,
        attempts.c.chunk_id,
        attempts.c.task_id,
        attempts.c.machine_id,
        attempts.c.state,
        attempts.c.directory,
        tasks.c.user_id,
        chunks.c.place,
        chunks.c.first_frame,
        chunks.c.last_frame,
        chunks.c.frame_step,
    )
    .select_from(
        attempts.join(chunks, chunks.c.chunk_id == attempts.c.chunk_id).join(
            tasks, tasks.c.task_id == attempts.c.task_id
        )
    )
    .order_by(attempts.c.attempt_id)
)


def load_live(connection: Connection) -> tuple[LiveAttempt, ...]:
    """Every attempt that has not ended."""
    states = (AttemptState.ASSIGNED.value, AttemptState.RUNNING.value)
    return tuple(_live(row) for row in connection.execute(_LIVE.where(attempts.c.state.in_(states))))


def load_attempt(connection: Connection, attempt_id: int) -> LiveAttempt | None:
    """One attempt, whatever its state; None when it or its task is gone."""
    row = connection.execute(_LIVE.where(attempts.c.attempt_id == attempt_id)).one_or_none()
    return None if row is None else _live(row)


def _live(row: Any) -> LiveAttempt:
    return LiveAttempt(
        attempt_id=row.attempt_id,
        token=row.token,
        chunk_id=row.chunk_id,
        task_id=row.task_id,
        user_id=row.user_id,
        machine_id=row.machine_id,
        state=AttemptState(row.state),
        directory=row.directory,
        place=row.place,
        frames=None if row.first_frame is None else FrameRange(row.first_frame, row.last_frame, row.frame_step or 1),
    )


def load_shares(connection: Connection) -> dict[int, int]:
    """Each user's share of the farm."""
    query = select(users.c.user_id, subscriptions.c.share).select_from(
        users.join(subscriptions, subscriptions.c.subscription_id == users.c.subscription_id)
    )
    return {row.user_id: row.share for row in connection.execute(query)}


def load_queued_ids(connection: Connection) -> frozenset[int]:
    """The tasks that have a queue row, for noticing what was added or taken away by hand (R3.4)."""
    return frozenset(connection.execute(select(queue.c.task_id)).scalars())


def load_state(connection: Connection, task_id: int) -> TaskState | None:
    """Where a task stands; None when it is gone."""
    row = look(connection, (task_id,)).get(task_id)
    return None if row is None else state_of(row)
