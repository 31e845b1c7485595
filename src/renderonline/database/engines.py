"""Engines and argtypes: rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, func, or_, select

from renderonline.database.schema import argtypes, engines, renders, tasks
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import Conflict, InvalidRequest, NotFound

_CHANGEABLE: Final = frozenset({"name", "extension", "download_path", "render_argument", "definition", "is_enabled"})
_LENGTHS: Final = {"name": 50, "extension": 50}


@dataclass(frozen=True, slots=True)
class EngineRow:
    """An engine. `definition` is the TOML of its definition; null for an engine of the existing system, which has a
    template alone. `download_path` is where its uploaded files go."""

    engine_id: int
    name: str
    extension: str
    download_path: str
    render_argument: str
    definition: str | None
    is_enabled: bool


@dataclass(frozen=True, slots=True)
class NewEngine:
    """An engine to add."""

    name: str
    extension: str
    download_path: str
    render_argument: str
    definition: str | None = None
    is_enabled: bool = True


def list_engines(connection: Connection) -> tuple[EngineRow, ...]:
    """All engines by id."""
    return tuple(_engine(row) for row in connection.execute(select(engines).order_by(engines.c.engine_id)))


def get_engine(connection: Connection, engine_id: int) -> EngineRow:
    """One engine, or `NotFound` with the contract's message."""
    row = connection.execute(select(engines).where(engines.c.engine_id == engine_id)).first()
    if row is None:
        raise NotFound(f"Engine with identifier {engine_id} not found.")
    return _engine(row)


def find_engine(connection: Connection, name_or_id: str) -> EngineRow:
    """The engine of this name (any letter case) or number; of several of the same name the oldest."""
    folded = name_or_id.casefold()
    for engine in list_engines(connection):
        if engine.name.casefold() == folded or str(engine.engine_id) == name_or_id:
            return engine
    raise NotFound(f"Engine with identifier {name_or_id} not found.")


def add_engine(connection: Connection, new: NewEngine) -> EngineRow:
    """Add an engine. `Conflict` when the name is taken (names are compared without regard to letter case)."""
    values = {name: getattr(new, name) for name in _CHANGEABLE}
    _check(connection, values, engine_id=None)
    inserted = connection.execute(engines.insert().values(**_plain(values)))
    assert inserted.inserted_primary_key is not None
    return get_engine(connection, int(inserted.inserted_primary_key[0]))


def change_engine(connection: Connection, engine_id: int, changes: Mapping[str, Any]) -> EngineRow:
    """Change some columns of an engine. Tasks that were submitted keep their arguments."""
    get_engine(connection, engine_id)
    _check(connection, changes, engine_id=engine_id)
    if changes:
        connection.execute(engines.update().where(engines.c.engine_id == engine_id).values(**_plain(changes)))
    return get_engine(connection, engine_id)


def remove_engine(connection: Connection, engine_id: int) -> None:
    """Remove an engine that no task refers to; `Conflict` otherwise."""
    engine = get_engine(connection, engine_id)
    used = connection.scalar(
        select(func.count())
        .select_from(tasks.join(renders, renders.c.render_id == tasks.c.render_id))
        .where(renders.c.engine_id == engine_id)
    )
    if used:
        raise Conflict(f"{used} tasks use the engine {engine.name}. Delete them first, or disable the engine.")
    connection.execute(engines.delete().where(engines.c.engine_id == engine_id))


def list_argtypes(connection: Connection) -> tuple[ArgType, ...]:
    """All argument types by id."""
    return tuple(_argtype(row) for row in connection.execute(select(argtypes).order_by(argtypes.c.argtype_id)))


def put_argtype(connection: Connection, argtype: ArgType) -> ArgType:
    """Add an argument type, or change the one of that id."""
    if len(argtype.argtype_id) not in range(1, 51) or len(argtype.type) not in range(1, 21):
        raise InvalidRequest("The id of an argument type has 1 to 50 characters, its type 1 to 20.")
    values = {"type": argtype.type, "regex": argtype.regex or None}
    here = argtypes.c.argtype_id == argtype.argtype_id
    if connection.scalar(select(func.count()).select_from(argtypes).where(here)):
        connection.execute(argtypes.update().where(here).values(**values))
    else:
        connection.execute(argtypes.insert().values(argtype_id=argtype.argtype_id, **values))
    return argtype


def remove_argtype(connection: Connection, argtype_id: str) -> None:
    """Remove an argument type that no engine's template names; `NotFound`, `Conflict`."""
    used = connection.scalars(
        select(engines.c.name).where(
            or_(
                engines.c.render_argument.contains(f"$RENDERONLINE:{argtype_id}", autoescape=True),
                engines.c.definition.contains(f"$RENDERONLINE:{argtype_id}", autoescape=True),
            )
        )
    ).first()
    if used is not None:
        raise Conflict(f"The engine {used} uses the argument type {argtype_id}. Change or remove the engine first.")
    removed = connection.execute(argtypes.delete().where(argtypes.c.argtype_id == argtype_id))
    if not removed.rowcount:
        raise NotFound(f"There is no argument type {argtype_id}.")


def _check(connection: Connection, values: Mapping[str, Any], *, engine_id: int | None) -> None:
    unknown = sorted(values.keys() - _CHANGEABLE)
    if unknown:
        raise InvalidRequest(f"An engine has no {unknown[0]}.")
    for name, longest in _LENGTHS.items():
        if name in values and len(values[name]) not in range(1, longest + 1):
            raise InvalidRequest(f"The {name} of an engine has 1 to {longest} characters.")
    folded = str(values.get("name", "")).casefold()
    for engine in list_engines(connection):
        if engine.name.casefold() == folded and engine.engine_id != engine_id:
            raise Conflict(f"There already is an engine {engine.name} (number {engine.engine_id}).")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: int(value) if isinstance(value, bool) else value for name, value in values.items()}


def _engine(row: Row[*tuple[Any, ...]]) -> EngineRow:
    return EngineRow(
        engine_id=row.engine_id,
        name=row.name,
        extension=row.extension,
        download_path=row.download_path,
        render_argument=row.render_argument,
        definition=row.definition,
        is_enabled=bool(row.is_enabled),
    )


def _argtype(row: Row[*tuple[Any, ...]]) -> ArgType:
    return ArgType(row.argtype_id, row.type, row.regex or "")
