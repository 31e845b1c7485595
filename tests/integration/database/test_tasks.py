"""Reading tasks: v1's list, pages, filters, parts."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, update

from renderonline.database import listing_rows as reading
from renderonline.database.control_rows import change_task
from renderonline.database.door import Database
from renderonline.database.file_rows import undelivered
from renderonline.database.listing_rows import TaskFilter
from renderonline.database.report_rows import open_landings
from renderonline.database.schema import attempts, engines, machines, results, tasks
from renderonline.database.task_rows import Moment
from renderonline.farm.errors import InvalidRequest, NotFound
from renderonline.farm.tasks import Counters, TaskStatus
from tests.support.farm_rows import NOW_US, add_engine, add_user, submit


@pytest.fixture
async def user_id(database: Database) -> int:
    await database.write(add_engine)
    return (await database.write(lambda c: add_user(c, "ada@example.org", limit=1000))).user_id


async def add_tasks(db: Database, user_id: int, count: int, **more: object) -> list[int]:
    return await db.write(lambda c: [submit(c, user_id, **more).task_id for _ in range(count)])


async def change(db: Database, task_id: int, **values: object) -> None:
    await db.write(lambda c: c.execute(update(tasks).where(tasks.c.task_id == task_id).values(**values)))


async def test_v1_shows_the_fifteen_newest_of_the_user(database: Database, user_id: int) -> None:
    other = await database.write(lambda c: add_user(c))
    ids = await add_tasks(database, user_id, 20)
    await add_tasks(database, other.user_id, 3)
    entries = await database.read(lambda c: reading.v1_newest(c, user_id))
    assert [entry.task.task_id for entry in entries] == ids[:4:-1]
    entry = entries[0]
    assert entry.task.queue_time == datetime.fromtimestamp(NOW_US / 1e6).replace(microsecond=0)
    assert (entry.task.start_time, entry.task.is_running, entry.task.machine_id) == (None, False, None)
    assert (entry.render.file_name, entry.render.file_size) == ("scene.blend", 1234)
    assert (entry.engine.name, entry.engine.extension) == ("blender", ".blend")


async def test_v1_shows_tasks_whose_engine_is_gone(database: Database, user_id: int) -> None:
    await add_tasks(database, user_id, 1)
    await database.write(lambda c: c.execute(engines.delete()))
    (entry,) = await database.read(lambda c: reading.v1_newest(c, user_id))
    assert (entry.engine.engine_id, entry.engine.name) == (1, "")


async def test_pages_hold_every_task_once_newest_first(database: Database, user_id: int) -> None:
    ids = await add_tasks(database, user_id, 7)
    seen, cursor = [], None
    while True:
        page = await database.read(lambda c, cursor=cursor: reading.list_tasks(c, TaskFilter(), limit=3, cursor=cursor))
        seen += [task.task_id for task in page.items]
        cursor = page.next
        if cursor is None:
            break
        await add_tasks(database, user_id, 1)  # what comes meanwhile disturbs nobody
    assert seen == ids[::-1]


@pytest.mark.parametrize("cursor", ["x", "-1", "1e3", "9" * 30, "²", "1;DROP TABLE tasks"])
async def test_a_cursor_that_is_none_is_refused(database: Database, user_id: int, cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        await database.read(lambda c: reading.list_tasks(c, TaskFilter(), cursor=cursor))


async def test_a_page_has_at_least_one_and_at_most_five_hundred(database: Database, user_id: int) -> None:
    await add_tasks(database, user_id, 2)
    for limit, length in ((0, 1), (-5, 1), (10**9, 2)):
        page = await database.read(lambda c, limit=limit: reading.list_tasks(c, TaskFilter(), limit=limit))
        assert len(page.items) == length


COUNTED: dict[TaskStatus, dict[str, Any]] = {
    TaskStatus.QUEUED: {},
    TaskStatus.RUNNING: {"chunks_waiting": 1, "chunks_assigned": 1, "paused": 1},
    TaskStatus.PAUSED: {"paused": 1},
    TaskStatus.SUCCEEDED: {"chunks_waiting": 0, "chunks_succeeded": 2, "paused": 1},
    TaskStatus.FAILED: {"chunks_waiting": 0, "chunks_succeeded": 1, "chunks_failed": 1},
    TaskStatus.CANCELED: {"chunks_waiting": 0, "chunks_canceled": 2, "canceled": 1},
}


async def test_each_status_finds_its_tasks(database: Database, user_id: int) -> None:
    ids = dict(zip(COUNTED, await add_tasks(database, user_id, len(COUNTED)), strict=True))
    for status, values in COUNTED.items():
        await change(database, ids[status], **(values or {"chunks_waiting": 1}))
    for status, task_id in ids.items():
        page = await database.read(lambda c, status=status: reading.list_tasks(c, TaskFilter(status=status)))
        assert [(task.task_id, task.status) for task in page.items] == [(task_id, status)]


async def test_tasks_are_found_by_engine_name_number_and_text(database: Database, user_id: int) -> None:
    povray = await database.write(lambda c: add_engine(c, "povray"))
    other = await database.write(lambda c: add_user(c, "bob@example.org"))
    (one,) = await add_tasks(database, user_id, 1, name="Big 100% Scene")
    (two,) = await add_tasks(database, other.user_id, 1, engine_id=povray, file_name="spheres.pov")

    async def found(**wanted: Any) -> list[int]:
        page = await database.read(lambda c: reading.list_tasks(c, TaskFilter(**wanted)))
        return [task.task_id for task in page.items]

    assert await found(engine="POVray") == [two]
    assert await found(engine=str(povray)) == [two]
    assert await found(engine="x") == []
    assert await found(search="big") == [one]
    assert await found(search="100%") == [one]
    assert await found(search="%") == [one]
    assert await found(search="SPHERES") == [two]
    assert await found(search="SPHERES", user_id=user_id) == []
    assert await found(search="big", status=TaskStatus.QUEUED, engine="blender", user_id=user_id) == [one]
    renamed = {"task_id": one, "moment": Moment.at(NOW_US / 1e6), "user_id": None}
    await database.write(lambda c: change_task(c, **renamed, changes={"name": "Étude"}))
    assert await found(search="étude") == await found(search="SCENE.blend") == [one]
    assert await found(search="big") == []
    assert await found(search="bob@") == [two]
    assert await found(search=str(two)) == [two]
    assert await found(user_id=user_id) == [one]
    with pytest.raises(InvalidRequest):
        await found(search="x" * 201)


async def test_a_task_is_seen_whole(database: Database, user_id: int) -> None:
    (task_id,) = await add_tasks(database, user_id, 1, frames="1-4", chunk_size=2, name="Film", priority=70)
    task = await database.read(lambda c: reading.get_task(c, task_id, user_id=user_id))
    assert (task.name, task.email, task.engine, task.priority) == ("Film", "ada@example.org", "blender", 70)
    assert (task.frames, task.frames_total, task.chunks) == ("1-4", 4, Counters(waiting=2))
    assert (task.arguments, task.status) == ({"start_frame": "1"}, TaskStatus.QUEUED)
    assert (task.queue_us, task.start_us, task.end_us, task.machine_ids) == (NOW_US, None, None, ())


@pytest.mark.parametrize("task_id", [0, 999, 2**63, 2**64 - 1, -1])
async def test_a_task_that_is_not_there_is_told_as_the_contract_says(
    database: Database, user_id: int, task_id: int
) -> None:
    with pytest.raises(NotFound, match=f"^Task with identifier {task_id} not found for the current user\\.$"):
        await database.read(lambda c: reading.get_task(c, task_id))


async def test_somebody_elses_task_is_not_there(database: Database, user_id: int) -> None:
    (task_id,) = await add_tasks(database, user_id, 1)
    with pytest.raises(NotFound):
        await database.read(lambda c: reading.get_task(c, task_id, user_id=user_id + 1))


async def test_chunks_attempts_and_results_come_in_pages(database: Database, user_id: int) -> None:
    (task_id,) = await add_tasks(database, user_id, 1, frames="1-6", chunk_size=2)
    page = await database.read(lambda c: reading.list_chunks(c, task_id, limit=2))
    rest = await database.read(lambda c: reading.list_chunks(c, task_id, limit=2, cursor=page.next))
    assert [chunk.frames for chunk in (*page.items, *rest.items)] == ["1-2", "3-4", "5-6"]
    assert rest.next is None
    await database.write(lambda c: _fill(c, task_id, page.items[0].chunk_id))
    tried = await database.read(lambda c: reading.list_attempts(c, task_id))
    assert [(one.attempt_id, one.machine, one.state, one.user_id) for one in tried.items] == [
        (51, "", "running", user_id),
        (50, "node one", "running", user_id),
    ]
    assert tried.items[0].frames == "1-2"
    task = await database.read(lambda c: reading.get_task(c, task_id))
    assert task.machine_ids == (1000, 1001)
    landed = await database.read(lambda c: reading.list_results(c, task_id))
    assert [(one.name, one.machine_id, one.facts) for one in landed.items] == [("frame_0001.png", 1000, {"width": 8})]


async def test_a_result_is_found_by_its_exact_name(database: Database, user_id: int) -> None:
    (task_id,) = await add_tasks(database, user_id, 1)
    await database.write(lambda c: _fill(c, task_id, 1))
    path, found = await database.read(lambda c: reading.landed_file(c, task_id, "frame_0001.png"))
    assert (path, found.size) == ("frame_0001.png", 9)
    for name in ("FRAME_0001.PNG", "frame_0002.png", "../x", ""):
        with pytest.raises(NotFound):
            await database.read(lambda c, name=name: reading.landed_file(c, task_id, name))
    files = await database.read(lambda c: reading.landed_files(c, task_id))
    assert files == {"frame_0001.png": found}
    assert found.landed_us == 1
    assert await database.read(lambda c: reading.frame_numbers(c, task_id)) == {"frame_0001.png": 1}


@pytest.mark.sqlite
def test_landed_files_are_found_by_their_task_however_many_others_there_are(tmp_path: Path) -> None:
    """SQLite has no statistics: of two indexes that fit it may take the one that leads through the whole farm."""
    with explained(tmp_path) as (connection, plans):
        reading.landed_files(connection, 7)
        reading.frame_numbers(connection, 7)
        open_landings(connection)
    task, landing = "SEARCH results USING INDEX ix_results_task (task_id=?)", "ix_results_landing (state=?)"
    assert [plan[0] for plan in plans] == [task, task, f"SEARCH results USING INDEX {landing}"]


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("wanted", "step"),
    [
        (TaskFilter(1), "SEARCH tasks USING COVERING INDEX"),
        (TaskFilter(1, TaskStatus.FAILED), "SEARCH tasks USING INDEX ix_tasks_user_status (user_id=? AND status=?)"),
        (TaskFilter(None, TaskStatus.FAILED), "SEARCH tasks USING INDEX ix_tasks_status (status=?)"),
        (TaskFilter(1, search="x"), "SEARCH tasks USING COVERING INDEX ix_tasks_user_searched (user_id=?)"),
        (TaskFilter(None, search="x"), "SCAN tasks USING COVERING INDEX ix_tasks_searched"),
    ],
)
def test_tasks_of_a_page_are_found_in_an_index_in_their_order(tmp_path: Path, wanted: TaskFilter, step: str) -> None:
    with explained(tmp_path) as (connection, plans):
        reading.list_tasks(connection, wanted)
    assert plans[0][0].startswith(step)
    assert not any("ORDER BY" in step for step in plans[0])


@contextlib.contextmanager
def explained(directory: Path) -> Iterator[tuple[Connection, list[list[str]]]]:
    """A connection to an empty database, and the steps of each statement that runs there."""
    engine = create_engine(f"sqlite:///{directory / 'farm.sqlite'}")
    results.metadata.create_all(engine)
    plans: list[list[str]] = []

    def explain(connection: Connection, _cursor: object, statement: str, values: Any, *_: object) -> None:
        driver = connection.connection.driver_connection
        assert driver is not None
        plans.append([row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}", values)])

    event.listen(engine, "before_cursor_execute", explain)
    with engine.connect() as connection:
        yield connection, plans
    engine.dispose()


async def test_an_attempt_tells_whose_it_is(database: Database, user_id: int) -> None:
    (task_id,) = await add_tasks(database, user_id, 1)
    await database.write(lambda c: _fill(c, task_id, 1))
    assert (await database.read(lambda c: reading.get_attempt(c, 50))).user_id == user_id
    for unknown in (7, -1, 2**63):
        with pytest.raises(NotFound):
            await database.read(lambda c, unknown=unknown: reading.get_attempt(c, unknown))


def _fill(connection: Any, task_id: int, chunk_id: int) -> None:
    """Two attempts (one on a machine that is gone), one landed result and one that is landing."""
    row = {"machine_id": 1000, "ip_address": "", "port": 0, "name": "node one", "secret_hash": "x"}
    connection.execute(machines.insert().values(**row))
    lease = {"chunk_id": chunk_id, "task_id": task_id, "token": "", "state": "running", "directory": ""}
    connection.execute(
        attempts.insert(),
        [{**lease, "attempt_id": 50 + n, "machine_id": 1000 + n, "assigned_us": NOW_US} for n in range(2)],
    )
    result = {"task_id": task_id, "chunk_id": chunk_id, "attempt_id": 50, "size": 9, "digest": "d", "crc32": 4e9}
    for number, state in ((1, "landed"), (2, "landing")):
        name = f"frame_{number:04}.png"
        values = {"name": name, "name_hash": name, "state": state, "frame": number, "landed_us": 1}
        connection.execute(results.insert().values(**result, **values, facts='{"width": 8}'))


@pytest.mark.sqlite
def test_what_is_to_be_delivered_is_found_without_looking_at_the_results_of_other_tasks(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'farm.sqlite'}")
    results.metadata.create_all(engine)
    plan: list[str] = []

    def explained(connection: Connection, _cursor: object, statement: str, values: Any, *_: object) -> None:
        driver = connection.connection.driver_connection
        assert driver is not None
        plan.extend(row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}", values))

    event.listen(engine, "before_cursor_execute", explained)
    with engine.connect() as connection:
        undelivered(connection)
    engine.dispose()
    assert "SEARCH results USING INDEX ix_results_task (task_id=?)" in plan
    assert "SCAN results" not in plan
