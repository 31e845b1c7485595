"""Rows as values, and what all of them are changed with."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Executable, Insert, Row, Table, Update, bindparam

from renderonline.farm.errors import InvalidRequest, NotFound
from renderonline.farm.frames import FrameRange

T = TypeVar("T")
AnyRow = Row[*tuple[Any, ...]]
FRAMES: Final = ("first_frame", "last_frame", "frame_step")
_AT_ONCE: Final = 1000


def from_row(kind: type[T], row: AnyRow, **given: Any) -> T:
    """A dataclass from the columns of its fields' names; `given` stand for columns that hold something else."""
    names = [one.name for one in fields(kind) if one.init and one.name not in given]  # type: ignore[arg-type]
    return kind(**{name: getattr(row, name) for name in names}, **given)


def the_row(connection: Connection, query: Executable, missing: str) -> AnyRow:
    """The first row of a query, or `NotFound` with this message."""
    row = connection.execute(query).first()
    if row is None:
        raise NotFound(missing)
    return row


def json_object(text: str | None) -> dict[str, Any]:
    """A JSON object of a column; empty when there is none."""
    value = json.loads(text) if text else None
    return value if isinstance(value, dict) else {}


def json_texts(text: str | None) -> tuple[str, ...]:
    """The texts of a JSON list in a column; none when there is no list."""
    value = json.loads(text) if text else None
    return tuple(map(str, value)) if isinstance(value, list) else ()


def texts_json(texts: Sequence[str]) -> str | None:
    """A column's JSON list of texts; null for none."""
    return json.dumps(texts, ensure_ascii=False) if texts else None


def frames_of(first: int | None, last: int | None, step: int | None) -> FrameRange | None:
    """A chunk's frames from its columns, `FRAMES`."""
    return None if first is None or last is None else FrameRange(first, last, step or 1)


def shape_of(frames: FrameRange | None) -> dict[str, int | None]:
    """A chunk's columns from its frames."""
    shape = (frames.first, frames.last, frames.step) if frames else (None, None, None)
    return dict(zip(FRAMES, shape, strict=True))


def portions(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """As many at once as a statement names without growing out of hand."""
    return (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))


@cache
def inserting(table: Table) -> Insert:
    """The statement that adds a row, built once: SQLAlchemy takes longer to build one than SQLite to run it."""
    return table.insert()


def insert(connection: Connection, table: Table, values: Mapping[str, Any]) -> int:
    """Add a row; gives its new id."""
    inserted = connection.execute(inserting(table), dict(values)).inserted_primary_key
    assert inserted is not None
    return int(inserted[0])


def update(connection: Connection, table: Table, row_id: int, changes: Mapping[str, Any]) -> None:
    """Change some columns of the row with this id."""
    if changes:
        connection.execute(table.update().where(table.primary_key.columns[0] == row_id).values(**changes))


def updating(table: Table, names: Iterable[str]) -> Update:
    """The statement that writes these columns of the row whose id is `key`."""
    same = table.primary_key.columns[0] == bindparam("key")
    return table.update().where(same).values({name: bindparam(name) for name in names})


def refuse_unknown(changes: Mapping[str, Any], known: Collection[str], of: str) -> None:
    """Raise `InvalidRequest` for a column that can't be changed."""
    if unknown := sorted(changes.keys() - set(known)):
        raise InvalidRequest(f"{unknown[0]} of {of} can't be changed.")
