"""How long tasks stay and how much they take: a subscription's `keep_days` and `keep_mib`.

A task takes what it was submitted with and its results. One that has not ended, or for which a task waits that has not
ended, never goes.
"""

from collections.abc import Collection
from typing import Final, Literal, NamedTuple

from sqlalchemy import BigInteger, Connection, bindparam, cast, func, select

from renderonline.database.rows import portions
from renderonline.database.schema import attempts, inputs, renders, results, subscriptions, tasks, users, waits_for

DAY_US: Final = 24 * 3600 * 1_000_000
_later = tasks.alias("later")
_WAITED_FOR: Final = (
    select(waits_for.c.task_id)
    .join(_later, _later.c.task_id == waits_for.c.task_id)
    .where(waits_for.c.waits_for_task_id == tasks.c.task_id, _later.c.end_us.is_(None))
)
_MAY_GO: Final = tasks.c.end_us.is_not(None) & ~_WAITED_FOR.exists()
_GIVEN: Final = select(func.sum(inputs.c.size)).where(inputs.c.task_id == tasks.c.task_id).scalar_subquery()
_MADE: Final = select(func.sum(results.c.size)).where(results.c.task_id == tasks.c.task_id).scalar_subquery()
_SIZE: Final = cast(func.coalesce(_GIVEN, renders.c.file_size, 0) + func.coalesce(_MADE, 0), BigInteger)
_KEPT: Final = (
    select(tasks.c.task_id, _SIZE, _MAY_GO)
    .outerjoin(renders, renders.c.render_id == tasks.c.render_id)
    .where(tasks.c.user_id == bindparam("user"))
    .order_by(tasks.c.end_us, tasks.c.task_id)
)
_MINE: Final = select(subscriptions.c.keep_days).join(users, users.c.subscription_id == subscriptions.c.subscription_id)
KEEP_DAYS: Final = _MINE.where(users.c.user_id == tasks.c.user_id).correlate(tasks).scalar_subquery().label("keep_days")
"""Of the owner of a task."""
_END: Final = bindparam("now", type_=BigInteger) - cast(KEEP_DAYS, BigInteger) * DAY_US
_DUE: Final = select(tasks.c.task_id).where(KEEP_DAYS > 0, tasks.c.end_us < _END, _MAY_GO).limit(1000)
_ONE: Final = select(tasks.c.task_id).where(tasks.c.task_id == bindparam("task"), _MAY_GO)


class KeptTask(NamedTuple):
    """What a task takes of the disk in bytes, and whether it could go."""

    task_id: int
    size: int
    may_go: bool


def kept(connection: Connection, user_id: int) -> tuple[KeptTask, ...]:
    """The tasks of a user, those that ended first before the others."""
    return tuple(KeptTask(*row) for row in connection.execute(_KEPT, {"user": user_id}))


def kept_bytes(connection: Connection, user_id: int) -> int:
    """What all tasks of a user take."""
    return sum(task.size for task in kept(connection, user_id))


def due(connection: Connection, now_us: int) -> tuple[int, ...]:
    """Tasks whose days are over, at most a thousand."""
    return tuple(connection.scalars(_DUE, {"now": now_us}))


def may_go(connection: Connection, task_id: int) -> bool:
    """Whether a task has ended and nothing waits for it."""
    return connection.scalar(_ONE, {"task": task_id}) is not None


def gone(connection: Connection, kind: Literal["task", "attempt"], ids: Collection[int]) -> frozenset[int]:
    """Those of these tasks or attempts that the database does not have."""
    column = tasks.c.task_id if kind == "task" else attempts.c.attempt_id
    known = (connection.scalars(select(column).where(column.in_(part))) for part in portions(sorted(ids)))
    return frozenset(ids).difference(*known)
