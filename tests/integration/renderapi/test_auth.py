"""Who is asking: tokens raw and hashed, several rows of one e-mail, changes by hand, and no query when hot
(R12 Tokens)."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from renderonline.database import schema as tables
from renderonline.database.door import Connection, Database
from renderonline.farm.accounts import Permission, Role, hash_token
from renderonline.farm.errors import NotAllowed
from renderonline.renderapi.auth import REMEMBERED_S, Authenticator, Principal

pytestmark = pytest.mark.both_databases


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class CountingDatabase:
    """A database that counts what is read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reads = 0

    async def read(self, query: Callable[[Connection], Any]) -> Any:
        self.reads += 1
        return await self._database.read(query)

    async def write(self, operation: Callable[[Connection], Any]) -> Any:
        return await self._database.write(operation)


async def add(database: Database, email: str, token: str, *, is_active: int = 1, role: str = "artist") -> int:
    values = {
        "first_name": "",
        "last_name": "",
        "email": email,
        "subscription_id": 1,
        "is_active": is_active,
        "token": token,
        "role": role,
    }
    added = await database.write(lambda c: c.execute(tables.users.insert().values(values)).inserted_primary_key)
    return int(added[0])


async def stored(database: Database, user_id: int) -> str:
    query = tables.users.select().where(tables.users.c.user_id == user_id)
    return str(await database.read(lambda c: c.execute(query).one().token))


async def origin(database: Database, value: str) -> None:
    def put(connection: Connection) -> None:
        connection.execute(tables.farm.delete().where(tables.farm.c.key == "origin"))
        connection.execute(tables.farm.insert().values(key="origin", value=value))

    await database.write(put)


async def test_hashed_token_opens_and_its_hash_does_not(database: Database) -> None:
    user_id = await add(database, "Ada@Example.org", hash_token("secret"))
    who = Authenticator(database)
    found = await who.find("ada@example.ORG", "secret")
    assert found is not None
    assert found.user_id == user_id
    for wrong in ("Secret", "", hash_token("secret"), "secret "):
        assert await who.find("ada@example.org", wrong) is None
    assert await who.find("", "secret") is None
    assert await who.find("x" * 2000, "secret") is None
    assert await who.find("ada@example.org", "\ud800\0'; --") is None


async def test_rows_of_one_email_are_told_apart_by_their_token(database: Database) -> None:
    first = await add(database, "a@b.org", "one")
    second = await add(database, "A@B.org", "two")
    gone = await add(database, "a@b.org", "three", is_active=0)
    who = Authenticator(database)
    found = [await who.find("a@b.org", token) for token in ("one", "two", "three")]
    assert [one and one.user_id for one in found] == [first, second, None]
    assert gone


@pytest.mark.parametrize(("made", "sealed"), [("created", True), ("adopted", False)])
async def test_raw_token_is_replaced_on_our_own_database_only(database: Database, made: str, sealed: bool) -> None:
    await origin(database, made)
    user_id = await add(database, "a@b.org", "raw")
    assert await Authenticator(database).find("a@b.org", "raw") is not None
    assert await stored(database, user_id) == (hash_token("raw") if sealed else "raw")
    assert await Authenticator(database).find("a@b.org", "raw") is not None


async def test_hot_caller_costs_no_query(database: Database) -> None:
    await add(database, "a@b.org", hash_token("x"))
    counting, clock = CountingDatabase(database), Clock()
    who = Authenticator(counting, clock=clock)  # type: ignore[arg-type]
    await asyncio.gather(*(who.find("a@b.org", "x") for _ in range(50)))
    assert counting.reads == 1
    assert await who.find("a@b.org", "wrong") is None
    assert await who.find("a@b.org", "wrong") is None
    assert counting.reads == 2


async def test_change_by_hand_counts_within_five_seconds(database: Database) -> None:
    user_id = await add(database, "a@b.org", hash_token("x"))
    clock = Clock()
    who = Authenticator(database, clock=clock)
    assert await who.find("a@b.org", "x") is not None
    update = tables.users.update().where(tables.users.c.user_id == user_id).values(is_active=0)
    await database.write(lambda c: c.execute(update))
    clock.now += REMEMBERED_S
    assert REMEMBERED_S < 5
    assert await who.find("a@b.org", "x") is None


async def test_change_through_us_counts_at_once(database: Database) -> None:
    user_id = await add(database, "a@b.org", hash_token("x"))
    who = Authenticator(database)
    assert await who.find("a@b.org", "x") is not None
    await database.write(lambda c: c.execute(tables.users.delete().where(tables.users.c.user_id == user_id)))
    who.forget()
    assert await who.find("a@b.org", "x") is None


async def test_role_says_what_may_be_done(database: Database) -> None:
    for role in Role:
        await add(database, f"{role}@b.org", hash_token("x"), role=role.value)
    await add(database, "odd@b.org", hash_token("x"), role="emperor")
    who = Authenticator(database)
    found: dict[str, Principal] = {}
    for name in ("admin", "operator", "artist", "odd"):
        principal = await who.find(f"{name}@b.org", "x")
        assert principal is not None
        found[name] = principal
    found["admin"].require(Permission.USERS)
    assert found["operator"].tasks_of is None
    assert found["artist"].tasks_of == found["artist"].user_id
    for name in ("operator", "artist", "odd"):
        with pytest.raises(NotAllowed):
            found[name].require(Permission.ENGINES)
