"""The lease: one RenderAPI for each database, however the holder ends (R10 Standby)."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from renderonline.database.door import Database
from renderonline.database.standby import Lease, Overtaken
from renderonline.farm.errors import Conflict
from tests.support.mariadb import PrivateMariaDB

HOLDER = """
import sys, time
from renderonline.database.door import Database
from renderonline.database.standby import Lease
database = Database.open(sys.argv[1])
lease = Lease.of(database, "the other program", lease_s=1.0).hold()
print("held", flush=True)
time.sleep(60)
"""


def write_something(database: Database) -> None:
    database.write_now(lambda c: c.execute(text("INSERT INTO queue (task_id) VALUES (1)")))


def rows_written(database: Database) -> int:
    return database.read_now(lambda c: int(c.scalar(text("SELECT COUNT(*) FROM queue"))))


def take_when_free(lease: Lease, timeout_s: float = 30.0) -> float:
    """Take a lease as a standby does; gives the seconds that it took."""
    began = time.monotonic()
    while not lease.take():
        assert time.monotonic() - began < timeout_s
        time.sleep(0.05)
    return time.monotonic() - began


@contextmanager
def other_program(url: str) -> Iterator["subprocess.Popen[str]"]:
    source = str(Path(sys.modules["renderonline"].__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, url], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": source}
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


@pytest.fixture
def url(mariadb: PrivateMariaDB, database_templates) -> str:
    """A migrated MariaDB."""
    made = mariadb.create_database()
    database_templates.copy_mariadb(mariadb, made)
    return made


@pytest.fixture
def opened(url: str) -> Iterator[Callable[[], Database]]:
    """Opens that database as often as wanted, as so many programs."""
    databases: list[Database] = []

    def another() -> Database:
        databases.append(Database.open(url, idle_s=1.0))
        return databases[-1]

    yield another
    for database in databases:
        database.close_now()


def test_a_second_holder_is_told_who_has_it(database_url: str) -> None:
    with (
        Database.open(database_url) as db,
        Lease.of(db, "RenderAPI").hold(),
        Database.open(database_url) as other,
        pytest.raises(Conflict, match=rf"in use by RenderAPI \(process {os.getpid()} on"),
    ):
        Lease.of(other, "a test").hold()


def test_a_released_lease_can_be_taken_again(database_url: str) -> None:
    with Database.open(database_url) as db:
        for _ in range(2):
            lease = Lease.of(db, "a test").hold()
            lease.verify()
            lease.release()
        with pytest.raises(Overtaken):
            lease.verify()


def test_a_released_lease_can_be_taken_at_once(migrated_url: str) -> None:
    with Database.open(migrated_url) as database:
        for _ in range(50):
            Lease.of(database, "a test").hold().release()


def test_leases_of_two_databases_do_not_meet(database_url: str, database_kind: str, tmp_path: Path, request) -> None:
    second = (
        f"sqlite:///{tmp_path}/other.sqlite"
        if database_kind == "sqlite"
        else request.getfixturevalue("mariadb").create_database()
    )
    with (
        Database.open(database_url) as one,
        Database.open(second) as other,
        Lease.of(one, "a test").hold(),
        Lease.of(other, "a test").hold(),
    ):
        pass


def test_nobody_waits_for_a_holder_that_is_dead_on_this_computer(database_url: str) -> None:
    with other_program(database_url) as holder, Database.open(database_url) as db:
        with pytest.raises(Conflict, match="the other program"):
            Lease.of(db, "a test").hold()
        holder.kill()
        holder.wait()
        began = time.monotonic()
        Lease.of(db, "a test").hold().release()
        assert time.monotonic() - began < 5.0  # a holder elsewhere would be watched for 10 s


@pytest.mark.mariadb
def test_a_holder_that_sleeps_is_overtaken_and_writes_nothing_more(opened: Callable[[], Database]) -> None:
    lost: list[int] = []
    ours, theirs = opened(), opened()
    first = Lease.of(ours, "first", lease_s=0.5, on_lost=lambda: lost.append(1))
    second = Lease.of(theirs, "second", lease_s=0.5)
    assert first.take()
    write_something(ours)
    assert take_when_free(second) >= 0.5
    assert second.holder.startswith("first (process")
    with pytest.raises(Overtaken, match="taken over"):
        write_something(ours)
    with pytest.raises(Overtaken):
        first.verify()
    assert lost
    write_something(theirs)
    assert rows_written(theirs) == 2
    first.release()  # must not take the lease from the other
    second.verify()
    second.release()


@pytest.mark.mariadb
def test_a_holder_that_beats_is_never_overtaken(opened: Callable[[], Database]) -> None:
    first, second = Lease.of(opened(), "first", lease_s=0.5), Lease.of(opened(), "second", lease_s=0.5)
    assert first.take()
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        first.verify()
        assert not second.take()
        time.sleep(0.05)
    first.release()
    assert second.take()
    second.release()


@pytest.mark.mariadb
def test_time_that_the_watcher_slept_does_not_count(opened: Callable[[], Database]) -> None:
    first, second = Lease.of(opened(), "first", lease_s=0.5), Lease.of(opened(), "second", lease_s=0.5)
    assert first.take()
    assert not second.take()
    time.sleep(1.0)  # the sleep is what is tested: both stood still
    assert not second.take()
    first.verify()
    assert not second.take()


@pytest.mark.mariadb
def test_of_two_that_stand_by_one_takes_over(opened: Callable[[], Database]) -> None:
    first = Lease.of(opened(), "first", lease_s=0.5)
    waiting = [Lease.of(opened(), name, lease_s=0.5) for name in ("second", "third")]
    assert first.take()
    taken: list[Lease] = []
    while not taken:
        taken = [lease for lease in waiting if lease.take()]
        time.sleep(0.05)
    assert len(taken) == 1
    taken[0].verify()


@pytest.mark.mariadb
def test_a_holder_that_stopped_inside_a_transaction_does_not_keep_its_lock(url: str, opened) -> None:
    with other_program(url) as holder:
        with opened()._writer_engine.connect() as probe:  # what a stopped writer leaves: the row's lock and silence
            probe.begin()
            probe.exec_driver_sql("SELECT epoch FROM leases WHERE name = 'dispatcher' FOR UPDATE")
            holder.send_signal(signal.SIGSTOP)
            standby = Lease.of(opened(), "standby", lease_s=0.5)
            assert take_when_free(standby) < 20.0
            probe.invalidate()
        standby.verify()
