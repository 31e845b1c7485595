"""The rows that administrators manage: users with their tokens (R12 Tokens), subscriptions, engines, argument types,
machines with their join codes. Tokens, secrets and join codes are stored as hashes only, but for the tokens of the
existing system.

v1 machines have an address and ids below 1000; linked machines have ids from 1000 (R1.1 Unique ids) and a secret.

The routes check numbers and choices; here is checked what depends on other rows or on the columns.
"""

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Table, func, or_, select

from renderonline.database.machine_rows import MachineRow, get_machine, secret_hash
from renderonline.database.schema import (
    LIVE_ATTEMPT,
    AnyRow,
    argtypes,
    attempts,
    engines,
    farm_value,
    from_row,
    insert,
    join_codes,
    machines,
    renders,
    row_of,
    rows_of,
    set_farm_value,
    subscriptions,
    tasks,
    update,
    users,
)
from renderonline.database.submission_rows import EngineRow, NewEngine, list_engines
from renderonline.farm import result_names
from renderonline.farm.accounts import TOKEN_PREFIX, Role, Subscription, User, hash_token, token_matches
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import Conflict, InvalidRequest, NotAuthenticated, NotFound
from renderonline.farm.machines import Wish, checked_address, checked_hours
from renderonline.farm.needs import checked_pool, checked_tags

_ACTIVE_ADMIN: Final = (users.c.role == Role.ADMIN.value, users.c.is_active == 1)
_CHANGEABLE: Final = frozenset({"first_name", "last_name", "email", "subscription_id", "is_active", "role"})
_NEVER_EMPTY: Final = frozenset({"name", "extension", "argtype_id", "type"})
_FIRST_LINKED: Final = 1000
_WRITTEN: Final[Mapping[str, Callable[[Any], str]]] = {
    "tags": lambda tags: " ".join(checked_tags(tags)),
    "pool": checked_pool,
    "hours": checked_hours,
}
_CODE_LETTERS: Final = "ABCDEFGHJKMNPQRSTVWXYZ23456789"
_CODE_GROUPS: Final = 3


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
    if farm_value(connection, "origin") != "created" and farm_value(connection, "tokens") != "hashed":
        return False
    stored = connection.scalar(select(users.c.token).where(users.c.user_id == user_id).with_for_update())
    if stored != raw or stored.startswith(TOKEN_PREFIX):
        return False
    update(connection, users, user_id, {"token": hash_token(raw)})
    return True


def get_user(connection: Connection, user_id: int) -> User:
    """One user, or `NotFound`."""
    return _user(row_of(connection, users, user_id, f"There is no user {user_id}."))


def active_account(connection: Connection, user_id: int) -> Account | None:
    """An account with its stored token, None when there is no active one."""
    row = connection.execute(select(users).where(users.c.user_id == user_id, users.c.is_active == 1)).first()
    return Account(_user(row), row.token) if row else None


def list_users(connection: Connection) -> tuple[User, ...]:
    """All users by id."""
    return tuple(map(_user, rows_of(connection, users)))


def has_admin(connection: Connection) -> bool:
    """Whether the farm has an active administrator."""
    return bool(connection.scalar(select(func.count()).select_from(users).where(*_ACTIVE_ADMIN)))


def add_user(connection: Connection, new: NewUser, *, now_us: int) -> User:
    """Add a user. `Conflict` when the e-mail is taken, `InvalidRequest` for values that don't fit. Run again with the
    same token, it returns the same user (R3.2 Repeatable operations)."""
    values = asdict(new)
    token_hash = values.pop("token_hash")
    _check_user(connection, values)
    for account in _candidates(connection, new.email):
        if account.token == token_hash:
            return account.user
    _refuse_taken(connection, new.email)
    return get_user(connection, insert(connection, users, {**values, "token": token_hash, "created_us": now_us}))


def change_user(connection: Connection, user_id: int, changes: Mapping[str, Any]) -> User:
    """Change some of first_name, last_name, email, subscription_id, is_active, role. The last active administrator
    stays one."""
    connection.execute(select(users.c.user_id).where(*_ACTIVE_ADMIN).order_by(users.c.user_id).with_for_update()).all()
    before = get_user(connection, user_id)
    _check_user(connection, changes)
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
    return tuple(from_row(Subscription, row) for row in rows_of(connection, subscriptions))


def limits(connection: Connection, user_id: int) -> dict[str, int]:
    """How many tasks a user may have in the queue (0 without a subscription), and how much their tasks take and may
    take."""
    query = select(subscriptions.c.queue_limit, subscriptions.c.keep_mib, users.c.kept_bytes).select_from(
        users.outerjoin(subscriptions, subscriptions.c.subscription_id == users.c.subscription_id)
    )
    row = connection.execute(query.where(users.c.user_id == user_id)).first()
    return {name: row[at] or 0 if row else 0 for at, name in enumerate(("queue_limit", "keep_mib", "kept_bytes"))}


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
    found = connection.execute(select(users).where(roughly))
    return [Account(_user(row), row.token) for row in found if row.email.casefold() == folded]


def _refuse_taken(connection: Connection, email: str) -> None:
    if _candidates(connection, email):
        raise Conflict(f"There already is a user with the e-mail {email}.")


def _check_columns(table: Table, values: Mapping[str, Any], known: Collection[str], of: str) -> None:
    """Refuse columns that can't be changed, texts that don't fit into theirs, and empty names."""
    if unknown := sorted(values.keys() - set(known)):
        raise InvalidRequest(f"{unknown[0]} of {of} can't be changed.")
    for name, value in values.items():
        least, most = int(name in _NEVER_EMPTY), getattr(table.c[name].type, "length", None)
        if most is not None and not least <= len(value) <= most:
            raise InvalidRequest(f"The {name} of {of} has {least} to {most} characters.")


def _check_user(connection: Connection, values: Mapping[str, Any]) -> None:
    _check_columns(users, values, _CHANGEABLE, "a user")
    email = values.get("email")
    if email is not None and ("@" not in email or not email.isprintable() or email != email.strip()):
        raise InvalidRequest("That is not an e-mail address. It looks like name@example.org.")
    if "subscription_id" in values:
        _subscription(connection, values["subscription_id"])


def _check_subscription(values: Mapping[str, Any]) -> None:
    _check_columns(
        subscriptions, values, Subscription.__dataclass_fields__.keys() - {"subscription_id"}, "a subscription"
    )
    result_names.check(values.get("names", ""), frames=2 if values.get("names") else 1)


def _subscription(connection: Connection, subscription_id: int) -> Subscription:
    missing = f"There is no subscription {subscription_id}."
    return from_row(Subscription, row_of(connection, subscriptions, subscription_id, missing))


def _user(row: AnyRow) -> User:
    role = Role(row.role) if row.role in set(Role) else Role.ARTIST  # an unknown role has no rights
    return from_row(User, row, is_active=row.is_active == 1, role=role)


def get_engine(connection: Connection, engine_id: int) -> EngineRow:
    """One engine, or `NotFound` with the contract's message."""
    missing = f"Engine with identifier {engine_id} not found."
    return from_row(EngineRow, row_of(connection, engines, engine_id, missing))


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
    values = {"argtype_id": argtype.argtype_id, "type": argtype.type, "regex": argtype.regex or None}
    _check_columns(argtypes, values, values, "an argument type")
    here = argtypes.c.argtype_id == argtype.argtype_id
    if not connection.execute(argtypes.update().where(here).values(**values)).rowcount:
        connection.execute(argtypes.insert().values(**values))
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
    _check_columns(engines, values, NewEngine.__dataclass_fields__, "an engine")
    folded = str(values.get("name", "")).casefold()
    for engine in list_engines(connection):
        if engine.name.casefold() == folded and engine.engine_id != engine_id:
            raise Conflict(f"There already is an engine {engine.name} (number {engine.engine_id}).")


@dataclass(frozen=True, slots=True)
class JoinCode:
    """A join code (shown once, stored hashed): how many machines may use it, until when, and how many slots each of
    them may have (0: `farm.machines.slots_allowed`)."""

    code: str
    uses: int
    expires_us: int
    slots: int = 0


def add_v1(connection: Connection, ip_address: str, port: int, *, now_us: int) -> MachineRow:
    """Add a v1 machine. `Conflict` when the address is there already."""
    ip_address = checked_address(ip_address)
    same = (machines.c.ip_address == ip_address) & (machines.c.port == port)
    if connection.scalar(select(func.count()).select_from(machines).where(same)):
        raise Conflict(f"There already is a machine at {ip_address}:{port}.")
    machine_id = _next_id(connection, is_linked=False)
    values = {"machine_id": machine_id, "ip_address": ip_address, "port": port, "name": ip_address}
    return get_machine(connection, insert(connection, machines, {**values, "created_us": now_us}))


def change_machine(connection: Connection, machine_id: int, changes: Mapping[str, Any]) -> MachineRow:
    """Change some of wish, wish_reason, name, tags (list), pool, hours, slots_allowed."""
    get_machine(connection, machine_id)
    changes = {**changes, **{name: write(changes[name]) for name, write in _WRITTEN.items() if name in changes}}
    _check_columns(machines, changes, {"wish", "wish_reason", "name", "slots_allowed", *_WRITTEN}, "a machine")
    unbench = {"benched_us": 0, "bench_reason": ""} if changes.get("wish") == Wish.ACTIVE else {}
    update(connection, machines, machine_id, {**changes, **unbench})
    return get_machine(connection, machine_id)


def remove_machine(connection: Connection, machine_id: int) -> None:
    """Remove a machine that has no live attempt; its secret is not accepted any more."""
    machine = get_machine(connection, machine_id)
    query = select(func.count()).select_from(attempts).where(LIVE_ATTEMPT, attempts.c.machine_id == machine_id)
    if connection.scalar(query):
        raise Conflict(f"Machine {machine.name or machine_id} has work. Drain it first, or cancel its tasks.")
    connection.execute(machines.delete().where(machines.c.machine_id == machine_id))


def invite(
    connection: Connection, *, uses: int, expires_us: int, created_by: int, now_us: int, slots: int = 0
) -> JoinCode:
    """Make a join code, and remove those that are expired or used up."""
    connection.execute(join_codes.delete().where((join_codes.c.expires_us <= now_us) | (join_codes.c.uses_left < 1)))
    code = "-".join("".join(secrets.choice(_CODE_LETTERS) for _ in range(4)) for _ in range(_CODE_GROUPS))
    values = {"code_hash": _hash_code(code), "uses_left": uses, "expires_us": expires_us, "created_by": created_by}
    connection.execute(join_codes.insert(), {**values, "slots": slots})
    return JoinCode(code, uses, expires_us, slots)


def check_code(connection: Connection, code: str, *, now_us: int, lock: bool = False) -> AnyRow:
    """The row of a join code; `NotAuthenticated` unless a machine may join with it now. `lock`: and lock it."""
    query = select(join_codes).where(join_codes.c.code_hash == _hash_code(code))
    found = connection.execute(query.with_for_update() if lock else query).first()
    if found is None or found.expires_us <= now_us or found.uses_left < 1:
        raise NotAuthenticated("This join code is not valid any more. Ask for a new one: renderonline machine invite.")
    return found


def enroll(connection: Connection, code: str, name: str, secret: str, *, now_us: int) -> MachineRow:
    """Use a join code once: make a linked machine with this secret. `NotAuthenticated` when the code is unknown, used
    up or expired. Returns the same machine when it is run again with the same secret (R3.2 Repeatable operations)."""
    known = connection.scalar(select(machines.c.machine_id).where(machines.c.secret_hash == secret_hash(secret)))
    if known is not None:
        return get_machine(connection, known)
    found = check_code(connection, code, now_us=now_us, lock=True)
    if not name or len(name) > 100 or not name.isprintable():
        raise InvalidRequest("A machine's name has 1 to 100 printable characters.")
    update(connection, join_codes, found.code_hash, {"uses_left": found.uses_left - 1})
    machine_id = _next_id(connection, is_linked=True)
    values = {"machine_id": machine_id, "ip_address": "", "port": 0, "name": name, "secret_hash": secret_hash(secret)}
    more = {"slots_allowed": found.slots, "created_us": now_us}
    return get_machine(connection, insert(connection, machines, values | more))


def _next_id(connection: Connection, *, is_linked: bool) -> int:
    """An id that no machine has or ever had."""
    key, first = ("next_linked_machine_id", _FIRST_LINKED) if is_linked else ("next_v1_machine_id", 1)
    same_kind = machines.c.machine_id >= _FIRST_LINKED if is_linked else machines.c.machine_id < _FIRST_LINKED
    counter = farm_value(connection, key, lock=True)
    highest = connection.scalar(select(func.max(machines.c.machine_id)).where(same_kind))
    machine_id = max(int(counter or 0), int(highest or 0) + 1, first)
    if not is_linked and machine_id >= _FIRST_LINKED:
        raise Conflict("There is no number left for another v1 machine. Join it as a linked machine instead.")
    set_farm_value(connection, key, str(machine_id + 1))
    return machine_id


def _hash_code(code: str) -> str:
    return secret_hash("".join(letter for letter in code.upper() if letter.isalnum()))
