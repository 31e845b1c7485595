"""The files that a task was submitted with, and the attempts whose machines fetch them and send results.

Results that go to a directory which an administrator named: which are still to go, and what became of the others.

A row is written before a file is, and holds whose name it is: a task replaces there only what it wrote itself.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, select

from renderonline.database.report_rows import ATTEMPTS
from renderonline.database.schema import attempts, deliveries, insert, machines, renders, results, tasks, update
from renderonline.database.submission_rows import add_inputs, list_inputs
from renderonline.database.task_rows import Moment, Sheet, TaskRow, name_hash, result_keys
from renderonline.farm.result_names import SOUND
from renderonline.farm.tasks import AttemptState, ChunkKind, InputFile, Landed, Outcome


class Holder(NamedTuple):
    """An attempt, to one who knows its token. `over`: nothing of it is wanted any more; `scene`: the path of the
    task's uploaded file, whose name is `file_name`; `results_in`: the folder that holds its results; `film`: it makes a
    film, for which the frames are what goes in."""

    token: str
    task_id: int
    machine_id: int
    directory: str
    scene: str
    file_name: str
    results_in: str
    over: bool
    film: bool = False


_HOLDER: Final = ATTEMPTS.join(machines, machines.c.machine_id == attempts.c.machine_id).where(
    attempts.c.attempt_id == bindparam("attempt"), machines.c.secret_hash != ""
)
_RESULTS: Final = select(results.c.name).where(results.c.task_id == bindparam("task"))
_FRAMES: Final = select(results.c.name, *(results.c[name] for name in Landed._fields)).where(
    results.c.task_id == bindparam("task"),
    results.c.frame.is_not(None) | results.c.name_hash.in_(result_keys(SOUND)),
    results.c.state != "landing",
)
"""What goes into a film: frames, and their sound."""
_FRAME: Final = _FRAMES.where(results.c.name_hash.in_(bindparam("hashes", expanding=True)))
_LANDED_BY: Final = select(results.c.attempt_id).where(
    results.c.task_id == bindparam("task"), results.c.name_hash == bindparam("hash"), results.c.state == "landed"
)


def load_holder(connection: Connection, attempt_id: int) -> Holder | None:
    """An attempt of a linked machine; None when it, its task or its machine is gone, and for attempts of v1 machines,
    which ask for nothing. One that was lost is not over: what it made may be missing still (R5.5 Late results)."""
    row = connection.execute(_HOLDER, {"attempt": attempt_id}).first()
    if row is None:
        return None
    over = row.state == AttemptState.ENDED.value and bool(row.outcome != Outcome.LOST.value or row.canceled)
    return Holder(
        token=row.token,
        task_id=row.task_id,
        machine_id=row.machine_id,
        directory=row.directory,
        scene=row.file_path,
        file_name=row.file_name,
        results_in=row.results_in,
        over=over,
        film=row.kind == ChunkKind.FILM,
    )


def result_names(connection: Connection, task_id: int) -> frozenset[str]:
    """What lies in a task's directory and is no input."""
    return frozenset(connection.scalars(_RESULTS, {"task": task_id}))


def frames(connection: Connection, task_id: int) -> dict[str, Landed]:
    """The frames of a task that are there by name, also those that are to be rendered again, and their sound."""
    return {name: Landed(*facts) for name, *facts in connection.execute(_FRAMES, {"task": task_id})}


def frame(connection: Connection, task_id: int, name: str) -> Landed | None:
    """The frame of this name, if it is there."""
    found = connection.execute(_FRAME, {"task": task_id, "hashes": result_keys(name)})
    return next((Landed(*facts) for its_name, *facts in found if its_name == name), None)


def landed_by(connection: Connection, task_id: int, name: str) -> int | None:
    """The attempt whose result of this name landed, None if there is none yet."""
    found = connection.scalar(_LANDED_BY, {"task": task_id, "hash": result_keys(name)[0]})
    return None if found is None else int(found)


def store_inputs(connection: Connection, task_id: int, files: Sequence[InputFile]) -> None:
    """Remember what the files of an older task are, unless that is known already or the task is gone."""
    known = connection.scalar(select(tasks.c.task_id).where(tasks.c.task_id == task_id).with_for_update())
    if known is not None and not list_inputs(connection, task_id):
        add_inputs(connection, task_id, files)


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
