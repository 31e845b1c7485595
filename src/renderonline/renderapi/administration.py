"""The use cases of operators and administrators: accounts, engines, argument types, machines; and the first start."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import structlog

from renderonline.database import administration_rows, machine_rows, submission_rows
from renderonline.database.administration_rows import JoinCode, NewUser
from renderonline.database.door import Connection, Database
from renderonline.database.machine_rows import MachineRow
from renderonline.database.submission_rows import EngineRow, NewEngine
from renderonline.engines.command_lines import argtypes as argtypes_of
from renderonline.engines.definition import EngineDefinition, parse_definition, shipped
from renderonline.farm.accounts import Role, Subscription, User, hash_token
from renderonline.farm.arguments import ArgType, check_value
from renderonline.farm.errors import Conflict, InvalidRequest, NotAuthenticated, RenderOnlineError
from renderonline.renderapi.auth import Throttle
from renderonline.sandbox.privacy import private_read, write_private

log = structlog.get_logger(__name__)

FIRST_LOGIN: Final = "first-login.json"

P = ParamSpec("P")
T = TypeVar("T")
Values = Mapping[str, Any]


def add_engine(connection: Connection, definition: str, download_path: str) -> EngineRow:
    """Add an engine from the TOML of its definition, and the argument types that it needs."""
    parsed = parse_definition(definition)
    _check_download_path(download_path)
    new = NewEngine(parsed.name, parsed.extensions[0], download_path, parsed.template, definition)
    row = administration_rows.add_engine(connection, new)
    _project_argtypes(connection, parsed)
    return row


def _change_engine(connection: Connection, engine_id: int, changes: Values) -> EngineRow:
    """Change an engine: its definition (and with it name, extension and template), download_path, is_enabled."""
    values = dict(changes)
    if "definition" in values:
        parsed = parse_definition(values["definition"])
        values |= {"name": parsed.name, "extension": parsed.extensions[0], "render_argument": parsed.template}
        _project_argtypes(connection, parsed)
    if "download_path" in values:
        _check_download_path(values["download_path"])
    return administration_rows.change_engine(connection, engine_id, values)


def _project_argtypes(connection: Connection, definition: EngineDefinition) -> None:
    """The rows of `argtypes` are the rule for values, so what the engine's own definition says must stand there."""
    rows = {row.argtype_id: row for row in submission_rows.list_argtypes(connection)}
    for wanted in argtypes_of(definition):
        row = rows.get(wanted.argtype_id)
        if row is None:
            administration_rows.put_argtype(connection, wanted)
        elif row != wanted:
            raise Conflict(
                f"Argument type {wanted.argtype_id} is {_rule(row)} on this farm, but the engine wants "
                f"{_rule(wanted)}. Change it with `renderonline engine argtype`, or rename the engine's argument."
            )


def _rule(argtype: ArgType) -> str:
    return f"{argtype.type} ({argtype.regex})" if argtype.regex else argtype.type


def _check_download_path(path: str) -> None:
    if not Path(path).is_absolute() or "\0" in path:
        raise InvalidRequest("download_path must be an absolute path.")


def _add_user(connection: Connection, values: Values, now_us: int) -> User:
    if values.get("subscription_id") is None:
        if not (known := administration_rows.list_subscriptions(connection)):
            raise InvalidRequest("There is no subscription yet. Add one first: renderonline subscription add.")
        values = {**values, "subscription_id": known[0].subscription_id}
    return administration_rows.add_user(connection, NewUser(**values), now_us=now_us)


@dataclass(frozen=True, slots=True)
class Resource:
    """How the rows of one kind are listed, found, changed and removed in the database."""

    rows: Callable[[Connection], tuple[Any, ...]]
    find: Callable[[Connection, int], Any] | None = None
    change: Callable[[Connection, int, Values], Any] | None = None
    remove: Callable[[Connection, Any], None] | None = None


USERS: Final = Resource(administration_rows.list_users, administration_rows.get_user, administration_rows.change_user)
SUBSCRIPTIONS: Final = Resource(administration_rows.list_subscriptions, change=administration_rows.change_subscription)
ENGINES: Final = Resource(
    submission_rows.list_engines, administration_rows.get_engine, _change_engine, administration_rows.remove_engine
)
ARGTYPES: Final = Resource(submission_rows.list_argtypes, remove=administration_rows.remove_argtype)
MACHINES: Final = Resource(
    machine_rows.list_machines, change=administration_rows.change_machine, remove=administration_rows.remove_machine
)


class Administration:
    """Runs the use cases; `changed` makes what was changed count at once instead of within 5 s."""

    def __init__(
        self,
        database: Database,
        changed: Callable[[], Awaitable[None]],
        throttle: Throttle,
        *,
        files: Path,
        data_directory: Path,
    ) -> None:
        self._database, self._changed, self._throttle = database, changed, throttle
        self._files, self._data_directory = files, data_directory

    async def rows(self, kind: Resource) -> tuple[Any, ...]:
        return await self._database.read(kind.rows)

    async def row(self, kind: Resource, key: int) -> Any:
        find = kind.find
        assert find is not None
        return await self._database.read(lambda connection: find(connection, key))

    async def limits(self, user: User) -> dict[str, int]:
        """How many tasks somebody may have in the queue (0 without a subscription), and how much their tasks take and
        may take."""
        return await self._database.read(partial(administration_rows.limits, user_id=user.user_id))

    async def change(self, kind: Resource, key: int, changes: Values) -> Any:
        """Change some fields of a row; returns it as it is then."""
        if not changes:
            raise InvalidRequest("Name at least one field to change.")
        assert kind.change is not None
        return await self._write(kind.change, key, changes)

    async def remove(self, kind: Resource, key: int | str) -> None:
        assert kind.remove is not None
        await self._write(kind.remove, key)

    async def add_user(self, values: Values) -> tuple[User, str]:
        """A new account and its token, which is shown this once only (R12 Tokens)."""
        token = secrets.token_urlsafe(32)
        return await self._write(_add_user, {**values, "token_hash": hash_token(token)}, _now_us()), token

    async def new_token(self, user_id: int) -> str:
        """Another token; the old one and all sessions of the account end now."""
        token = secrets.token_urlsafe(32)
        await self._write(administration_rows.set_token, user_id, hash_token(token))
        return token

    async def used_on_the_page(self, token: str) -> None:
        """Somebody logged in on the page with this token. The file of the first login goes when it is that one: who
        typed it has it."""
        await asyncio.to_thread(_forget_login, self._data_directory / FIRST_LOGIN, token)

    async def add_subscription(self, values: Values) -> Subscription:
        return await self._write(administration_rows.add_subscription, **values)

    async def add_engine(self, definition: str, download_path: str | None) -> EngineRow:
        """A new engine; its files go to the farm's own place unless a path is named."""
        return await self._write(add_engine, definition, download_path or str(self._files))

    async def put_argtype(self, argtype: ArgType) -> ArgType:
        """Add or change an argument type. `InvalidRequest` for a type or a regex that could never be used."""
        _check_argtype(argtype)
        return await self._write(administration_rows.put_argtype, argtype)

    async def add_machine(self, ip_address: str, port: int) -> MachineRow:
        """A machine that speaks v1."""
        return await self._write(administration_rows.add_v1, ip_address, port, now_us=_now_us())

    async def invite(self, uses: int, hours: float, slots: int, created_by: int) -> JoinCode:
        """A code with which machines join, for a while."""
        now_us = _now_us()
        end_us = now_us + int(hours * 3600 * 1_000_000)
        return await self._write(
            administration_rows.invite, uses=uses, expires_us=end_us, created_by=created_by, now_us=now_us, slots=slots
        )

    async def enroll(self, client: str, code: str, name: str) -> tuple[int, str]:
        """A machine joins with a code: its number and the secret that is its own from now on. `NotAuthenticated` for a
        code that is not valid, the later the more of them there were."""
        secret = secrets.token_urlsafe(32)
        try:  # looked at first: trying codes out does not reach the writer
            await self._database.read(partial(administration_rows.check_code, code=code, now_us=_now_us()))
            row = await self._write(administration_rows.enroll, code, name, secret, now_us=_now_us())
        except NotAuthenticated:
            await self._throttle.wrong("join code", client)
            raise
        log.info("machine has joined", machine=row.machine_id, name=name, client=client)
        return row.machine_id, secret

    async def _write(self, operation: Callable[Concatenate[Connection, P], T], *given: P.args, **named: P.kwargs) -> T:
        written = await self._database.write(lambda connection: operation(connection, *given, **named))
        await self._changed()
        return written


def _now_us() -> int:
    return time.time_ns() // 1000


def _check_argtype(argtype: ArgType) -> None:
    try:
        with contextlib.suppress(InvalidRequest):  # that the rule does not take an empty value is all right
            check_value(argtype, "")
    except RenderOnlineError as error:
        known = "file, path, extension, word, sentence, natural, integer or real"
        raise InvalidRequest(f"{error.message} Use {known}, or a valid regex.") from error


def bootstrap(database: Database, *, files: Path, data_directory: Path, now_us: int) -> None:
    """Make what is missing: a subscription, an administrator, and on a new farm the shipped engines. Blocks.
    `InvalidRequest` when others may read the first login."""
    with contextlib.suppress(FileNotFoundError):
        private_read(data_directory / FIRST_LOGIN)
    if not database.read_now(submission_rows.list_engines) and not database.read_now(administration_rows.list_users):
        for toml in shipped().values():
            database.write_now(partial(add_engine, definition=toml, download_path=str(files)))
    if not database.read_now(administration_rows.has_admin):
        _add_admin(database, data_directory / FIRST_LOGIN, now_us)


def _add_admin(database: Database, path: Path, now_us: int) -> None:
    token = secrets.token_urlsafe(32)
    taken = {user.email.casefold() for user in database.read_now(administration_rows.list_users)}
    email = "admin@localhost"
    while email in taken:
        email = f"admin-{secrets.token_hex(3)}@localhost"
    # The file first: a login that nobody knows would lock everybody out for good.
    write_private(path, json.dumps({"url": "", "email": email, "token": token}))

    def add(connection: Connection) -> None:
        known = administration_rows.list_subscriptions(connection)
        subscription = (
            known[0] if known else administration_rows.add_subscription(connection, "standard", queue_limit=100)
        )
        new = NewUser(email, hash_token(token), subscription.subscription_id, "First", "Administrator", Role.ADMIN)
        administration_rows.add_user(connection, new, now_us=now_us)

    database.write_now(add)
    log.info("first login was made", email=email, file=str(path))


def announce_login(data_directory: Path, url: str) -> None:
    """Write the address into the first login's file, as long as it is there."""
    path = data_directory / FIRST_LOGIN
    try:
        login = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if login.get("url") != url:
        write_private(path, json.dumps({**login, "url": url}))


def _forget_login(path: Path, token: str) -> None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        first = str(json.loads(path.read_text(encoding="utf-8"))["token"])
        if secrets.compare_digest(first.encode(), token.encode("utf-8", "surrogatepass")):
            path.unlink()
            log.info("first login was used on the page; its file is removed", file=str(path))
