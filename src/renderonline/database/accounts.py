"""Users and subscriptions: rows, look-up by e-mail, tokens (R12)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, func, select

from renderonline.database.schema import farm, subscriptions, users
from renderonline.farm.accounts import TOKEN_PREFIX, Role, Subscription, User, hash_token, token_matches
from renderonline.farm.errors import Conflict, InvalidRequest, NotFound

_USER: Final = (
    users.c.user_id,
    users.c.first_name,
    users.c.last_name,
    users.c.email,
    users.c.subscription_id,
    users.c.is_active,
    users.c.role,
)
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


def candidates(connection: Connection, email: str) -> tuple[Account, ...]:
    """Everybody with this e-mail, in any letter case; several are allowed (R12)."""
    found = connection.execute(select(*_USER, users.c.token).where(_same_email(connection, email))).all()
    folded = email.casefold()
    return tuple(Account(_user(row), row.token) for row in found if row.email.casefold() == folded)


def authenticate(connection: Connection, email: str, token: str) -> Account | None:
    """The active user whose e-mail and token these are. Every candidate is compared, in constant time."""
    matching = [account for account in candidates(connection, email) if token_matches(account.token, token)]
    return next((account for account in matching if account.user.is_active), None)


def seal_token(connection: Connection, user_id: int, raw: str) -> bool:
    """Replace a raw token by its hash, if this database allows it (R12); gives whether it did. To be called after a
    login with a token that is stored raw."""
    if not may_seal(connection):
        return False
    stored = connection.scalar(select(users.c.token).where(users.c.user_id == user_id).with_for_update())
    if stored != raw or stored.startswith(TOKEN_PREFIX):
        return False
    connection.execute(users.update().where(users.c.user_id == user_id).values(token=hash_token(raw)))
    return True


def may_seal(connection: Connection) -> bool:
    """Whether raw tokens may be replaced: on a database that we created, or after `db migrate --upgrade-tokens`."""
    facts = dict(connection.execute(select(farm.c.key, farm.c.value).where(farm.c.key.in_(("origin", "tokens")))).all())
    return facts.get("origin") == "created" or facts.get("tokens") == "hashed"


def get_user(connection: Connection, user_id: int) -> User:
    """One user, or `NotFound`."""
    row = connection.execute(select(*_USER).where(users.c.user_id == user_id)).first()
    if row is None:
        raise NotFound(f"There is no user {user_id}.")
    return _user(row)


def list_users(connection: Connection) -> tuple[User, ...]:
    """All users by id."""
    return tuple(_user(row) for row in connection.execute(select(*_USER).order_by(users.c.user_id)))


def has_admin(connection: Connection) -> bool:
    """Whether anybody may administer this farm."""
    return bool(connection.scalar(select(func.count()).select_from(users).where(*_active_admin())))


def add_user(connection: Connection, new: NewUser, *, now_us: int) -> User:
    """Add a user. `Conflict` when the e-mail is taken, `InvalidRequest` for what a row can't hold.

    Run again with the same token it gives the same user: only the answer to the commit was lost (R3.2)."""
    values = {
        "first_name": new.first_name,
        "last_name": new.last_name,
        "email": new.email,
        "subscription_id": new.subscription_id,
        "is_active": new.is_active,
        "role": new.role,
    }
    _check(connection, values)
    for account in candidates(connection, new.email):
        if account.token == new.token_hash:
            return account.user
    _refuse_taken(connection, new.email)
    inserted = connection.execute(users.insert().values(**_plain(values), token=new.token_hash, created_us=now_us))
    return get_user(connection, _key(inserted))


def change_user(connection: Connection, user_id: int, changes: Mapping[str, Any]) -> User:
    """Change some of first_name, last_name, email, subscription_id, is_active, role. The last active administrator
    stays one."""
    unknown = sorted(changes.keys() - _CHANGEABLE)
    if unknown:
        raise InvalidRequest(f"{unknown[0]} of a user can't be changed.")
    connection.execute(
        select(users.c.user_id).where(*_active_admin()).order_by(users.c.user_id).with_for_update()
    ).all()
    before = get_user(connection, user_id)
    _check(connection, changes)
    email = changes.get("email")
    if email is not None and email.casefold() != before.email.casefold():
        _refuse_taken(connection, email)
    if changes:
        connection.execute(users.update().where(users.c.user_id == user_id).values(**_plain(changes)))
    after = get_user(connection, user_id)
    if before.is_active and before.role is Role.ADMIN and not has_admin(connection):
        raise Conflict("The last active administrator can't be changed. Make somebody else an administrator first.")
    return after


def set_token(connection: Connection, user_id: int, token_hash: str) -> User:
    """Give a user another token; the old one is worth nothing from now on."""
    user = get_user(connection, user_id)
    connection.execute(users.update().where(users.c.user_id == user_id).values(token=token_hash))
    return user


def list_subscriptions(connection: Connection) -> tuple[Subscription, ...]:
    """All subscriptions by id."""
    rows = connection.execute(select(subscriptions).order_by(subscriptions.c.subscription_id))
    return tuple(_subscription(row) for row in rows)


def get_subscription(connection: Connection, subscription_id: int) -> Subscription:
    """One subscription, or `NotFound`."""
    row = connection.execute(select(subscriptions).where(subscriptions.c.subscription_id == subscription_id)).first()
    if row is None:
        raise NotFound(f"There is no subscription {subscription_id}.")
    return _subscription(row)


def add_subscription(connection: Connection, name: str, queue_limit: int, share: int = 1) -> Subscription:
    """Add a subscription: how many tasks may wait or run at once, and the share inside a priority class."""
    values = {"name": name, "queue_limit": queue_limit, "share": share}
    _check_subscription(values)
    inserted = connection.execute(subscriptions.insert().values(**values))
    return get_subscription(connection, _key(inserted))


def change_subscription(connection: Connection, subscription_id: int, changes: Mapping[str, Any]) -> Subscription:
    """Change some of name, queue_limit, share."""
    get_subscription(connection, subscription_id)
    _check_subscription(changes)
    if changes:
        connection.execute(
            subscriptions.update().where(subscriptions.c.subscription_id == subscription_id).values(**changes)
        )
    return get_subscription(connection, subscription_id)


def _same_email(connection: Connection, email: str) -> ColumnElement[bool]:
    # A rough choice by the database; `candidates` compares exactly.
    if connection.dialect.name == "sqlite":
        return func.casefold(users.c.email) == email.casefold()
    return func.lower(users.c.email) == func.lower(email)


def _refuse_taken(connection: Connection, email: str) -> None:
    if candidates(connection, email):
        raise Conflict(f"There already is a user with the e-mail {email}.")


def _check(connection: Connection, values: Mapping[str, Any]) -> None:
    for name, longest in _LENGTHS.items():
        if len(values.get(name, "")) > longest:
            raise InvalidRequest(f"{name} is longer than {longest} characters.")
    email = values.get("email")
    if email is not None and ("@" not in email or not email.isprintable() or email != email.strip()):
        raise InvalidRequest("That is not an e-mail address. It looks like name@example.org.")
    if "subscription_id" in values:
        get_subscription(connection, values["subscription_id"])


def _check_subscription(values: Mapping[str, Any]) -> None:
    unknown = sorted(values.keys() - {"name", "queue_limit", "share"})
    if unknown:
        raise InvalidRequest(f"A subscription has no {unknown[0]}.")
    if len(values.get("name", "-")) not in range(1, 51):
        raise InvalidRequest("The name of a subscription has 1 to 50 characters.")
    if not 0 <= values.get("queue_limit", 0) <= 1_000_000:
        raise InvalidRequest("queue_limit is a number from 0 to 1,000,000.")
    if not 1 <= values.get("share", 1) <= 1_000_000:
        raise InvalidRequest("share is a number from 1 to 1,000,000.")


def _active_admin() -> tuple[ColumnElement[bool], ...]:
    return users.c.role == Role.ADMIN.value, users.c.is_active == 1


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: int(value) if isinstance(value, bool) else value for name, value in values.items()}


def _key(inserted: Any) -> int:
    return int(inserted.inserted_primary_key[0])


def _user(row: Row[*tuple[Any, ...]]) -> User:
    role = Role(row.role) if row.role in set(Role) else Role.ARTIST  # a word of somebody's own gives no rights
    return User(
        user_id=row.user_id,
        first_name=row.first_name,
        last_name=row.last_name,
        email=row.email,
        subscription_id=row.subscription_id,
        is_active=row.is_active == 1,
        role=role,
    )


def _subscription(row: Row[*tuple[Any, ...]]) -> Subscription:
    return Subscription(row.subscription_id, row.name, row.queue_limit, row.share)
