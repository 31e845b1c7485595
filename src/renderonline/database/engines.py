"""Engines and argtypes: rows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, or_, select

from renderonline.database.rows import AnyRow, from_row, insert, refuse_unknown, the_row, update
from renderonline.database.schema import argtypes, engines, renders, tasks
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import Conflict, InvalidRequest, NotFound

_CHANGEABLE: Final = frozenset({"name", "extension", "download_path", "render_argument", "definition", "is_enabled"})


@dataclass(frozen=True, slots=True)
class NewEngine:
    """An engine to add. `definition` is the TOML of its definition; null for an engine of the existing system, which
    has a template alone. `download_path` is where its uploaded files go."""

    name: str
    extension: str
    download_path: str
    render_argument: str
    definition: str | None = None
    is_enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow(NewEngine):
    """An engine of the farm."""

    engine_id: int


def list_engines(connection: Connection) -> tuple[EngineRow, ...]:
    """All engines by id."""
    return tuple(_engine(row) for row in connection.execute(select(engines).order_by(engines.c.engine_id)))


def get_engine(connection: Connection, engine_id: int) -> EngineRow:
    """One engine, or `NotFound` with the contract's message."""
    query = select(engines).where(engines.c.engine_id == engine_id)
    return _engine(the_row(connection, query, f"Engine with identifier {engine_id} not found."))


def add_engine(connection: Connection, new: NewEngine) -> EngineRow:
    """Add an engine. `Conflict` when the name is taken (names are compared without regard to letter case)."""
    values = asdict(new)
    _check(connection, values, engine_id=None)
    return get_engine(connection, insert(connection, engines, values))


def change_engine(connection: Connection, engine_id: int, changes: Mapping[str, Any]) -> EngineRow:
    """Change some columns of an engine. Tasks that were submitted keep their arguments."""
    get_engine(connection, engine_id)
    _check(connection, changes, engine_id=engine_id)
    update(connection, engines, engine_id, changes)
    return get_engine(connection, engine_id)


def remove_engine(connection: Connection, engine_id: int) -> None:
    """Remove an engine that no task refers to; `Conflict` otherwise."""
    engine = get_engine(connection, engine_id)
    with_tasks = tasks.join(renders, renders.c.render_id == tasks.c.render_id)
    used = connection.scalar(select(func.count()).select_from(with_tasks).where(renders.c.engine_id == engine_id))
    if used:
        raise Conflict(f"{used} tasks use the engine {engine.name}. Delete them first, or disable the engine.")
    connection.execute(engines.delete().where(engines.c.engine_id == engine_id))


def list_argtypes(connection: Connection) -> tuple[ArgType, ...]:
    """All argument types by id."""
    rows = connection.execute(select(argtypes).order_by(argtypes.c.argtype_id))
    return tuple(ArgType(row.argtype_id, row.type, row.regex or "") for row in rows)


def put_argtype(connection: Connection, argtype: ArgType) -> ArgType:
    """Add an argument type, or change the one of that id."""
    if len(argtype.argtype_id) not in range(1, 51) or len(argtype.type) not in range(1, 21):
        raise InvalidRequest("The id of an argument type has 1 to 50 characters, its type 1 to 20.")
    values = {"type": argtype.type, "regex": argtype.regex or None}
    here = argtypes.c.argtype_id == argtype.argtype_id
    if not connection.execute(argtypes.update().where(here).values(**values)).rowcount:
        connection.execute(argtypes.insert().values(argtype_id=argtype.argtype_id, **values))
    return argtype


def remove_argtype(connection: Connection, argtype_id: str) -> None:
    """Remove an argument type that no engine's template names; `NotFound`, `Conflict`."""
    places = (engines.c.render_argument, engines.c.definition)
    named = or_(*(column.contains(f"$RENDERONLINE:{argtype_id}", autoescape=True) for column in places))
    if used := connection.scalars(select(engines.c.name).where(named)).first():
        raise Conflict(f"The engine {used} uses the argument type {argtype_id}. Change or remove the engine first.")
    if not connection.execute(argtypes.delete().where(argtypes.c.argtype_id == argtype_id)).rowcount:
        raise NotFound(f"There is no argument type {argtype_id}.")


def _check(connection: Connection, values: Mapping[str, Any], *, engine_id: int | None) -> None:
    refuse_unknown(values, _CHANGEABLE, "an engine")
    for name in ("name", "extension"):
        if len(values.get(name, "-")) not in range(1, 51):
            raise InvalidRequest(f"The {name} of an engine has 1 to 50 characters.")
    folded = str(values.get("name", "")).casefold()
    for engine in list_engines(connection):
        if engine.name.casefold() == folded and engine.engine_id != engine_id:
            raise Conflict(f"There already is an engine {engine.name} (number {engine.engine_id}).")


def _engine(row: AnyRow) -> EngineRow:
    return from_row(EngineRow, row, is_enabled=bool(row.is_enabled))
