"""Statements that run for every chunk: each is compiled once for a dialect, and its text goes to the driver with the
values of all rows at once.

SQLAlchemy's table definitions stay the only place that knows columns and their types. What is saved is what it does
around each execution, which is several times the driver's own work: a cache key, a result with named rows, a dictionary
for each row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Delete, Dialect, Insert, Select, Update

_AT_ONCE: Final = 1000
IDS: Final = "ids"
"""The name of the expanding parameter of a statement that `Statement.rows` runs."""

T = TypeVar("T")
Convert = Callable[[Any], Any]
Values = tuple[Any, ...] | dict[str, Any]


def portions(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """The values in parts that are short enough for one statement."""
    return (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))


@dataclass(frozen=True, slots=True)
class _Text:
    """A statement in one dialect. `names`: its parameters, in the order of the text; `positional`: whether the driver
    takes a tuple of them, or a dictionary. `fixed`: those that are part of the statement; `ids`: those of `IDS`."""

    text: str
    names: tuple[str, ...]
    positional: bool
    fixed: Mapping[str, Any]
    converted: Mapping[str, Convert]
    ids: tuple[str, ...] = ()

    def values(self, row: Mapping[str, Any]) -> Values:
        given: Any = row
        if self.fixed or self.converted or not self.positional:
            given = {**self.fixed, **row}
            for name, convert in self.converted.items():
                given[name] = convert(given[name])
        return tuple([given[name] for name in self.names]) if self.positional else given


class Statement:
    """One statement of SQLAlchemy's Core."""

    def __init__(self, statement: Select[Any] | Insert | Update | Delete) -> None:
        self._statement = statement
        self._texts: dict[tuple[str, int], _Text] = {}
        self._readers: dict[str, list[tuple[int, Convert]]] = {}

    def run(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run the statement once for each of these rows of parameters; none is no work."""
        if rows:
            text = self._text(connection.dialect, 0)
            values: Any = [text.values(row) for row in rows]
            connection.exec_driver_sql(text.text, values if len(rows) > 1 else values[0])

    def add(self, connection: Connection, row: Mapping[str, Any]) -> int:
        """Insert one row; returns the id that it got."""
        text = self._text(connection.dialect, 0)
        return int(connection.exec_driver_sql(text.text, text.values(row)).lastrowid)

    def first(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Any] | None:
        """The first row that a query without `IDS` finds; None when there is none."""
        return next(iter(self.every(connection, values)), None)

    def every(
        self, connection: Connection, values: Mapping[str, Any] = MappingProxyType({})
    ) -> Sequence[Sequence[Any]]:
        """The rows that a query without `IDS` finds."""
        text = self._text(connection.dialect, 0)
        return self._read(connection, connection.exec_driver_sql(text.text, text.values(values)).all())

    def rows(self, connection: Connection, ids: Sequence[int]) -> Sequence[Sequence[Any]]:
        """The rows that a query finds for these ids, in the query's order within each thousand of them."""
        found: list[Sequence[Any]] = []
        for some in portions(ids):
            count = 1 << (len(some) - 1).bit_length()  # so that few texts serve all numbers of ids
            text = self._text(connection.dialect, count)
            padded = [*some, *[some[-1]] * (count - len(some))]
            values: Any = text.values(dict(zip(text.ids, padded, strict=True)))
            found += connection.exec_driver_sql(text.text, values)
        return self._read(connection, found)

    def _read(self, connection: Connection, found: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
        """The rows of a query with the values that its columns' types have in Python."""
        if not found or not (readers := self._readers[connection.dialect.name]):
            return found
        read = [list(row) for row in found]
        for row in read:
            for place, convert in readers:
                row[place] = convert(row[place])
        return read

    def _text(self, dialect: Dialect, ids: int) -> _Text:
        known = self._texts.get((dialect.name, ids))
        if known is None:
            known = self._texts[dialect.name, ids] = self._compiled(dialect, ids)
        return known

    def _compiled(self, dialect: Dialect, ids: int) -> _Text:
        compiled: Any = self._statement.compile(dialect=dialect)
        binds = {name: bind for name, bind in compiled.binds.items() if name != IDS}
        given = dict.fromkeys(name for name, bind in binds.items() if bind.required)
        state = compiled.construct_expanded_state(given | ({IDS: [0] * ids} if ids else {}))
        columns = getattr(self._statement, "selected_columns", ())
        readers = ((place, _reader(column.type, dialect)) for place, column in enumerate(columns))
        self._readers[dialect.name] = [(place, reader) for place, reader in readers if reader is not None]
        writers = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in binds.items()}
        return _Text(
            state.statement,
            names=tuple(state.positiontup or ()),
            positional=bool(compiled.positional),
            fixed={name: bind.value for name, bind in binds.items() if not bind.required},
            converted={name: writer for name, writer in writers.items() if writer is not None},
            ids=tuple(state.parameter_expansion.get(IDS, ())),
        )


def _reader(kind: Any, dialect: Dialect) -> Convert | None:
    reader: Convert | None = kind.dialect_impl(dialect).result_processor(dialect, None)
    return reader
