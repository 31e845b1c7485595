"""`db backup`: a whole copy of one moment, while the farm writes."""

import asyncio
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.constants import CLIENT
from sqlalchemy import select

from renderonline.database import upkeep
from renderonline.database.door import Database
from renderonline.database.schema import metadata, queue, tasks
from renderonline.database.upkeep import COMPLETE, backup
from renderonline.farm.errors import Conflict, NotFound
from tests.support.farm_rows import add_engine, add_user, submit
from tests.support.mariadb import PrivateMariaDB, database_name

ODD = "ünï'cö\"dé \\ % :x `;\n--\t😀"


@pytest.fixture
async def user_id(database: Database) -> int:
    await database.write(add_engine)
    user = await database.write(lambda c: add_user(c, limit=100_000))
    await database.write(lambda c: submit(c, user.user_id, name=ODD, frames="1-700", chunk_size=1))
    return user.user_id


def restore(copy: Path, kind: str, request: pytest.FixtureRequest) -> str:
    """The URL of a database made from a backup."""
    if kind == "sqlite":
        return f"sqlite:///{copy}"
    server: PrivateMariaDB = request.getfixturevalue("mariadb")
    url = server.create_database()
    with pymysql.connect(
        unix_socket=server.socket, user="root", database=database_name(url), client_flag=CLIENT.MULTI_STATEMENTS
    ) as connection:
        cursor = connection.cursor()
        cursor.execute(copy.read_text(encoding="utf-8"))
        while cursor.nextset():
            pass
        connection.commit()
    return url


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def everything(db: Database) -> dict[str, list[Any]]:
    return db.read_now(lambda c: {table.name: list(c.execute(select(table))) for table in metadata.sorted_tables})


async def test_a_backup_holds_everything(
    database: Database, user_id: int, database_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    copy = await asyncio.to_thread(backup, database, tmp_path / "copy")
    assert copy.stat().st_mode & 0o777 == 0o600
    url = restore(copy, database_kind, request)
    with Database.open(url) as restored:
        assert everything(restored) == everything(database)
        assert upkeep.is_current(restored)
    assert not any("partial" in name for name in names(tmp_path))
    if database_kind == "mariadb":
        assert copy.read_text().rstrip().endswith(COMPLETE)


async def test_a_backup_of_a_busy_farm_is_of_one_moment(
    database: Database, user_id: int, database_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    stop = asyncio.Event()

    async def keep_submitting() -> int:
        count = 0
        while not stop.is_set():
            await database.write(lambda c: submit(c, user_id))
            count += 1
        return count

    busy = asyncio.ensure_future(keep_submitting())
    copy = await asyncio.to_thread(backup, database, tmp_path / "copy")
    stop.set()
    await busy
    with Database.open(restore(copy, database_kind, request)) as restored:
        rows = everything(restored)
    assert [row.task_id for row in rows["tasks"]] == [row.task_id for row in rows["queue"]]
    assert {row.task_id for row in rows["chunks"]} == {row.task_id for row in rows["tasks"]}


async def test_a_backup_replaces_nothing(database: Database, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("mine")
    with pytest.raises(Conflict):
        await asyncio.to_thread(backup, database, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "mine"
    with pytest.raises(NotFound, match="nowhere"):
        await asyncio.to_thread(backup, database, tmp_path / "nowhere" / "copy")


async def test_a_backup_that_fails_leaves_no_file(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("renderonline.database.upkeep.sync", full)
    before = names(tmp_path)
    with pytest.raises(Exception, match="No space"):
        await asyncio.to_thread(backup, database, tmp_path / "copy")
    assert names(tmp_path) == before


async def test_ids_are_not_used_again_in_a_restored_database(
    database: Database, user_id: int, database_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    last = await database.write(lambda c: submit(c, user_id))
    await database.write(lambda c: c.execute(tasks.delete().where(tasks.c.task_id == last.task_id)))
    await database.write(lambda c: c.execute(queue.delete()))
    copy = await asyncio.to_thread(backup, database, tmp_path / "copy")
    with Database.open(restore(copy, database_kind, request)) as restored:
        again = restored.write_now(lambda c: submit(c, user_id))
    assert again.task_id > last.task_id
