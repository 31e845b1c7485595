"""The lease: one RenderAPI for each database, however the holder ends."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from renderonline.database import Database
from renderonline.database.lease import Lease
from renderonline.farm.errors import Conflict
from tests.support.mariadb import PrivateMariaDB

HOLDER = """
import sys, time
from renderonline.database import Database
from renderonline.database.lease import Lease
database = Database.open(sys.argv[1])
lease = Lease.acquire(database, "the other program")
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_holder_is_told_who_has_it(database_url: str) -> None:
    with (
        Database.open(database_url) as db,
        Lease.acquire(db, "RenderAPI"),
        Database.open(database_url) as other,
        pytest.raises(Conflict, match="in use by"),
    ):
        Lease.acquire(other)


def test_a_released_lease_can_be_taken_again(database_url: str) -> None:
    with Database.open(database_url) as db:
        for _ in range(2):
            lease = Lease.acquire(db)
            lease.verify()
            lease.release()
        with pytest.raises(Conflict):
            lease.verify()


def test_leases_of_two_databases_do_not_meet(database_url: str, database_kind: str, tmp_path: Path, request) -> None:
    second = (
        f"sqlite:///{tmp_path}/other.sqlite"
        if database_kind == "sqlite"
        else request.getfixturevalue("mariadb").create_database()
    )
    with Database.open(database_url) as one, Database.open(second) as other, Lease.acquire(one), Lease.acquire(other):
        pass


def test_the_lease_ends_with_a_killed_process(database_url: str) -> None:
    source = str(Path(sys.modules["renderonline"].__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, database_url], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": source}
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with Database.open(database_url) as db:
            with pytest.raises(Conflict):
                Lease.acquire(db)
            holder.kill()
            holder.wait()
            _acquire_soon(db).release()


def _acquire_soon(db: Database) -> Lease:
    deadline = time.monotonic() + 20
    while True:
        try:
            return Lease.acquire(db)
        except Conflict:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@pytest.mark.mariadb
def test_a_lost_connection_is_taken_again_when_nobody_was_quicker(mariadb: PrivateMariaDB) -> None:
    with Database.open(mariadb.create_database()) as db, Lease.acquire(db) as lease:
        _kill_holder(db, lease)
        lease.verify()
        with pytest.raises(Conflict):
            Lease.acquire(db)


@pytest.mark.mariadb
def test_a_lease_that_somebody_else_took_meanwhile_is_told(mariadb: PrivateMariaDB) -> None:
    with Database.open(mariadb.create_database()) as db, Lease.acquire(db) as lease:
        _kill_holder(db, lease)
        with _acquire_soon(db), pytest.raises(Conflict, match="taken over"):
            lease.verify()


def _kill_holder(db: Database, lease: Lease) -> None:
    connection = lease._connection
    number = connection.scalar(text("SELECT CONNECTION_ID()"))
    db.write_now(lambda c: c.exec_driver_sql(f"KILL {number}"))


def test_a_released_lease_can_be_taken_at_once(migrated_url: str) -> None:
    database = Database.open(migrated_url)
    for _ in range(200):
        Lease.acquire(database, "a test").release()
    database.close_now()
