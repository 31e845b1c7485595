"""Statements that are compiled once do what SQLAlchemy does with them, on both databases."""

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import bindparam, select
from sqlalchemy.exc import DBAPIError

from renderonline.database.door import Connection, Database
from renderonline.database.schema import bound, farm, machines, subscriptions, tasks, updating
from renderonline.database.statements import IDS, Statement
from renderonline.farm.errors import NotAvailable
from tests.support.farm_rows import add_engine, add_user, submit

WHEN = datetime(2026, 5, 4, 3, 2, 1)
ADD = Statement(farm.insert().values(bound(("key", "value"))))
CHANGE = Statement(farm.update().where(farm.c.value == bindparam("old"), farm.c.key != "never").values(value="new"))
TIMES = Statement(updating(tasks, ("start_time", "reason")))
FIND = Statement(
    select(tasks.c.task_id, tasks.c.start_time, tasks.c.reason)
    .where(tasks.c.task_id.in_(bindparam(IDS, expanding=True)), tasks.c.user_id != 12345)
    .order_by(tasks.c.task_id)
)


async def values(database: Database) -> dict[str, str]:
    keys = farm.c.key.like("test%")
    return await database.read(lambda c: {row.key: row.value for row in c.execute(select(farm).where(keys))})


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_statement_runs_for_every_row(database: Database, count: int) -> None:
    rows = [{"key": f"test{number}", "value": f"%s ? :x {number}"} for number in range(count)]
    await database.write(lambda c: ADD.run(c, rows))
    assert await values(database) == {row["key"]: row["value"] for row in rows}
    await database.write(lambda c: CHANGE.run(c, [{"old": row["value"]} for row in rows]))
    assert await values(database) == {row["key"]: "new" for row in rows}


async def test_rows_are_found_by_their_ids_whatever_their_number(database: Database) -> None:
    await database.write(add_engine)
    user_id = (await database.write(add_user)).user_id

    def fill(connection: Connection) -> list[int]:
        return [submit(connection, user_id, client_key=f"key{number}").task_id for number in range(7)]

    ids = await database.write(fill)
    changes = [
        {"key": ids[0], "start_time": WHEN, "reason": "100 %"},
        {"key": ids[1], "start_time": None, "reason": None},
    ]
    await database.write(lambda c: TIMES.run(c, changes))

    def found(wanted: list[int]) -> Any:
        return lambda c: [tuple(row) for row in FIND.rows(c, wanted)]

    everything: list[tuple[int, datetime | None, str | None]] = [(number, None, None) for number in ids]
    everything[0] = (ids[0], WHEN, "100 %")
    for count in range(len(ids) + 1):
        assert await database.read(found(ids[:count])) == everything[:count]
    assert await database.read(found([*ids, *range(10**6, 10**6 + 2500)])) == everything


async def test_a_row_is_added_and_rows_are_found_without_ids(database: Database) -> None:
    add = Statement(subscriptions.insert().values(bound(("name", "queue_limit"))))
    named = select(subscriptions.c.subscription_id, subscriptions.c.queue_limit)
    find = Statement(named.where(subscriptions.c.name == bindparam("called")).order_by(subscriptions.c.subscription_id))
    ids = [
        await database.write(lambda c, limit=limit: add.add(c, {"name": "s", "queue_limit": limit})) for limit in (5, 6)
    ]
    assert ids[0] < ids[1]
    found = await database.read(lambda c: [tuple(row) for row in find.every(c, {"called": "s"})])
    assert found == [(ids[0], 5), (ids[1], 6)]
    assert await database.read(lambda c: tuple(find.first(c, {"called": "s"}) or ())) == (ids[0], 5)
    assert await database.read(lambda c: find.first(c, {"called": "nothing"})) is None


async def test_errors_are_those_of_the_database_and_undo_the_operation(database: Database) -> None:
    def twice(connection: Connection) -> None:
        ADD.run(connection, [{"key": "test", "value": "1"}])
        ADD.run(connection, [{"key": "test", "value": "2"}])

    with pytest.raises(DBAPIError):
        await database.write(twice)
    assert await values(database) == {}
    await database.write(lambda c: machines.drop(c))
    with pytest.raises(NotAvailable, match="db migrate"):
        await database.write(lambda c: Statement(updating(machines, ("name",))).run(c, [{"key": 1, "name": ""}]))
