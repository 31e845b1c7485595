"""Results on their way to their final name (R6 Landing): a row `landing` first, the file steps outside, then `landed`.

A result is unique by (task, output name): the attempt that inserts the row first wins. A result that is to be made
again is `stale`: its file keeps the name, and is shown, until the next result of that name has taken its place."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, literal_column, select

from renderonline.database.rows import from_row, insert, update
from renderonline.database.schema import attempts, chunks, renders, results, tasks
from renderonline.database.work import token_fits
from renderonline.database.work_sheet import STALE_HASH, result_keys
from renderonline.farm.tasks import SETTLED, AttemptState, Landing, Offer, Outcome


class InPlace(NamedTuple):
    """A file in a `folder` of a task's directory ("": in the directory itself) as it is: by its name there, with
    BLAKE2b-256 in hex."""

    name: str
    folder: str
    size: int
    digest: str
    crc32: int


ATTEMPTS: Final = (
    select(attempts, tasks.c.user_id, tasks.c.results_in, renders.c.file_path, renders.c.file_name, chunks.c.kind)
    .add_columns(and_(tasks.c.canceled != 0, chunks.c.state.in_(SETTLED)).label("canceled"))
    .join(chunks, chunks.c.chunk_id == attempts.c.chunk_id)
    .join(tasks, tasks.c.task_id == attempts.c.task_id)
    .join(renders, renders.c.render_id == tasks.c.render_id)
)
"""Attempts with what is known of their tasks. `canceled`: the task, and nobody has asked for this chunk since."""
_OFFERING: Final = ATTEMPTS.where(attempts.c.attempt_id.in_(bindparam("ids", expanding=True)))
_KNOWN: Final = (
    select(*(results.c[name] for name in ("name_hash", "result_id", "attempt_id", "state", "digest")))
    .where(results.c.task_id == bindparam("task_id"), results.c.name_hash.in_(bindparam("hashes", expanding=True)))
    .with_for_update()
)
_NAMED: Final = select(results.c.chunk_id, results.c.digest).where(
    results.c.task_id == bindparam("task_id"), results.c.name_hash == bindparam("hash")
)
_REPLACED: Final = results.alias("replaced")
_OPEN: Final = (
    select(results, attempts.c.directory, attempts.c.machine_id, tasks.c.user_id, renders.c.file_path)
    .add_columns(renders.c.file_name, _REPLACED.c.result_id.label("stale_id"), _REPLACED.c.digest.label("stale_digest"))
    .outerjoin(attempts, attempts.c.attempt_id == results.c.attempt_id)
    .outerjoin(tasks, tasks.c.task_id == results.c.task_id)
    .outerjoin(renders, renders.c.render_id == tasks.c.render_id)
    .outerjoin(_REPLACED, and_(_REPLACED.c.task_id == results.c.task_id, _REPLACED.c.name_hash == STALE_HASH))
    .where(results.c.state == literal_column("'landing'"))  # as its index says it
    .order_by(results.c.result_id)
)
_STORED: Final = ("attempt_id", "name", "frame", "of_frame", "size", "digest", "crc32", "facts")


def begin_landing(connection: Connection, offers: Sequence[Offer], machine_id: int) -> tuple[Landing, ...]:
    """Step (a) for each offer of a machine, in order; returns those that are to be landed. The others: the attempt is
    not the machine's, it is over, its token is wrong, its task is canceled or gone (R5.5 Late results); it has landed
    the same before; another attempt was first."""
    found = connection.execute(_OFFERING, {"ids": [offer.attempt_id for offer in offers]})
    rows = {row.attempt_id: row for row in found if row.machine_id == machine_id and not row.canceled}
    begun = [_begin(connection, offer, rows[offer.attempt_id]) for offer in offers if offer.attempt_id in rows]
    return tuple(landing for landing in begun if landing is not None)


def differing(connection: Connection, offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """Those offers of files besides an attempt's own under whose name another chunk of their task has landed, or lands,
    other bytes."""
    found = connection.execute(_OFFERING, {"ids": [offer.attempt_id for offer in offers]})
    rows = {row.attempt_id: row for row in found}
    return tuple(one for one in offers if one.attempt_id in rows and _differs(connection, one, rows[one.attempt_id]))


def _differs(connection: Connection, offer: Offer, row: Any) -> bool:
    known = connection.execute(_NAMED, {"task_id": row.task_id, "hash": result_keys(offer.name)[0]}).first()
    return known is not None and known.chunk_id != row.chunk_id and known.digest != offer.digest


def _begin(connection: Connection, offer: Offer, row: Any) -> Landing | None:
    late = row.state == AttemptState.ENDED.value
    if not token_fits(offer.token, row.token) or (late and row.outcome != Outcome.LOST.value):
        return None
    key, stale_key = result_keys(offer.name)
    found = connection.execute(_KNOWN, {"task_id": row.task_id, "hashes": (key, stale_key)})
    rows = {one.name_hash: one for one in found}
    known, old = rows.get(key), rows.get(stale_key)
    if known is not None and (known.attempt_id != offer.attempt_id or known.state == "landed"):
        return None
    if late and old is not None:  # perhaps it was made before the frame was wanted again
        return None
    values = {name: getattr(offer, name) for name in _STORED}
    if known is not None:
        result_id = known.result_id
        update(connection, results, result_id, values)
    else:
        about = {"task_id": row.task_id, "name_hash": key, "chunk_id": row.chunk_id, "state": "landing"}
        about |= {"folder": row.results_in}
        result_id = insert(connection, results, {**about, **values})
    return Landing(
        result_id,
        offer,
        task_id=row.task_id,
        user_id=row.user_id,
        machine_id=row.machine_id,
        source=row.directory,
        scene=row.file_path,
        file_name=row.file_name,
        folder=row.results_in,
        late=late,
        stale_id=old.result_id if old else 0,
        stale_digest=old.digest if old else "",
    )


_FIRST: Final = select(chunks.c.chunk_id).where(chunks.c.task_id == bindparam("task_id")).order_by(chunks.c.chunk_id)


def take_in_place(connection: Connection, task_id: int, files: Sequence[InPlace], now_us: int) -> None:
    """Results whose bytes are from now on those that lie in their place, and results of no attempt (id 0) for files
    that nobody has landed. They belong to the task's first chunk. What is landing now is left alone."""
    chunk_id = connection.scalar(_FIRST, {"task_id": task_id})
    if chunk_id is None:  # the task is gone
        return
    for one in files:
        key, stale_key = result_keys(one.name)
        rows = connection.execute(_KNOWN, {"task_id": task_id, "hashes": (key, stale_key)}).all()
        values = one._asdict()
        for row in rows:
            if row.state != "landing":
                update(connection, results, row.result_id, values)
        if not rows:
            about = {"task_id": task_id, "chunk_id": chunk_id, "attempt_id": 0, "name_hash": key, "state": "landed"}
            insert(connection, results, {**about, **values, "landed_us": now_us})


def drop_landing(connection: Connection, result_ids: Sequence[int]) -> None:
    """The file steps failed: the names are free again."""
    ours = results.c.result_id.in_(result_ids) & (results.c.state == "landing")
    connection.execute(results.delete().where(ours))


def open_landings(connection: Connection) -> tuple[Landing, ...]:
    """Every row `landing` that a stop of RenderAPI left behind, to be settled at start."""
    return tuple(_left_behind(row) for row in connection.execute(_OPEN))


def _left_behind(row: Any) -> Landing:
    return Landing(
        row.result_id,
        from_row(Offer, row, token=None, facts="{}", more=False, wanted=()),
        task_id=row.task_id,
        user_id=row.user_id or 0,
        machine_id=row.machine_id or 0,
        source=row.directory or "",
        scene=row.file_path or "",
        file_name=row.file_name or "",
        folder=row.folder,
        stale_id=row.stale_id or 0,
        stale_digest=row.stale_digest or "",
    )
