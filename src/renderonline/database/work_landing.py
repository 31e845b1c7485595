"""Results on their way to their final name (R6): a row `landing` first, the file steps outside, then `landed`.

A result is unique by (task, output name): whoever inserts the row first wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select

from renderonline.database.schema import attempts, renders, results, tasks
from renderonline.database.work import token_fits
from renderonline.database.work_sheet import name_hash
from renderonline.farm.tasks import AttemptState, Outcome


class Decision(StrEnum):
    """What is to be done with an offered result."""

    LAND = "land"
    """The row is there: do the file steps."""
    DONE = "done"
    """This attempt has landed it before."""
    DUPLICATE = "duplicate"
    """Another attempt was first."""
    REFUSED = "refused"
    """The attempt is over, its token is wrong, or its task is canceled or gone."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A result that an attempt has, name and frame checked. `facts` is JSON."""

    attempt_id: int
    token: str
    name: str
    frame: int | None
    size: int
    digest: str
    crc32: int
    facts: str


@dataclass(frozen=True, slots=True)
class Landing:
    """An offer that was decided. `source` is the attempt's directory, `scene` the path of the task's uploaded file."""

    decision: Decision
    offer: Offer
    result_id: int = 0
    task_id: int = 0
    user_id: int = 0
    machine_id: int = 0
    source: str = ""
    scene: str = ""
    late: bool = False


_ATTEMPTS: Final = (
    select(
        attempts.c.attempt_id,
        attempts.c.chunk_id,
        attempts.c.task_id,
        attempts.c.machine_id,
        attempts.c.token,
        attempts.c.state,
        attempts.c.outcome,
        attempts.c.directory,
        tasks.c.user_id,
        tasks.c.canceled,
        renders.c.file_path,
    )
    .select_from(
        attempts.join(tasks, tasks.c.task_id == attempts.c.task_id).join(
            renders, renders.c.render_id == tasks.c.render_id
        )
    )
    .where(attempts.c.attempt_id.in_(bindparam("ids", expanding=True)))
)
_KNOWN: Final = (
    select(results.c.result_id, results.c.attempt_id, results.c.state)
    .where(results.c.task_id == bindparam("task_id"), results.c.name_hash == bindparam("name_hash"))
    .with_for_update()
)
_INSERT: Final = results.insert()
_AGAIN: Final = (
    results.update()
    .where(results.c.result_id == bindparam("key"))
    .values(size=bindparam("size"), digest=bindparam("digest"), crc32=bindparam("crc32"), facts=bindparam("facts"))
)
_DROP: Final = results.delete().where(results.c.result_id == bindparam("key"), results.c.state == "landing")


def begin_landing(
    connection: Connection, offers: Sequence[Offer], *, machine_id: int | None = None
) -> tuple[Landing, ...]:
    """Step (a) for each offer, in order. Offers of attempts of other machines than `machine_id` are refused."""
    rows = {row.attempt_id: row for row in connection.execute(_ATTEMPTS, {"ids": [o.attempt_id for o in offers]})}
    return tuple(_decide(connection, offer, rows.get(offer.attempt_id), machine_id) for offer in offers)


def _decide(connection: Connection, offer: Offer, row: Any, machine_id: int | None) -> Landing:
    if row is None or machine_id not in (None, row.machine_id) or not token_fits(offer.token, row.token):
        return Landing(Decision.REFUSED, offer)
    late = row.state == AttemptState.ENDED.value
    if row.canceled or (late and row.outcome != Outcome.LOST.value):
        return Landing(Decision.REFUSED, offer)
    hashed = name_hash(offer.name)
    known = connection.execute(_KNOWN, {"task_id": row.task_id, "name_hash": hashed}).one_or_none()
    if known is not None and known.attempt_id != offer.attempt_id:
        return Landing(Decision.DUPLICATE, offer, known.result_id, row.task_id)
    if known is not None and known.state == "landed":
        return Landing(Decision.DONE, offer, known.result_id, row.task_id)
    values = {"size": offer.size, "digest": offer.digest, "crc32": offer.crc32, "facts": offer.facts}
    if known is not None:
        result_id = known.result_id
        connection.execute(_AGAIN, {"key": result_id, **values})
    else:
        inserted = connection.execute(
            _INSERT,
            {
                "task_id": row.task_id,
                "name_hash": hashed,
                "name": offer.name,
                "chunk_id": row.chunk_id,
                "attempt_id": offer.attempt_id,
                "state": "landing",
                "frame": offer.frame,
                **values,
            },
        )
        assert inserted.inserted_primary_key is not None
        result_id = inserted.inserted_primary_key[0]
    return Landing(
        Decision.LAND,
        offer,
        result_id,
        row.task_id,
        row.user_id,
        row.machine_id,
        row.directory,
        row.file_path,
        late,
    )


def drop_landing(connection: Connection, result_ids: Sequence[int]) -> None:
    """The file steps failed: the names are free again."""
    for result_id in result_ids:
        connection.execute(_DROP, {"key": result_id})


@dataclass(frozen=True, slots=True)
class OpenLanding:
    """A row `landing` that a stop of RenderAPI left behind. `scene` is None when the task is gone."""

    result_id: int
    attempt_id: int
    name: str
    frame: int | None
    size: int
    digest: str
    source: str
    scene: str | None


def open_landings(connection: Connection) -> tuple[OpenLanding, ...]:
    """Every row `landing`, to be settled at start."""
    query = (
        select(
            results.c.result_id,
            results.c.attempt_id,
            results.c.name,
            results.c.frame,
            results.c.size,
            results.c.digest,
            attempts.c.directory,
            renders.c.file_path,
        )
        .select_from(
            results.outerjoin(attempts, attempts.c.attempt_id == results.c.attempt_id)
            .outerjoin(tasks, tasks.c.task_id == results.c.task_id)
            .outerjoin(renders, renders.c.render_id == tasks.c.render_id)
        )
        .where(results.c.state == "landing")
        .order_by(results.c.result_id)
    )
    return tuple(
        OpenLanding(
            row.result_id, row.attempt_id, row.name, row.frame, row.size, row.digest, row.directory or "", row.file_path
        )
        for row in connection.execute(query)
    )
