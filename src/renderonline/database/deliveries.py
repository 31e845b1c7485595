"""Results that go to a directory which an administrator named: which are still to go, and what became of the others.

A row is written before a file is, and holds whose name it is: a task replaces there only what it wrote itself.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, select

from renderonline.database.rows import insert, update
from renderonline.database.schema import deliveries, renders, results, tasks
from renderonline.database.work_sheet import Moment, Sheet, TaskRow, name_hash

_MOST_DIGESTS: Final = 20
"""Files that were begun to be delivered under one name and may lie there, because a stop came before the row."""


class Undelivered(NamedTuple):
    """A landed result of a task that is to be delivered, and where it lies."""

    result_id: int
    task_id: int
    name: str
    frame: int | None
    of_frame: int | None
    folder: str
    digest: str
    deliver: str
    names: str | None
    scene: str
    file_name: str


class Begun(NamedTuple):
    """A delivery of which the row is there. `before`: the digests of what may lie under this name and is the task's;
    `again`: the row was there before."""

    delivery_id: int
    before: tuple[str, ...] = ()
    again: bool = False


_UNDELIVERED: Final = (
    select(
        *(results.c[name] for name in ("result_id", "task_id", "name", "frame", "of_frame", "folder", "digest")),
        *(tasks.c.deliver, tasks.c.names, renders.c.file_path.label("scene"), renders.c.file_name),
    )
    .join(tasks, tasks.c.task_id == results.c.task_id)
    .join(renders, renders.c.render_id == tasks.c.render_id)
    # From the tasks to their results, by the index: a farm has far more results of tasks that deliver nothing.
    .where(results.c.task_id.in_(select(tasks.c.task_id).where(tasks.c.deliver.is_not(None))))
    .where(results.c.state == "landed", results.c.delivered == 0, results.c.digest != "")
    .order_by(results.c.task_id, results.c.result_id)
)
_NAMED: Final = select(deliveries).where(
    and_(deliveries.c.task_id == bindparam("task"), deliveries.c.path_hash == bindparam("hash"))
)


def undelivered(connection: Connection, but: Collection[int] = (), limit: int = 100) -> tuple[Undelivered, ...]:
    """Results that are still to be delivered, the oldest task's first; none of the tasks in `but`."""
    query = _UNDELIVERED.where(results.c.task_id.not_in(but))
    return tuple(Undelivered(**row) for row in connection.execute(query.limit(limit)).mappings())


def begin_delivery(connection: Connection, one: Undelivered, paths: Sequence[str]) -> tuple[str, Begun] | None:
    """Take the first of these paths that no other result of the task has; None when all are taken. From now on the file
    that is to lie there is known as the task's."""
    for path in paths:
        found: Any = connection.execute(_NAMED, {"task": one.task_id, "hash": name_hash(path)}).first()
        if found is None:
            about = {"task_id": one.task_id, "path_hash": name_hash(path), "path": path, "name": one.name}
            return path, Begun(insert(connection, deliveries, {**about, "digests": one.digest}))
        if found.name == one.name:
            before = tuple((found.digests or "").split())
            known = dict.fromkeys((*before[-_MOST_DIGESTS:], one.digest))
            update(connection, deliveries, found.delivery_id, {"digests": " ".join(known)})
            return path, Begun(found.delivery_id, before, again=True)
    return None


def withdraw_delivery(connection: Connection, begun: Begun) -> None:
    """Nothing was written there: what lies under this name is not the task's, whatever its bytes are."""
    if begun.delivery_id:
        update(connection, deliveries, begun.delivery_id, {"digests": " ".join(begun.before)})


def end_delivery(
    connection: Connection, one: Undelivered, moment: Moment, delivery_id: int = 0, warning: str = ""
) -> TaskRow | None:
    """It is delivered by the task (`delivery_id`) or lies there already, or (with a `warning`) it can't be; gives the
    task when it changed."""
    if delivery_id:
        update(connection, deliveries, delivery_id, {"digests": one.digest})
    update(connection, results, one.result_id, {"delivered": 2 if warning else 1})
    return warn_of_delivery(connection, one.task_id, moment, warning) if warning else None


def warn_of_delivery(connection: Connection, task_id: int, moment: Moment, warning: str) -> TaskRow | None:
    """Keep a warning with the task; None when it is gone."""
    sheet = Sheet(connection, moment)
    if sheet.lock_task(task_id) is None:
        return None
    sheet.task(task_id).warn((warning,))
    return sheet.flush()[0]
