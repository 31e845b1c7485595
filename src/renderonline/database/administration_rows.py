"""The rows that administrators manage: users with their tokens (R12 Tokens), subscriptions, engines, argument types."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, func, or_, select

from renderonline.database.schema import (
    AnyRow,
    argtypes,
    engines,
    farm,
    from_row,
    insert,
    refuse_unknown,
    renders,
    subscriptions,
    tasks,
    the_row,
    update,
    users,
)
from renderonline.database.submission_rows import EngineRow, NewEngine, engine_of_row, list_engines
from renderonline.farm import result_names
from renderonline.farm.accounts import TOKEN_PREFIX, Role, Subscription, User, hash_token, token_matches
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import Conflict, InvalidRequest, NotFound

_USER: Final = tuple(users.c[one.name] for one in fields(User))
_ACTIVE_ADMIN: Final = (users.c.role == Role.ADMIN.value, users.c.is_active == 1)
_LIMITS: Final = {"queue_limit": 0, "share": 1, "running_limit": 0, "keep_days": 0, "keep_mib": 0}
"""The numbers of a subscription, and the least value of each."""
_CHANGEABLE: Final = frozenset({"first_name", "last_name", "email", "subscription_id", "is_active", "role"})
_LENGTHS: Final = {"first_name": 50, "last_name": 50, "email": 255}


@dataclass(frozen=True, slots=True)
class Account:
    """A user and the stored token: a hash, or raw when it comes from the existing system."""

    user: User
    token: str


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user to add. `token_hash` is `farm.accounts.hash_token` of the token."""

    email: str
    token_hash: str
    subscription_id: int
    first_name: str = ""
    last_name: str = ""
    role: Role = Role.ARTIST
    is_active: bool = True


def authenticate(connection: Connection, email: str, token: str) -> Account | None:
    """The active user with this e-mail and token. The tokens of all candidates are compared, in constant time."""
    matching = [account for account in _candidates(connection, email) if token_matches(account.token, token)]
    return next((account for account in matching if account.user.is_active), None)


def seal_token(connection: Connection, user_id: int, raw: str) -> bool:
    """Replace a raw token by its hash after a login with it; returns whether it was replaced. Only on a database that
    we created, or after `db migrate --upgrade-tokens` (R12 Tokens)."""
    facts = {row.key: row.value for row in connection.execute(select(farm))}
    if facts.get("origin") != "created" and facts.get("tokens") != "hashed":
        return False
    stored = connection.scalar(select(users.c.token).where(users.c.user_id == user_id).with_for_update())
    if stored != raw or stored.startswith(TOKEN_PREFIX):
        return False
    update(connection, users, user_id, {"token": hash_token(raw)})
    return True


def get_user(connection: Connection, user_id: int) -> User:
    """One user, or `NotFound`."""
    query = select(*_USER).where(users.c.user_id == user_id)
    return _user(the_row(connection, query, f"There is no user {user_id}."))


def active_account(connection: Connection, user_id: int) -> Account | None:
    """An account with its stored token, None when there is no active one."""
    query = select(*_USER, users.c.token).where(users.c.user_id == user_id, users.c.is_active == 1)
    row = connection.execute(query).first()
    return row and Account(_user(row), row.token)


def list_users(connection: Connection) -> tuple[User, ...]:
    """All users by id."""
    return tuple(_user(row) for row in connection.execute(select(*_USER).order_by(users.c.user_id)))


def has_admin(connection: Connection) -> bool:
    """Whether the farm has an active administrator."""
    return bool(connection.scalar(select(func.count()).select_from(users).where(*_ACTIVE_ADMIN)))


def add_user(connection: Connection, new: NewUser, *, now_us: int) -> User:
    """Add a user. `Conflict` when the e-mail is taken, `InvalidRequest` for values that don't fit. Run again with the
    same token, it returns the same user (R3.2 Repeatable operations)."""
    values = asdict(new)
    token_hash = values.pop("token_hash")
    _check(connection, values)
    for account in _candidates(connection, new.email):
        if account.token == token_hash:
            return account.user
    _refuse_taken(connection, new.email)
    return get_user(connection, insert(connection, users, {**values, "token": token_hash, "created_us": now_us}))


def change_user(connection: Connection, user_id: int, changes: Mapping[str, Any]) -> User:
    """Change some of first_name, last_name, email, subscription_id, is_active, role. The last active administrator
    stays one."""
    refuse_unknown(changes, _CHANGEABLE, "a user")
    connection.execute(select(users.c.user_id).where(*_ACTIVE_ADMIN).order_by(users.c.user_id).with_for_update()).all()
    before = get_user(connection, user_id)
    _check(connection, changes)
    email = changes.get("email")
    if email is not None and email.casefold() != before.email.casefold():
        _refuse_taken(connection, email)
    update(connection, users, user_id, changes)
    if before.is_active and before.role is Role.ADMIN and not has_admin(connection):
        raise Conflict("The last active administrator can't be changed. Make another user an administrator first.")
    return get_user(connection, user_id)


def set_token(connection: Connection, user_id: int, token_hash: str) -> User:
    """Replace a user's token; the old token is not accepted any more."""
    update(connection, users, user_id, {"token": token_hash})
    return get_user(connection, user_id)


def list_subscriptions(connection: Connection) -> tuple[Subscription, ...]:
    """All subscriptions by id."""
    rows = connection.execute(select(subscriptions).order_by(subscriptions.c.subscription_id))
    return tuple(from_row(Subscription, row) for row in rows)


def add_subscription(connection: Connection, /, name: str, queue_limit: int, **more: int | str) -> Subscription:
    """Add a subscription; `more` are the other fields of `Subscription`."""
    values: dict[str, Any] = {"name": name, "queue_limit": queue_limit, "share": 1, **more}
    _check_subscription(values)
    return _subscription(connection, insert(connection, subscriptions, values))


def change_subscription(connection: Connection, subscription_id: int, changes: Mapping[str, Any]) -> Subscription:
    """Change some fields."""
    _subscription(connection, subscription_id)
    _check_subscription(changes)
    update(connection, subscriptions, subscription_id, changes)
    return _subscription(connection, subscription_id)


def _candidates(connection: Connection, email: str) -> list[Account]:
    """All users with this e-mail, in any letter case; several are allowed (R12 Tokens)."""
    folded = email.casefold()
    if connection.dialect.name == "sqlite":
        roughly: ColumnElement[bool] = func.casefold(users.c.email) == folded
    else:
        roughly = func.lower(users.c.email) == func.lower(email)
    found = connection.execute(select(*_USER, users.c.token).where(roughly))
    return [Account(_user(row), row.token) for row in found if row.email.casefold() == folded]


def _refuse_taken(connection: Connection, email: str) -> None:
    if _candidates(connection, email):
        raise Conflict(f"There already is a user with the e-mail {email}.")


def _check(connection: Connection, values: Mapping[str, Any]) -> None:
    for name, longest in _LENGTHS.items():
        if len(values.get(name, "")) > longest:
            raise InvalidRequest(f"{name} is longer than {longest} characters.")
    email = values.get("email")
    if email is not None and ("@" not in email or not email.isprintable() or email != email.strip()):
        raise InvalidRequest("That is not an e-mail address. It looks like name@example.org.")
    if "subscription_id" in values:
        _subscription(connection, values["subscription_id"])


def _check_subscription(values: Mapping[str, Any]) -> None:
    refuse_unknown(values, {"name", "names", *_LIMITS}, "a subscription")
    result_names.check(values.get("names", ""), frames=2 if values.get("names") else 1)
    if len(values.get("name", "-")) not in range(1, 51):
        raise InvalidRequest("The name of a subscription has 1 to 50 characters.")
    for name, least in _LIMITS.items():
        if not least <= values.get(name, least) <= 1_000_000:
            raise InvalidRequest(f"{name} is a number from {least} to 1,000,000.")


def _subscription(connection: Connection, subscription_id: int) -> Subscription:
    query = select(subscriptions).where(subscriptions.c.subscription_id == subscription_id)
    return from_row(Subscription, the_row(connection, query, f"There is no subscription {subscription_id}."))


def _user(row: AnyRow) -> User:
    role = Role(row.role) if row.role in set(Role) else Role.ARTIST  # an unknown role gives no rights
    return from_row(User, row, is_active=row.is_active == 1, role=role)


def get_engine(connection: Connection, engine_id: int) -> EngineRow:
    """One engine, or `NotFound` with the contract's message."""
    query = select(engines).where(engines.c.engine_id == engine_id)
    return engine_of_row(the_row(connection, query, f"Engine with identifier {engine_id} not found."))


def add_engine(connection: Connection, new: NewEngine) -> EngineRow:
    """Add an engine. `Conflict` when the name is taken (names are compared without regard to letter case)."""
    values = asdict(new)
    _check_engine(connection, values, engine_id=None)
    return get_engine(connection, insert(connection, engines, values))


def change_engine(connection: Connection, engine_id: int, changes: Mapping[str, Any]) -> EngineRow:
    """Change some columns of an engine. Tasks that were submitted keep their arguments."""
    get_engine(connection, engine_id)
    _check_engine(connection, changes, engine_id=engine_id)
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


def _check_engine(connection: Connection, values: Mapping[str, Any], *, engine_id: int | None) -> None:
    refuse_unknown(values, [field.name for field in fields(NewEngine)], "an engine")
    for name in ("name", "extension"):
        if len(values.get(name, "-")) not in range(1, 51):
            raise InvalidRequest(f"The {name} of an engine has 1 to 50 characters.")
    folded = str(values.get("name", "")).casefold()
    for engine in list_engines(connection):
        if engine.name.casefold() == folded and engine.engine_id != engine_id:
            raise Conflict(f"There already is an engine {engine.name} (number {engine.engine_id}).")
