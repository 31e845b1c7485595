"""`db check`: recompute what must follow from the chunks (R2), and look for what must never be.

Every finding is an error, save the warnings: raw tokens (R12), no administrator, limits that are exceeded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Table, case, func, select

from renderonline.database import ids
from renderonline.database.accounts import has_admin
from renderonline.database.schema import (
    attempts,
    chunks,
    engines,
    farm,
    machines,
    queue,
    renders,
    results,
    subscriptions,
    tasks,
    users,
    waits_for,
)
from renderonline.farm.accounts import TOKEN_PREFIX
from renderonline.farm.tasks import LIVE, AttemptState, ChunkState, Counters, TaskStatus, task_status

MAX_FINDINGS: Final = 1000

_Row = Row[*tuple[Any, ...]]
_LIVE_ATTEMPTS: Final = (AttemptState.ASSIGNED.value, AttemptState.RUNNING.value)
_ENDED: Final = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELED})
_STATES: Final = tuple(state.value for state in ChunkState)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not fit: in which table, of which row, and what. A warning breaks nothing."""

    table: str
    key: str
    message: str
    is_warning: bool = False


def check(connection: Connection) -> tuple[Finding, ...]:
    """Everything that does not fit, at most `MAX_FINDINGS`, all seen at one moment. Changes nothing."""
    return tuple(islice(_all(connection), MAX_FINDINGS))


def _all(connection: Connection) -> Iterator[Finding]:
    yield from _tasks(connection)
    yield from _orphans(connection)
    yield from _leases(connection)
    yield from _frames(connection)
    yield from _counters_of_ids(connection)
    yield from _accounts(connection)


# -- tasks


def _tasks(connection: Connection) -> Iterator[Finding]:
    sums = (
        select(
            chunks.c.task_id,
            *(func.sum(case((chunks.c.state == state, 1), else_=0)).label(f"real_{state}") for state in _STATES),
        )
        .group_by(chunks.c.task_id)
        .subquery()
    )
    queued = select(queue.c.task_id, func.count().label("rows")).group_by(queue.c.task_id).subquery()
    query = (
        select(
            tasks,
            *(func.coalesce(sums.c[f"real_{state}"], 0).label(f"real_{state}") for state in _STATES),
            func.coalesce(queued.c.rows, 0).label("queue_rows"),
            renders.c.render_id.label("known_render"),
            engines.c.engine_id.label("known_engine"),
            users.c.user_id.label("known_user"),
        )
        .select_from(tasks)
        .outerjoin(sums, sums.c.task_id == tasks.c.task_id)
        .outerjoin(queued, queued.c.task_id == tasks.c.task_id)
        .outerjoin(renders, renders.c.render_id == tasks.c.render_id)
        .outerjoin(engines, engines.c.engine_id == renders.c.engine_id)
        .outerjoin(users, users.c.user_id == tasks.c.user_id)
        .order_by(tasks.c.task_id)
    )
    for row in connection.execute(query):
        for message in _contradictions(row):
            yield Finding("tasks", str(row.task_id), message)


def _contradictions(row: _Row) -> Iterator[str]:
    counted = {state: int(getattr(row, f"real_{state}")) for state in _STATES}
    stored = {state: int(getattr(row, f"chunks_{state}")) for state in _STATES}
    if not any(counted.values()):
        yield "It has no chunks. `renderonline db migrate` adopts tasks that were inserted by hand."
        return
    if counted != stored:
        yield f"Its counters say {_words(stored)}, its chunks are {_words(counted)}."
    status = task_status(Counters(**counted), canceled=bool(row.canceled), paused=bool(row.paused))
    yield from _projection(row, status)
    yield from _frames_of(row, status)
    for name in ("render", "engine", "user"):
        if getattr(row, f"known_{name}") is None and status not in _ENDED:
            yield f"Its {name} does not exist."


def _projection(row: _Row, status: TaskStatus) -> Iterator[str]:
    """v1's columns and the queue row (R2)."""
    if bool(row.is_running) is not (status is TaskStatus.RUNNING):
        yield f"is_running is {row.is_running}, but it is {status}."
    if bool(row.is_success) is not (status is TaskStatus.SUCCEEDED):
        yield f"is_success is {row.is_success}, but it is {status}."
    if (row.end_us is not None) is not (status in _ENDED) or (row.end_us is None) is not (row.end_time is None):
        yield f"Its end is {row.end_us} and {row.end_time}, but it is {status}."
    if row.queue_rows != (0 if status in _ENDED else 1):
        yield f"It has {row.queue_rows} queue rows, but it is {status}."


def _frames_of(row: _Row, status: TaskStatus) -> Iterator[str]:
    if not 0 <= row.frames_done <= row.frames_total:
        yield f"{row.frames_done} of {row.frames_total} frames are said to be done."
    elif status is TaskStatus.SUCCEEDED and row.frames_done != row.frames_total:
        yield f"It succeeded with {row.frames_done} of {row.frames_total} frames."


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"


# -- rows that refer to nothing

_REFERENCES: Final = (
    (queue.c.queue_id, queue.c.task_id, tasks.c.task_id),
    (chunks.c.chunk_id, chunks.c.task_id, tasks.c.task_id),
    (attempts.c.attempt_id, attempts.c.task_id, tasks.c.task_id),
    (attempts.c.attempt_id, attempts.c.chunk_id, chunks.c.chunk_id),
    (results.c.result_id, results.c.task_id, tasks.c.task_id),
    (waits_for.c.task_id, waits_for.c.task_id, tasks.c.task_id),
)


def _orphans(connection: Connection) -> Iterator[Finding]:
    for key, reference, target in _REFERENCES:
        lost = select(key, reference).outerjoin(target.table, target == reference).where(target.is_(None))
        for row in connection.execute(lost.limit(MAX_FINDINGS)):
            kind = target.table.name.removesuffix("s")
            yield Finding(key.table.name, str(row[0]), f"It belongs to {kind} {row[1]}, which does not exist.")


# -- leases: no chunk has two, a chunk has one exactly while it is assigned or running


def _leases(connection: Connection) -> Iterator[Finding]:
    live = (
        select(attempts.c.chunk_id, func.count().label("leases"), func.max(attempts.c.state).label("state"))
        .where(attempts.c.state.in_(_LIVE_ATTEMPTS))
        .group_by(attempts.c.chunk_id)
        .subquery()
    )
    query = (
        select(
            chunks.c.chunk_id, chunks.c.state, func.coalesce(live.c.leases, 0).label("leases"), live.c.state.label("a")
        )
        .select_from(chunks)
        .outerjoin(live, live.c.chunk_id == chunks.c.chunk_id)
        .where(chunks.c.state.in_([state.value for state in LIVE]) | live.c.leases.is_not(None))
    )
    for row in connection.execute(query):
        wanted = 1 if row.state in LIVE else 0
        if row.leases != wanted:
            yield Finding("chunks", str(row.chunk_id), f"It is {row.state} and has {row.leases} live attempts.")
        elif wanted and row.state != row.a:
            yield Finding("chunks", str(row.chunk_id), f"It is {row.state}, its attempt is {row.a}.")
    yield from _leases_of_nobody(connection)


def _leases_of_nobody(connection: Connection) -> Iterator[Finding]:
    query = (
        select(attempts.c.attempt_id, attempts.c.machine_id)
        .outerjoin(machines, machines.c.machine_id == attempts.c.machine_id)
        .where(attempts.c.state.in_(_LIVE_ATTEMPTS), machines.c.machine_id.is_(None))
    )
    for row in connection.execute(query):
        yield Finding("attempts", str(row.attempt_id), f"It lives on machine {row.machine_id}, which does not exist.")
    ended = select(attempts.c.attempt_id).where(
        (attempts.c.state == AttemptState.ENDED.value) & (attempts.c.outcome.is_(None) | attempts.c.ended_us.is_(None))
    )
    for row in connection.execute(ended.limit(MAX_FINDINGS)):
        yield Finding("attempts", str(row.attempt_id), "It has ended without an outcome or an end.")


# -- results: each frame has one


def _frames(connection: Connection) -> Iterator[Finding]:
    twice = (
        select(results.c.task_id, results.c.frame, func.count().label("files"))
        .where(results.c.frame.is_not(None))
        .group_by(results.c.task_id, results.c.frame)
        .having(func.count() > 1)
    )
    for row in connection.execute(twice.limit(MAX_FINDINGS)):
        yield Finding("results", str(row.task_id), f"Frame {row.frame} of task {row.task_id} has {row.files} files.")
    landing = select(results.c.result_id, results.c.name).where(
        results.c.state.not_in(("landing", "landed")) | ((results.c.state == "landed") & results.c.landed_us.is_(None))
    )
    for row in connection.execute(landing.limit(MAX_FINDINGS)):
        yield Finding("results", str(row.result_id), f"{row.name} is in no known state, or landed without a time.")


# -- ids and accounts


def _counters_of_ids(connection: Connection) -> Iterator[Finding]:
    stored = {row.key: row.value for row in connection.execute(select(farm.c.key, farm.c.value))}
    own = attempts.c.attempt_id >= ids.FIRST_ATTEMPT
    for key, column, condition in (
        (ids.CHUNKS, chunks.c.chunk_id, None),
        (ids.ATTEMPTS, attempts.c.attempt_id, own),
    ):
        highest = _highest(connection, column, condition)
        if int(stored.get(key, 0)) <= highest:
            yield Finding("farm", key, f"It is {stored.get(key, 'missing')}, but id {highest} is in use.")


def _highest(connection: Connection, column: ColumnElement[int], condition: ColumnElement[bool] | None) -> int:
    query = select(func.max(column))
    return connection.scalar(query if condition is None else query.where(condition)) or 0


def _accounts(connection: Connection) -> Iterator[Finding]:
    raw = _count(connection, users, users.c.token.not_like(TOKEN_PREFIX + "%"))
    if raw:
        yield Finding(
            "users",
            str(raw),
            f"{raw} tokens are stored raw. `renderonline db migrate --upgrade-tokens` ends that.",
            True,
        )
    if not has_admin(connection):
        yield Finding("users", "role", "Nobody is an active administrator.", True)
    used = (
        select(tasks.c.user_id, func.count().label("queued"))
        .join(queue, queue.c.task_id == tasks.c.task_id)
        .group_by(tasks.c.user_id)
        .subquery()
    )
    query = (
        select(users.c.user_id, used.c.queued, subscriptions.c.queue_limit)
        .join(used, used.c.user_id == users.c.user_id)
        .outerjoin(subscriptions, subscriptions.c.subscription_id == users.c.subscription_id)
    )
    for row in connection.execute(query):
        if row.queued > (row.queue_limit or 0):
            message = f"{row.queued} tasks are in the queue; the limit is {row.queue_limit or 0}."
            yield Finding("users", str(row.user_id), message, True)


def _count(connection: Connection, table: Table, condition: ColumnElement[bool]) -> int:
    return connection.scalar(select(func.count()).select_from(table).where(condition)) or 0
