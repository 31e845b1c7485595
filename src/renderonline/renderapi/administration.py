"""The use cases of operators and administrators: accounts, engines, argument types, machines.

Each function is one operation on the database; `Administration` runs them and tells those who remember.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from renderonline.database import Connection, Database, accounts, engines, machines
from renderonline.database.accounts import NewUser
from renderonline.database.engines import EngineRow, NewEngine
from renderonline.database.machines import JoinCode, MachineRow
from renderonline.engines.commands import argtypes as argtypes_of
from renderonline.engines.definition import EngineDefinition
from renderonline.engines.loading import parse_definition
from renderonline.farm.accounts import Role, Subscription, User, hash_token
from renderonline.farm.arguments import ArgType, check_value
from renderonline.farm.errors import Conflict, InvalidRequest, RenderOnlineError

T = TypeVar("T")
DAY_US: Final = 24 * 3600 * 1_000_000


def add_engine(connection: Connection, definition: str, download_path: str) -> EngineRow:
    """Add an engine from the TOML of its definition, and the argument types that it needs."""
    parsed = parse_definition(definition)
    _check_download_path(download_path)
    row = engines.add_engine(
        connection,
        NewEngine(parsed.name, parsed.extensions[0], download_path, parsed.template, definition),
    )
    _project_argtypes(connection, parsed)
    return row


def change_engine(connection: Connection, engine_id: int, changes: Mapping[str, Any]) -> EngineRow:
    """Change an engine: its definition (and with it name, extension and template), download_path, is_enabled."""
    values = dict(changes)
    if values.get("definition") is not None:
        parsed = parse_definition(values["definition"])
        values |= {"name": parsed.name, "extension": parsed.extensions[0], "render_argument": parsed.template}
        _project_argtypes(connection, parsed)
    if "download_path" in values:
        _check_download_path(values["download_path"])
    return engines.change_engine(connection, engine_id, values)


def _project_argtypes(connection: Connection, definition: EngineDefinition) -> None:
    """The rows of `argtypes` are the rule for values, so what the engine's own definition says must stand there."""
    rows = {row.argtype_id: row for row in engines.list_argtypes(connection)}
    for wanted in argtypes_of(definition):
        row = rows.get(wanted.argtype_id)
        if row is None:
            engines.put_argtype(connection, wanted)
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


class Administration:
    """Runs the use cases. `forget_accounts` and `refresh` make a change count at once instead of within 5 s."""

    def __init__(
        self,
        database: Database,
        *,
        files: Path,
        forget_accounts: Callable[[], None],
        refresh: Callable[[], Awaitable[None]],
        now_us: Callable[[], int],
    ) -> None:
        self._database = database
        self._files = files
        self._forget_accounts = forget_accounts
        self._refresh = refresh
        self._now_us = now_us

    # -- accounts

    async def users(self) -> tuple[User, ...]:
        return await self._database.read(accounts.list_users)

    async def user(self, user_id: int) -> User:
        return await self._database.read(partial(accounts.get_user, user_id=user_id))

    async def add_user(self, values: Mapping[str, Any]) -> tuple[User, str]:
        """A new account and its token, which is shown this once only (R12)."""
        token = secrets.token_urlsafe(32)

        def add(connection: Connection) -> User:
            given = dict(values)
            if given.get("subscription_id") is None:
                given["subscription_id"] = _first_subscription(connection).subscription_id
            return accounts.add_user(connection, NewUser(token_hash=hash_token(token), **given), now_us=self._now_us())

        user = await self._database.write(add)
        self._forget_accounts()
        return user, token

    async def change_user(self, user_id: int, changes: Mapping[str, Any]) -> User:
        user = await self._database.write(partial(accounts.change_user, user_id=user_id, changes=changes))
        self._forget_accounts()
        return user

    async def new_token(self, user_id: int) -> str:
        """Another token; the old one is worth nothing from now on."""
        token = secrets.token_urlsafe(32)
        await self._database.write(partial(accounts.set_token, user_id=user_id, token_hash=hash_token(token)))
        self._forget_accounts()
        return token

    async def subscriptions(self) -> tuple[Subscription, ...]:
        return await self._database.read(accounts.list_subscriptions)

    async def add_subscription(self, name: str, queue_limit: int, share: int) -> Subscription:
        return await self._database.write(
            partial(accounts.add_subscription, name=name, queue_limit=queue_limit, share=share)
        )

    async def change_subscription(self, subscription_id: int, changes: Mapping[str, Any]) -> Subscription:
        changed = await self._database.write(
            partial(accounts.change_subscription, subscription_id=subscription_id, changes=changes)
        )
        await self._refresh()
        return changed

    # -- engines

    async def engines(self) -> tuple[EngineRow, ...]:
        return await self._database.read(engines.list_engines)

    async def engine(self, engine_id: int) -> EngineRow:
        return await self._database.read(partial(engines.get_engine, engine_id=engine_id))

    async def add_engine(self, definition: str, download_path: str | None) -> EngineRow:
        added = await self._database.write(
            partial(add_engine, definition=definition, download_path=download_path or str(self._files))
        )
        await self._refresh()
        return added

    async def change_engine(self, engine_id: int, changes: Mapping[str, Any]) -> EngineRow:
        changed = await self._database.write(partial(change_engine, engine_id=engine_id, changes=changes))
        await self._refresh()
        return changed

    async def remove_engine(self, engine_id: int) -> None:
        await self._database.write(partial(engines.remove_engine, engine_id=engine_id))
        await self._refresh()

    async def argtypes(self) -> tuple[ArgType, ...]:
        return await self._database.read(engines.list_argtypes)

    async def put_argtype(self, argtype: ArgType) -> ArgType:
        """Add or change an argument type. `InvalidRequest` for a type or a regex that could never be used."""
        _check_argtype(argtype)
        return await self._database.write(partial(engines.put_argtype, argtype=argtype))

    async def remove_argtype(self, argtype_id: str) -> None:
        await self._database.write(partial(engines.remove_argtype, argtype_id=argtype_id))

    # -- machines

    async def machines(self) -> tuple[MachineRow, ...]:
        return await self._database.read(machines.list_machines)

    async def add_machine(self, ip_address: str, port: int) -> MachineRow:
        added = await self._database.write(
            partial(machines.add_v1, ip_address=ip_address, port=port, now_us=self._now_us())
        )
        await self._refresh()
        return added

    async def change_machine(self, machine_id: int, changes: Mapping[str, str]) -> MachineRow:
        changed = await self._database.write(partial(machines.change_machine, machine_id=machine_id, changes=changes))
        await self._refresh()
        return changed

    async def remove_machine(self, machine_id: int) -> None:
        await self._database.write(partial(machines.remove_machine, machine_id=machine_id))
        await self._refresh()

    async def invite(self, uses: int, hours: float, created_by: int) -> JoinCode:
        """A code with which machines join, for a while."""
        if not 0 < hours <= 24 * 366:
            raise InvalidRequest("hours is a number above 0, at most 8784 (a year).")
        now_us = self._now_us()
        return await self._database.write(
            partial(
                machines.invite,
                uses=uses,
                expires_us=now_us + int(hours * 3600 * 1_000_000),
                created_by=created_by,
                now_us=now_us,
            )
        )

    async def enroll(self, code: str, name: str) -> tuple[int, str]:
        """A machine joins with a code: its number and the secret that is its own from now on."""
        secret = secrets.token_urlsafe(32)
        row = await self._database.write(
            partial(machines.enroll, code=code, name=name, secret=secret, now_us=self._now_us())
        )
        await self._refresh()
        return row.machine_id, secret


def _check_argtype(argtype: ArgType) -> None:
    try:
        check_value(argtype, "")
    except InvalidRequest:
        return  # the rule works; that it does not take an empty value is none of our business
    except RenderOnlineError as error:
        raise InvalidRequest(
            f"{error.message} Use file, path, extension, word, sentence, natural, integer or real, or a valid regex."
        ) from error


def _first_subscription(connection: Connection) -> Subscription:
    found = accounts.list_subscriptions(connection)
    if not found:
        raise InvalidRequest("There is no subscription yet. Add one first: renderonline subscription add.")
    return found[0]


def checked_role(text: str) -> Role:
    """A role by its name; `InvalidRequest` names those that there are."""
    try:
        return Role(text)
    except ValueError:
        raise InvalidRequest(f"There is no role {text}; there are {', '.join(Role)}.") from None
