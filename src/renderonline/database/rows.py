"""Rows as values, and what all of them are changed with."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Connection, Executable, Insert, Row, Table

from renderonline.farm.errors import InvalidRequest, NotFound

T = TypeVar("T")
AnyRow = Row[*tuple[Any, ...]]


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


def refuse_unknown(changes: Mapping[str, Any], known: Collection[str], of: str) -> None:
    """Raise `InvalidRequest` for a column that can't be changed."""
    if unknown := sorted(changes.keys() - set(known)):
        raise InvalidRequest(f"{unknown[0]} of {of} can't be changed.")
