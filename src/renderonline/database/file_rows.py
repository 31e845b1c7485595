"""Attempts whose machines fetch files and send results, and results that are delivered to an administrator's directory.

A delivery's row is written before its file, and holds the names and digests of a task's files there: a task replaces
only files that it wrote itself.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, func, select

from renderonline.database.report_rows import ATTEMPTS
from renderonline.database.schema import attempts, deliveries, insert, machines, renders, results, tasks, update
from renderonline.database.submission_rows import add_inputs, list_inputs
from renderonline.database.task_rows import Moment, Sheet, TaskRow, keep_bytes, name_hash, result_keys
from renderonline.farm.result_names import SOUND
from renderonline.farm.tasks import AttemptState, ChunkKind, InputFile, Landed, Outcome


class Holder(NamedTuple):
    """An attempt with its token, for the machine that has it. `over`: nothing more of it is accepted; `scene`: the path
    of the task's uploaded file, whose name is `file_name`; `results_in`: the folder of its results; `film`: it makes a
    film, so its inputs are the frames."""

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
"""The inputs of a film: frames, and their sound."""
_FRAME: Final = _FRAMES.where(results.c.name_hash.in_(bindparam("hashes", expanding=True)))
_LANDED_BY: Final = select(results.c.attempt_id).where(
    results.c.task_id == bindparam("task"), results.c.name_hash == bindparam("hash"), results.c.state == "landed"
)


def load_holder(connection: Connection, attempt_id: int) -> Holder | None:
    """An attempt of a linked machine; None for attempts of v1 machines, and when it, its task or its machine is gone.
    A lost attempt is not over: its results may still be missing (R5.5 Late results)."""
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
    """The names of all results of a task."""
    return frozenset(connection.scalars(_RESULTS, {"task": task_id}))


def frames(connection: Connection, task_id: int) -> dict[str, Landed]:
    """The landed frames of a task by name, also those that are to be rendered again, and their sound."""
    return {name: Landed(*facts) for name, *facts in connection.execute(_FRAMES, {"task": task_id})}


def frame(connection: Connection, task_id: int, name: str) -> Landed | None:
    """The landed frame of this name, None when there is none."""
    found = connection.execute(_FRAME, {"task": task_id, "hashes": result_keys(name)})
    return next((Landed(*facts) for its_name, *facts in found if its_name == name), None)


def landed_by(connection: Connection, task_id: int, name: str) -> int | None:
    """The attempt whose result of this name landed, None when there is none."""
    return connection.scalar(_LANDED_BY, {"task": task_id, "hash": name_hash(name)})


def store_inputs(connection: Connection, task_id: int, files: Sequence[InputFile]) -> None:
    """Store the facts of an older task's files, unless they are stored already or the task is gone."""
    query = select(tasks.c.user_id, func.coalesce(renders.c.file_size, 0).label("size"))
    query = query.outerjoin(renders, renders.c.render_id == tasks.c.render_id).where(tasks.c.task_id == task_id)
    known = connection.execute(query.with_for_update()).first()
    if known is not None and files and not list_inputs(connection, task_id):
        add_inputs(connection, task_id, files)
        keep_bytes(connection, {known.user_id: sum(file.size for file in files) - known.size})


_MOST_DIGESTS: Final = 20
"""How many digests are stored of files that may lie under one name, because deliveries of them were interrupted."""


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
    """A delivery whose row is stored. `before`: the digests of the task's files that may lie under this name; `again`:
    the row was there before."""

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
    """Results that are still to be delivered, the oldest task's first; without the tasks in `but`."""
    query = _UNDELIVERED.where(results.c.task_id.not_in(but))
    return tuple(Undelivered(**row) for row in connection.execute(query.limit(limit)).mappings())


def begin_delivery(connection: Connection, result: Undelivered, paths: Sequence[str]) -> tuple[str, Begun] | None:
    """Take the first of these paths that no other result of the task has, and store the digest of the file that is to
    lie there; None when all paths are taken."""
    for path in paths:
        found: Any = connection.execute(_NAMED, {"task": result.task_id, "hash": name_hash(path)}).first()
        if found is None:
            about = {"task_id": result.task_id, "path_hash": name_hash(path), "path": path, "name": result.name}
            return path, Begun(insert(connection, deliveries, {**about, "digests": result.digest}))
        if found.name == result.name:
            before = tuple((found.digests or "").split())
            known = dict.fromkeys((*before[-_MOST_DIGESTS:], result.digest))
            update(connection, deliveries, found.delivery_id, {"digests": " ".join(known)})
            return path, Begun(found.delivery_id, before, again=True)
    return None


def withdraw_delivery(connection: Connection, begun: Begun) -> None:
    """Undo `begin_delivery`: no file was written, so the file of this name is not the task's, whatever its bytes."""
    if begun.delivery_id:
        update(connection, deliveries, begun.delivery_id, {"digests": " ".join(begun.before)})


def end_delivery(
    connection: Connection, result: Undelivered, moment: Moment, delivery_id: int = 0, warning: str = ""
) -> TaskRow | None:
    """Store that a result was delivered by the task (`delivery_id`), lies there already, or (`warning`) can't be
    delivered; returns the task when it changed."""
    if delivery_id:
        update(connection, deliveries, delivery_id, {"digests": result.digest})
    update(connection, results, result.result_id, {"delivered": 2 if warning else 1})
    return warn_of_delivery(connection, result.task_id, moment, warning) if warning else None


def warn_of_delivery(connection: Connection, task_id: int, moment: Moment, warning: str) -> TaskRow | None:
    """Store a warning with the task; None when the task is gone."""
    sheet = Sheet(connection, moment)
    if sheet.lock_task(task_id) is None:
        return None
    sheet.task(task_id).warn((warning,))
    return sheet.flush()[0]
