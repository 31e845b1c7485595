"""Users and subscriptions: rows, look-up by e-mail, tokens (R12 Tokens)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, func, select

from renderonline.database.rows import AnyRow, from_row, insert, refuse_unknown, the_row, update
from renderonline.database.schema import farm, subscriptions, users
from renderonline.farm import result_names
from renderonline.farm.accounts import TOKEN_PREFIX, Role, Subscription, User, hash_token, token_matches
from renderonline.farm.errors import Conflict, InvalidRequest

_USER: Final = tuple(users.c[one.name] for one in fields(User))
_ACTIVE_ADMIN: Final = (users.c.role == Role.ADMIN.value, users.c.is_active == 1)
_LIMITS: Final = {"queue_limit": 0, "share": 1, "running_limit": 0, "keep_days": 0, "keep_mib": 0}
"""The numbers of a subscription, and the least that each may be."""
_CHANGEABLE: Final = frozenset({"first_name", "last_name", "email", "subscription_id", "is_active", "role"})
_LENGTHS: Final = {"first_name": 50, "last_name": 50, "email": 255}


@dataclass(frozen=True, slots=True)
class Account:
    """A user and the token as it is stored: a hash, or raw when it comes from the existing system."""

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
    """The active user whose e-mail and token these are. Every candidate is compared, in constant time."""
    matching = [account for account in _candidates(connection, email) if token_matches(account.token, token)]
    return next((account for account in matching if account.user.is_active), None)


def seal_token(connection: Connection, user_id: int, raw: str) -> bool:
    """Replace a raw token by its hash after a login with it; gives whether it did. Only on a database that we created,
    or after `db migrate --upgrade-tokens` (R12 Tokens)."""
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
    """Whether anybody may administer this farm."""
    return bool(connection.scalar(select(func.count()).select_from(users).where(*_ACTIVE_ADMIN)))


def add_user(connection: Connection, new: NewUser, *, now_us: int) -> User:
    """Add a user. `Conflict` when the e-mail is taken, `InvalidRequest` for what a row can't hold.

    Run again with the same token it gives the same user: only the answer to the commit was lost
    (R3.2 Repeatable operations)."""
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
        raise Conflict("The last active administrator can't be changed. Make somebody else an administrator first.")
    return get_user(connection, user_id)


def set_token(connection: Connection, user_id: int, token_hash: str) -> User:
    """Give a user another token; the old one is worth nothing from now on."""
    update(connection, users, user_id, {"token": token_hash})
    return get_user(connection, user_id)


def list_subscriptions(connection: Connection) -> tuple[Subscription, ...]:
    """All subscriptions by id."""
    rows = connection.execute(select(subscriptions).order_by(subscriptions.c.subscription_id))
    return tuple(from_row(Subscription, row) for row in rows)


def names_of(connection: Connection, subscription_id: int | None) -> str:
    """The template of results' names that a subscription has, "" for none."""
    query = select(subscriptions.c.names).where(subscriptions.c.subscription_id == subscription_id)
    return connection.scalar(query) or ""


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
    """Everybody with this e-mail, in any letter case; several are allowed (R12 Tokens)."""
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
    role = Role(row.role) if row.role in set(Role) else Role.ARTIST  # a word of somebody's own gives no rights
    return from_row(User, row, is_active=row.is_active == 1, role=role)
