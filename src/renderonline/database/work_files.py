"""What the database knows of directories on disks, for those who tidy them up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, select

from renderonline.database.schema import attempts, engines
from renderonline.farm.tasks import AttemptState, Outcome

_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class AttemptFolder:
    """An attempt with a directory: whether it is live, and whether its machine may still write or report there."""

    attempt_id: int
    machine_id: int
    live: bool
    lost: bool


def download_paths(connection: Connection) -> tuple[str, ...]:
    """Every download path that an engine has."""
    return tuple(sorted(set(connection.execute(select(engines.c.download_path)).scalars())))


def folders_of(connection: Connection, attempt_ids: Sequence[int]) -> dict[int, AttemptFolder]:
    """The attempts among these that the database still has."""
    found: dict[int, AttemptFolder] = {}
    for start in range(0, len(attempt_ids), _AT_ONCE):
        query = select(attempts.c.attempt_id, attempts.c.machine_id, attempts.c.state, attempts.c.outcome).where(
            attempts.c.attempt_id.in_(attempt_ids[start : start + _AT_ONCE])
        )
        for row in connection.execute(query):
            ended = row.state == AttemptState.ENDED.value
            found[row.attempt_id] = AttemptFolder(
                row.attempt_id, row.machine_id, not ended, ended and row.outcome == Outcome.LOST.value
            )
    return found
