"""Migrations: an empty database, the existing system's database, twice, and after being killed half-way."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, func, inspect, select, text

from renderonline.database import administration_rows, upkeep
from renderonline.database.connecting import patient_engine
from renderonline.database.door import FIRST_ATTEMPT, Database
from renderonline.database.existing import micros
from renderonline.database.schema import attempts, chunks, farm, metadata, queue, tasks, users
from renderonline.database.standby import Lease
from renderonline.database.upkeep import check, migrate
from renderonline.farm.accounts import Role, hash_token
from renderonline.farm.errors import Conflict, InvalidRequest
from tests.support import v1_schema
from tests.support.killed_migration import migrate_until, migrate_when_free

ENDED = {"start": "2024-08-27 20:01:00", "end": "2024-08-27 20:09:00", "machine": 1}
RUNNING = {"start": "2024-08-27 20:01:00", "running": 1, "machine": 2}

V1_TASKS = {
    1: v1_schema.task_rows(1, queued=False, success=1, **ENDED),
    2: v1_schema.task_rows(2, queued=False, success=0, **ENDED),
    3: v1_schema.task_rows(3, queued=True),
    4: v1_schema.task_rows(4, queued=True, **RUNNING),
    5: v1_schema.task_rows(5, queued=False, running=1, start="2024-08-27 20:01:00", machine=1),  # dequeued
    6: v1_schema.task_rows(6, queued=True, running=1, machine=9),  # its machine is gone
    7: v1_schema.task_rows(7, queued=True, render=False),
    8: v1_schema.task_rows(8, queued=True, success=1, **ENDED),  # ended, its queue row was left
    9: v1_schema.task_rows(9, queued=False, queue=None, success=1, end="0001-01-01 00:00:00"),
}
STATES = {1: "succeeded", 2: "failed", 3: "waiting", 4: "running", 5: "canceled", 6: "waiting", 7: "failed",
          8: "succeeded", 9: "succeeded"}  # fmt: skip


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database.open(database_url) as opened:
        yield opened


def run(db: Database, *statements: str) -> None:
    db.write_now(lambda connection: [connection.exec_driver_sql(statement) for statement in statements])


def make_v1(db: Database, kind: str, *, with_tasks: bool = True) -> None:
    """Make the database one of the existing system, with rows."""
    rows = [statement for statements in V1_TASKS.values() for statement in statements] if with_tasks else []
    run(db, *v1_schema.create_statements(kind), *v1_schema.SEEDS, *rows)


def rows(db: Database, table: Any, key: str) -> dict[int, Any]:
    return db.read_now(lambda c: {getattr(row, key): row for row in c.execute(select(table))})


def differences(db: Database) -> list[Any]:
    engine = patient_engine(db.place)
    try:
        with engine.connect() as connection:
            options = {"compare_type": True, "compare_server_default": True}
            found = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    finally:
        engine.dispose()
    return [item for item in found if not _is_empty_default(item)]


def _is_empty_default(item: Any) -> bool:
    """Alembic takes DEFAULT '' and DEFAULT '' for different."""
    if not isinstance(item, list) or item[0][0] != "modify_default":
        return False
    return all(str(one[-2].arg).strip("()'") == "" and one[-1].arg == "" for one in item)


# -- an empty database


def test_an_empty_database_gets_the_schema(db: Database) -> None:
    assert not upkeep.is_current(db)
    report = migrate(db)
    assert (report.before, report.origin, report.adopted_tasks) == ("", "created", 0)
    assert upkeep.is_current(db)


def test_the_migrations_give_exactly_the_schema_of_the_program(db: Database) -> None:
    migrate(db)
    assert differences(db) == []


def test_migrating_again_changes_nothing(db: Database) -> None:
    migrate(db)
    before = rows(db, farm, "key")
    report = migrate(db)
    assert (report.before, report.after) == (report.after, report.before)
    assert rows(db, farm, "key") == before


def test_attempt_ids_start_far_away_from_task_ids(db: Database) -> None:
    migrate(db)
    assert FIRST_ATTEMPT <= int(rows(db, farm, "key")["next_attempt_id"].value) < 2**53


def test_a_database_of_a_newer_version_is_left_alone(db: Database) -> None:
    migrate(db)
    run(db, "UPDATE farm SET value = '9999' WHERE `key` = 'schema'")
    with pytest.raises(Conflict, match="9999"):
        migrate(db)


def test_foreign_tables_of_the_same_name_are_left_alone(db: Database) -> None:
    run(db, "CREATE TABLE users (id int, nick varchar(20))")
    with pytest.raises(InvalidRequest, match="users"):
        migrate(db)
    assert db.read_now(lambda c: [column["name"] for column in inspect(c).get_columns("users")]) == ["id", "nick"]


def test_migrating_is_refused_while_a_renderapi_has_the_database(database_url: str) -> None:
    with Database.open(database_url) as db, Lease.of(db, "RenderAPI").hold() as lease:
        with pytest.raises(Conflict, match="in use by"):
            migrate(db)
        migrate(db, lease=lease)


# -- a database of an earlier version

COLUMNS_0001 = {
    "users": "user_id first_name last_name email subscription_id is_active token userscol role created_us",
    "subscriptions": "subscription_id name queue_limit share",
    "engines": "engine_id name extension download_path render_argument definition is_enabled",
    "argtypes": "argtype_id type regex",
    "machines": "machine_id ip_address port name secret_hash wish wish_reason instance last_seq created_us seen_us"
    " facts",
    "renders": "render_id file_name file_path file_size arguments engine_id values template",
    "tasks": "task_id user_id queue_time start_time end_time is_running is_success render_id machine_id name priority"
    " paused canceled queue_us start_us end_us frames chunk_size frames_total frames_done chunks_waiting"
    " chunks_assigned chunks_running chunks_succeeded chunks_failed chunks_canceled reason",
    "queue": "queue_id task_id",
    "waits_for": "task_id waits_for_task_id",
    "chunks": "chunk_id task_id kind state stage tries first_frame last_frame frame_step place not_before_us reason",
    "attempts": "attempt_id chunk_id task_id machine_id token state outcome assigned_us started_us ended_us exit_code"
    " failure reason peak_memory_mib directory",
    "results": "result_id task_id chunk_id attempt_id name_hash name state frame size crc32 digest facts landed_us",
    "submissions": "user_id client_key task_id created_us",
    "join_codes": "code_hash uses_left expires_us created_by",
    "farm": "key value",
}
"""What the first version had."""


def make_0001(db: Database) -> None:
    """Take away what was added since."""
    migrate(db)
    later = [f"DROP TABLE {name}" for name in metadata.tables if name not in COLUMNS_0001]
    for name, columns in COLUMNS_0001.items():
        added = [column.name for column in metadata.tables[name].columns if column.name not in columns.split()]
        of_table = f" ON {name}" if db.dialect != "sqlite" else ""
        indexes = [index for index in metadata.tables[name].indexes if set(added) & set(index.columns.keys())]
        later += [f"DROP INDEX {index.name}{of_table}" for index in indexes]
        later += [f"ALTER TABLE {name} DROP COLUMN {column}" for column in added]
    run(db, *later, "UPDATE farm SET value = '0001' WHERE `key` = 'schema'")


def test_a_database_of_an_earlier_version_is_upgraded_with_its_rows(db: Database) -> None:
    make_0001(db)
    run(
        db,
        "INSERT INTO subscriptions (name, queue_limit) VALUES ('studio', 7)",
        "INSERT INTO machines (ip_address, port, name, wish) VALUES ('', 0, 'box', 'draining')",
        "INSERT INTO machines (ip_address, port, name, secret_hash) VALUES ('', 0, 'linked', 'hash')",
        "INSERT INTO tasks (user_id, is_running, is_success, render_id, name, chunks_waiting)"
        " VALUES (1, 0, 0, 1, 'shot', 1)",
        "INSERT INTO chunks (chunk_id, task_id, kind, state) VALUES (5, 1, 'render', 'waiting')",
    )
    report = migrate(db)
    assert (report.before, report.adopted_tasks) == ("0001", 0)
    assert upkeep.is_current(db)
    assert differences(db) == []
    machine, _ = rows(db, metadata.tables["machines"], "machine_id").values()
    assert (machine.name, machine.wish, machine.tags, machine.benched_us) == ("box", "draining", "", 0)
    (task,) = rows(db, tasks, "task_id").values()
    assert (task.name, task.chunks_waiting, task.needs, task.running_limit) == ("shot", 1, None, 0)
    assert (task.status, task.searched) == ("queued", "shot")
    assert rows(db, metadata.tables["subscriptions"], "name")["studio"].running_limit == 0


# -- the existing system's database


def test_an_existing_database_keeps_its_rows(db: Database, database_kind: str) -> None:
    make_v1(db, database_kind)
    before = {name: db.read_now(lambda c, name=name: _v1_rows(c, name)) for name in v1_schema.V1_TABLES}
    report = migrate(db)
    assert (report.origin, report.adopted_tasks) == ("adopted", len(V1_TASKS))
    after = {name: db.read_now(lambda c, name=name: _v1_rows(c, name)) for name in v1_schema.V1_TABLES}
    for name in ("users", "subscriptions", "engines", "argtypes", "machines", "renders"):
        assert after[name] == before[name]
    assert len(after["tasks"]) == len(before["tasks"])


def _v1_rows(connection: Connection, table: str) -> list[Any]:
    names = ", ".join(part.split(" ")[0] for part in v1_schema.V1_TABLES[table].split(", ") if "(" not in part[:14])
    names = names.replace(", PRIMARY", "")
    return list(connection.execute(text(f"SELECT {names} FROM {table} ORDER BY 1")))


@pytest.mark.mariadb
def test_an_adopted_database_has_exactly_the_schema_of_the_program(mariadb: Any) -> None:
    with Database.open(mariadb.create_database()) as db:
        make_v1(db, "mariadb")
        migrate(db)
        assert differences(db) == []


def test_each_adopted_task_gets_one_chunk_in_the_right_state(db: Database, database_kind: str) -> None:
    make_v1(db, database_kind)
    migrate(db)
    found = db.read_now(lambda c: list(c.execute(select(chunks.c.task_id, chunks.c.state).order_by(chunks.c.task_id))))
    assert dict(found) == STATES
    assert len(found) == len(STATES)


def test_an_adopted_running_task_has_an_attempt_with_the_tasks_own_id(db: Database, database_kind: str) -> None:
    make_v1(db, database_kind)
    migrate(db)
    (attempt,) = db.read_now(lambda c: c.execute(select(attempts)).all())
    assert (attempt.attempt_id, attempt.task_id, attempt.machine_id, attempt.state) == (4, 4, 2, "running")
    assert attempt.directory == "/srv/renders/1/638600000000000000"


def test_adopted_times_become_microseconds_of_utc(db: Database, database_kind: str) -> None:
    make_v1(db, database_kind)
    migrate(db)
    first, ninth = (rows(db, tasks, "task_id")[number] for number in (1, 9))
    assert first.queue_us == int(datetime(2024, 8, 27, 20, 0).timestamp() * 1e6)
    assert first.start_us == int(datetime(2024, 8, 27, 20, 1).timestamp() * 1e6)
    assert first.end_us == int(datetime(2024, 8, 27, 20, 9).timestamp() * 1e6)
    assert ninth.end_us is not None


def test_an_adopted_database_passes_the_check(db: Database, database_kind: str) -> None:
    make_v1(db, database_kind)
    migrate(db)
    assert [finding for finding in db.read_now(check) if not finding.is_warning] == []


def test_queue_rows_of_ended_and_unknown_tasks_go(db: Database, database_kind: str) -> None:
    make_v1(db, database_kind)
    run(db, "INSERT INTO queue (task_id) VALUES (3)", "INSERT INTO queue (task_id) VALUES (777)")
    migrate(db)
    assert db.read_now(lambda c: sorted(c.scalars(select(queue.c.task_id)))) == [3, 4, 6]


def test_the_seed_statements_still_work_afterwards(db: Database) -> None:
    migrate(db)
    run(db, *v1_schema.SEEDS)
    run(db, *v1_schema.task_rows(1, queued=True))
    assert db.read_now(lambda c: administration_rows.get_user(c, 1)).role is Role.ARTIST
    assert migrate(db).adopted_tasks == 1
    assert [finding for finding in db.read_now(check) if not finding.is_warning] == []


def test_ids_beyond_a_byte_fit_afterwards(db: Database, database_kind: str) -> None:
    make_v1(db, database_kind)
    migrate(db)
    run(
        db,
        "INSERT INTO machines (machine_id, ip_address, port) VALUES (1000, '192.0.2.9', 5001)",
        "INSERT INTO subscriptions (subscription_id, name, queue_limit) VALUES (300, 'Big', 5000)",
        "UPDATE tasks SET machine_id = 1000 WHERE task_id = 1",
    )
    assert rows(db, tasks, "task_id")[1].machine_id == 1000


def test_a_thousand_tasks_are_adopted_in_several_batches(db: Database, database_kind: str) -> None:
    make_v1(db, database_kind, with_tasks=False)
    run(db, *(statement for number in range(1, 1101) for statement in v1_schema.task_rows(number, queued=True)))
    assert migrate(db).adopted_tasks == 1100
    assert db.read_now(lambda c: c.scalar(select(func.count()).select_from(chunks))) == 1100
    assert migrate(db).adopted_tasks == 0


def test_times_that_no_clock_has_shown_are_none() -> None:
    assert micros(None) is None
    assert micros(datetime(1, 1, 1)) is None
    assert micros(datetime(2024, 8, 27, 20)) == int(datetime(2024, 8, 27, 20).timestamp() * 1e6)


# -- tokens (R12 Tokens)


def test_raw_tokens_of_an_adopted_database_stay_until_they_are_upgraded(db: Database, database_kind: str) -> None:
    make_v1(db, database_kind)
    migrate(db)
    assert not db.write_now(lambda c: administration_rows.seal_token(c, 1, "raw-token-1"))
    assert rows(db, users, "user_id")[1].token == "raw-token-1"
    assert upkeep.upgrade_tokens(db) == 2
    assert rows(db, users, "user_id")[1].token == hash_token("raw-token-1")
    assert upkeep.upgrade_tokens(db) == 0
    assert db.read_now(lambda c: administration_rows.authenticate(c, "ada@example.org", "raw-token-1")) is not None


def test_raw_tokens_of_our_own_database_are_replaced_at_first_use(db: Database) -> None:
    migrate(db)
    run(db, *v1_schema.SEEDS)
    assert not db.write_now(lambda c: administration_rows.seal_token(c, 1, "another"))
    assert db.write_now(lambda c: administration_rows.seal_token(c, 1, "raw-token-1"))
    assert not db.write_now(lambda c: administration_rows.seal_token(c, 1, "raw-token-1"))
    assert rows(db, users, "user_id")[1].token == hash_token("raw-token-1")


# -- killed half-way

POINTS = (1, 2, 3, 5, 8, 13, 21, 34, 45, 55, 66, 78, 89)


@pytest.mark.parametrize("adopts", [False, True], ids=["created", "adopted"])
def test_a_migration_that_was_killed_half_way_is_finished_by_the_next(
    database_url: str, database_kind: str, adopts: bool
) -> None:
    if adopts:
        with Database.open(database_url) as db:
            make_v1(db, database_kind)
    killed = [migrate_until(database_url, statements) for statements in POINTS]
    assert sum(killed) >= 5, killed
    with Database.open(database_url) as db:
        migrate_when_free(db)
        assert upkeep.is_current(db)
        assert rows(db, farm, "key")["origin"].value == ("adopted" if adopts else "created")
        assert [finding for finding in db.read_now(check) if not finding.is_warning] == []
        if database_kind == "mariadb" or not adopts:
            assert differences(db) == []
        if adopts:
            found = db.read_now(lambda c: c.execute(select(chunks.c.task_id, chunks.c.state)).all())
            assert dict(found) == STATES
            assert len(found) == len(STATES)
