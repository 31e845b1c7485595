"""Users, subscriptions, e-mail in any letter case, tokens."""

from dataclasses import replace

import pytest

from renderonline.database import administration_rows
from renderonline.database.door import Database
from renderonline.database.schema import users
from renderonline.farm.accounts import Role, hash_token
from renderonline.farm.errors import Conflict, InvalidRequest, NotFound
from tests.support.farm_rows import NOW_US, TOKEN, add_user


@pytest.mark.parametrize(("stored", "sent"), [("Ada@Example.org", "ada@EXAMPLE.org"), ("ÄRGER@ü.de", "ärger@Ü.DE")])
async def test_an_email_is_found_in_any_letter_case(database: Database, stored: str, sent: str) -> None:
    user = await database.write(lambda c: add_user(c, stored))
    found = await database.read(lambda c: administration_rows.authenticate(c, sent, TOKEN))
    assert found is not None
    assert found.user == user


@pytest.mark.parametrize(
    ("email", "token"),
    [
        ("ada@example.org", "wrong"),
        ("ada@example.org", ""),
        ("ada@example.org", hash_token(TOKEN)),
        ("eve@example.org", TOKEN),
        ("ada@example.org ", TOKEN),
        ("áda@example.org", TOKEN),
        ("%", TOKEN),
        ("' OR 1=1 -- ", TOKEN),
        ("ada@example.org", "\udcff"),
    ],
)
async def test_a_wrong_email_or_token_is_nobody(database: Database, email: str, token: str) -> None:
    await database.write(lambda c: add_user(c, "ada@example.org"))
    assert await database.read(lambda c: administration_rows.authenticate(c, email, token)) is None


async def test_of_two_users_with_the_same_email_the_token_decides(database: Database) -> None:
    await database.write(lambda c: add_user(c, "ada@example.org", token="one"))
    second = await database.write(lambda c: add_user(c, "other@example.org", token="two"))
    change = users.update().where(users.c.user_id == second.user_id).values(email="ADA@example.org")
    await database.write(lambda c: c.execute(change))
    found = await database.read(lambda c: administration_rows.authenticate(c, "ada@example.org", "two"))
    assert found is not None
    assert found.user.user_id == second.user_id


async def test_a_user_who_is_switched_off_is_nobody(database: Database) -> None:
    user = await database.write(lambda c: add_user(c, "ada@example.org"))
    await database.write(lambda c: administration_rows.change_user(c, user.user_id, {"is_active": False}))
    assert await database.read(lambda c: administration_rows.authenticate(c, "ada@example.org", TOKEN)) is None


async def test_a_raw_token_that_looks_like_a_hash_is_not_compared_raw(database: Database) -> None:
    user = await database.write(lambda c: add_user(c, "ada@example.org"))
    await database.write(lambda c: administration_rows.set_token(c, user.user_id, "$rno1$abc"))
    assert await database.read(lambda c: administration_rows.authenticate(c, "ada@example.org", "$rno1$abc")) is None


async def test_adding_again_with_the_same_token_gives_the_same_user(database: Database) -> None:
    user = await database.write(lambda c: add_user(c, "ada@example.org"))
    new = administration_rows.NewUser("ada@example.org", hash_token(TOKEN), user.subscription_id)
    assert await database.write(lambda c: administration_rows.add_user(c, new, now_us=NOW_US)) == user


async def test_an_email_that_is_taken_is_refused(database: Database) -> None:
    user = await database.write(lambda c: add_user(c, "ada@example.org"))
    new = administration_rows.NewUser("ADA@example.org", "h", user.subscription_id)
    with pytest.raises(Conflict):
        await database.write(lambda c: administration_rows.add_user(c, new, now_us=NOW_US))


@pytest.mark.parametrize(
    "wrong",
    [
        {"email": "nobody"},
        {"email": "a@b\n"},
        {"email": "x" * 250 + "@example.org"},
        {"first_name": "x" * 51},
    ],
)
async def test_what_a_row_can_not_hold_is_refused_and_changes_nothing(
    database: Database, wrong: dict[str, str]
) -> None:
    user = await database.write(lambda c: add_user(c, "ada@example.org"))
    new = replace(administration_rows.NewUser("b@example.org", "h", user.subscription_id), **wrong)
    with pytest.raises(InvalidRequest):
        await database.write(lambda c: administration_rows.add_user(c, new, now_us=NOW_US))
    assert len(await database.read(administration_rows.list_users)) == 1


async def test_a_subscription_that_does_not_exist_is_refused(database: Database) -> None:
    with pytest.raises(NotFound):
        await database.write(
            lambda c: administration_rows.add_user(c, administration_rows.NewUser("b@c.de", "h", 99), now_us=NOW_US)
        )


async def test_the_last_administrator_stays(database: Database) -> None:
    boss = await database.write(lambda c: add_user(c, role=Role.ADMIN))
    for change in ({"role": Role.ARTIST}, {"is_active": False}):
        with pytest.raises(Conflict):
            await database.write(lambda c, change=change: administration_rows.change_user(c, boss.user_id, change))
    assert await database.read(administration_rows.has_admin)
    await database.write(lambda c: add_user(c, role=Role.ADMIN))
    changed = await database.write(lambda c: administration_rows.change_user(c, boss.user_id, {"role": Role.ARTIST}))
    assert changed.role is Role.ARTIST


async def test_only_known_columns_of_a_user_change(database: Database) -> None:
    user = await database.write(lambda c: add_user(c))
    with pytest.raises(InvalidRequest, match="token"):
        await database.write(lambda c: administration_rows.change_user(c, user.user_id, {"token": "mine"}))


async def test_a_role_of_somebodys_own_gives_no_rights(database: Database) -> None:
    user = await database.write(lambda c: add_user(c))
    await database.write(lambda c: c.execute(users.update().values(role="superuser")))
    assert (await database.read(lambda c: administration_rows.get_user(c, user.user_id))).role is Role.ARTIST


async def test_subscriptions_are_added_changed_and_checked(database: Database) -> None:
    added = await database.write(lambda c: administration_rows.add_subscription(c, "Studio", 1000, share=3))
    changed = await database.write(
        lambda c: administration_rows.change_subscription(c, added.subscription_id, {"queue_limit": 5})
    )
    assert changed == replace(added, queue_limit=5)
    assert await database.read(administration_rows.list_subscriptions) == (changed,)
    for wrong in ({"name": ""}, {"name": "x" * 51}, {"price": 3}):
        with pytest.raises(InvalidRequest):
            await database.write(
                lambda c, wrong=wrong: administration_rows.change_subscription(c, added.subscription_id, wrong)
            )
