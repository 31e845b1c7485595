"""The door: group commit, failing operations, a database that goes away, and the event loop that never waits."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, func, select
from sqlalchemy.exc import IntegrityError

from renderonline.database.door import Database
from renderonline.farm.errors import Conflict, InvalidRequest, NotAvailable
from tests.support.mariadb import PrivateMariaDB

items = Table(
    "items", MetaData(), Column("id", Integer, primary_key=True, autoincrement=False), Column("name", String(50))
)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database.open(database_url) as opened:
        await opened.write(lambda connection: items.create(connection))
        yield opened


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database.open(f"sqlite:///{tmp_path}/own.sqlite") as opened:
        await opened.write(lambda connection: items.create(connection))
        yield opened


def insert(number: int) -> "object":
    def operation(connection: Connection) -> int:
        connection.execute(items.insert().values(id=number, name=f"n{number}"))
        return number

    return operation


def count(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(items)) or 0


async def test_many_writes_at_once_are_all_there_when_answered(db: Database) -> None:
    answers = await asyncio.gather(*(db.write(insert(number)) for number in range(1000)))
    assert answers == list(range(1000))
    assert await db.read(count) == 1000


async def test_writes_that_wait_together_share_one_commit(db: Database) -> None:
    commits = []
    from sqlalchemy import event

    event.listen(db._writer_engine, "commit", lambda _connection: commits.append(1))
    gate = threading.Event()
    first = asyncio.ensure_future(db.write(lambda _connection: gate.wait(10)))
    await asyncio.sleep(0.05)
    others = [asyncio.ensure_future(db.write(insert(number))) for number in range(200)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *others)
    assert len(commits) <= 3


class SlowDisk:
    """A disk for SQLite's log that has what it was given only when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced, self.has_it, self.error = threading.Event(), threading.Event(), False
        monkeypatch.setattr("renderonline.database.door.os.fdatasync", self._sync)

    def _sync(self, _file: int) -> None:
        self.synced.set()
        assert self.has_it.wait(10)
        if self.error:
            raise OSError(5, "Input/output error")


async def test_early_is_called_with_the_value_before_the_answer(db: Database) -> None:
    heard: list[object] = []
    answer = await db.write(insert(1), early=heard.append)
    assert (answer, heard) == (1, [1])
    with pytest.raises(IntegrityError):
        await db.write(insert(1), early=heard.append)
    assert heard == [1]


async def test_early_is_called_after_the_commit_and_before_the_disk_has_it(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, heard = SlowDisk(monkeypatch), asyncio.Event()
    writing = asyncio.ensure_future(sqlite.write(insert(1), early=lambda _value: heard.set()))
    await asyncio.wait_for(heard.wait(), 10)
    assert await sqlite.read(count) == 1
    together = asyncio.ensure_future(sqlite.write(insert(2)))
    await asyncio.sleep(0.05)
    assert not writing.done()
    assert not together.done()
    disk.has_it.set()
    assert await asyncio.gather(writing, together) == [1, 2]
    disk.synced.clear()
    await sqlite.write(insert(3))  # SQLite itself waits for the disk then
    assert not disk.synced.is_set()


async def test_a_disk_that_refuses_what_was_told_early_is_no_success(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    disk.error = True
    disk.has_it.set()
    with pytest.raises(NotAvailable, match="refuses to be written"):
        await sqlite.write(insert(1), early=lambda _value: None)


async def test_an_operation_that_fails_takes_nobody_with_it(db: Database) -> None:
    def fails_late(connection: Connection) -> None:
        connection.execute(items.insert().values(id=9_999, name="never"))
        raise Conflict("not like this")

    writes = [db.write(insert(number)) if number % 10 else db.write(fails_late) for number in range(100)]
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert [isinstance(answer, Conflict) for answer in answers] == [number % 10 == 0 for number in range(100)]
    assert await db.read(count) == 90


async def test_an_operation_that_fails_before_it_writes_does_not_undo_the_batch(db: Database) -> None:
    runs = []

    def counted(connection: Connection) -> None:
        runs.append(1)
        insert(1)(connection)

    def refuses(connection: Connection) -> None:
        count(connection)
        raise InvalidRequest("no")

    gate = threading.Event()
    first = asyncio.ensure_future(db.write(lambda _connection: gate.wait(10)))
    await asyncio.sleep(0.05)
    rest = [asyncio.ensure_future(db.write(operation)) for operation in (counted, refuses)]
    await asyncio.sleep(0)
    gate.set()
    answers = await asyncio.gather(first, *rest, return_exceptions=True)
    assert isinstance(answers[2], InvalidRequest)
    assert len(runs) == 1
    assert await db.read(count) == 1


async def test_an_error_of_the_database_reaches_the_one_who_caused_it(db: Database) -> None:
    answers = await asyncio.gather(*(db.write(insert(7)) for _ in range(3)), return_exceptions=True)
    assert answers[0] == 7
    assert [type(answer) for answer in answers[1:]] == [IntegrityError, IntegrityError]


async def test_stop_iteration_from_an_operation_is_told(db: Database) -> None:
    def stops(_connection: Connection) -> None:
        raise StopIteration

    with pytest.raises(RuntimeError):
        await db.write(stops)
    assert await db.write(insert(1)) == 1


async def test_the_event_loop_goes_on_while_the_database_is_slow(db: Database) -> None:
    gate = threading.Event()
    slow = [
        asyncio.ensure_future(db.write(lambda _connection: gate.wait(10))),
        asyncio.ensure_future(db.read(lambda _connection: gate.wait(10))),
    ]
    started = time.perf_counter()
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert time.perf_counter() - started < 1
    gate.set()
    await asyncio.gather(*slow)


async def test_a_canceled_caller_does_not_undo_what_was_accepted(db: Database) -> None:
    gate = threading.Event()
    first = asyncio.ensure_future(db.write(lambda _connection: gate.wait(10)))
    second = asyncio.ensure_future(db.write(insert(5)))
    await asyncio.sleep(0.01)
    second.cancel()
    gate.set()
    await first
    await db.write(lambda _connection: None)
    assert await db.read(count) == 1


async def test_close_finishes_what_was_accepted(database_url: str) -> None:
    db = Database.open(database_url)
    await db.write(lambda connection: items.create(connection))
    writes = [asyncio.ensure_future(db.write(insert(number))) for number in range(500)]
    await asyncio.sleep(0)
    await db.close()
    assert await asyncio.gather(*writes) == list(range(500))
    with pytest.raises(NotAvailable):
        await db.write(insert(1000))
    with pytest.raises(NotAvailable):
        await db.read(count)
    with Database.open(database_url) as again:
        assert again.read_now(count) == 500


async def test_closing_twice_is_no_error(database_url: str) -> None:
    db = Database.open(database_url)
    await db.close()
    await db.close()


async def test_a_reader_sees_one_moment(db: Database) -> None:
    first_read, written = threading.Event(), threading.Event()

    def reads_twice(connection: Connection) -> tuple[int, int]:
        before = count(connection)
        first_read.set()
        written.wait(10)
        return before, count(connection)

    reading = asyncio.ensure_future(db.read(reads_twice))
    await asyncio.to_thread(first_read.wait, 10)
    await db.write(insert(1))
    written.set()
    assert await reading == (0, 0)
    assert await db.read(count) == 1


async def test_an_operation_can_not_wait_for_another_one(db: Database) -> None:
    with pytest.raises(RuntimeError, match="itself"):
        await db.write(lambda _connection: db.write_now(insert(1)))


async def test_the_synchronous_twins_do_the_same(db: Database) -> None:
    assert await asyncio.to_thread(db.write_now, insert(3)) == 3
    assert await asyncio.to_thread(db.read_now, count) == 1
    with pytest.raises(IntegrityError):
        await asyncio.to_thread(db.write_now, insert(3))


async def test_several_event_loops_may_use_one_database(db: Database) -> None:
    def other_loop() -> int:
        return asyncio.run(db.write(insert(11)))

    assert await asyncio.gather(asyncio.to_thread(other_loop), db.write(insert(12))) == [11, 12]


# -- databases that can't be opened


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nowhere"):
        Database.open(f"sqlite:///{tmp_path}/nowhere/farm.sqlite")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear database, " * 1000)
    with pytest.raises(NotAvailable, match="not a SQLite database"):
        Database.open(f"sqlite:///{tmp_path}/letter.txt")


def test_the_sqlite_file_is_its_owners_alone(tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{tmp_path}/farm.sqlite"):
        assert (tmp_path / "farm.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_server_that_is_not_there_is_told_without_the_password() -> None:
    with pytest.raises(NotAvailable, match="does not answer") as refused:
        Database.open("Server=127.0.0.1;Port=1;Database=r;User Id=u;Password=s3cret;SslMode=None")
    assert "s3cret" not in str(refused.value)


@pytest.mark.mariadb
def test_a_database_that_does_not_exist_is_told(mariadb: PrivateMariaDB) -> None:
    with pytest.raises(NotAvailable, match="CREATE DATABASE nothing_here"):
        Database.open(mariadb.url("nothing_here"))


@pytest.mark.mariadb
def test_a_wrong_password_is_told(mariadb: PrivateMariaDB) -> None:
    with pytest.raises(NotAvailable, match="refuses the user"):
        Database.open(mariadb.url("mysql").replace("root@", "nobody:wrong@"))


# -- databases that go away


@pytest.fixture
def own_mariadb() -> Iterator[PrivateMariaDB]:
    """A server that a test may kill."""
    with PrivateMariaDB() as server:
        yield server


@pytest.mark.mariadb
async def test_a_server_that_is_killed_and_comes_back_loses_no_accepted_write(own_mariadb: PrivateMariaDB) -> None:
    async with Database.open(own_mariadb.create_database()) as db:
        await db.write(lambda connection: items.create(connection))

        def insert_once(number: int) -> "object":
            def operation(connection: Connection) -> int:
                if connection.scalar(select(items.c.id).where(items.c.id == number)) is None:
                    connection.execute(items.insert().values(id=number))
                return number

            return operation

        async def write_many() -> list[int]:
            return [await db.write(insert_once(number)) for number in range(300)]

        writing = asyncio.ensure_future(write_many())
        while await db.read(count) < 20:  # each look is a round trip: no pause needed
            pass
        await asyncio.to_thread(own_mariadb.kill)
        await asyncio.to_thread(own_mariadb.start)
        assert await writing == list(range(300))
        assert await db.read(count) == 300


@pytest.mark.mariadb
async def test_a_server_that_stays_away_is_told_in_time_and_found_again(own_mariadb: PrivateMariaDB) -> None:
    async with Database.open(own_mariadb.create_database(), patience_s=0.5) as db:
        await db.write(lambda connection: items.create(connection))
        own_mariadb.kill()
        started = time.monotonic()
        answers = await asyncio.gather(*(db.write(insert(number)) for number in range(5)), return_exceptions=True)
        assert all(isinstance(answer, NotAvailable) for answer in answers)
        assert time.monotonic() - started < 10
        await asyncio.to_thread(own_mariadb.start)
        assert await db.write(insert(1)) == 1


@pytest.mark.mariadb
async def test_a_deadlock_is_run_again_as_a_whole(mariadb: PrivateMariaDB) -> None:
    url = mariadb.create_database()
    async with Database.open(url) as one, Database.open(url) as other:
        await one.write(lambda connection: items.create(connection))
        await one.write(lambda connection: connection.execute(items.insert(), [{"id": n, "name": "0"} for n in (1, 2)]))
        barrier = threading.Barrier(2)

        def swap(first: int, second: int) -> "object":
            def operation(connection: Connection) -> None:
                connection.execute(items.update().where(items.c.id == first).values(name="x"))
                try:
                    barrier.wait(0.5)
                except threading.BrokenBarrierError:
                    pass
                connection.execute(items.update().where(items.c.id == second).values(name="x"))

            return operation

        await asyncio.gather(one.write(swap(1, 2)), other.write(swap(2, 1)))
        assert await one.read(lambda c: set(c.scalars(select(items.c.name)))) == {"x"}


@pytest.mark.sqlite
async def test_another_program_that_holds_the_sqlite_lock_is_waited_for(tmp_path: Path) -> None:
    import sqlite3

    url = f"sqlite:///{tmp_path}/farm.sqlite"
    async with Database.open(url) as db:
        await db.write(lambda connection: items.create(connection))
        other = sqlite3.connect(tmp_path / "farm.sqlite", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.3, lambda: other.execute("COMMIT")).start()
        assert await db.write(insert(1)) == 1
        other.close()
