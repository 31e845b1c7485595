"""The files that a task was submitted with, and the attempts whose machines fetch them and send results."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, select

from renderonline.database.schema import attempts, machines, results, tasks
from renderonline.database.submissions import add_inputs, list_inputs
from renderonline.database.work_landing import ATTEMPTS
from renderonline.database.work_sheet import result_keys
from renderonline.farm.films import SOUND
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
