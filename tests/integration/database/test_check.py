"""`db check` finds what does not fit, and nothing where everything does."""

from typing import Any

import pytest
from sqlalchemy import Connection, text

from renderonline.database import upkeep
from renderonline.database.door import Database
from renderonline.database.schema import attempts, chunks, farm, machines, queue, results, tasks, users, waits_for
from renderonline.database.upkeep import MAX_FINDINGS, check
from renderonline.farm.accounts import Role
from tests.support.farm_rows import NOW_US, add_engine, add_user, submit

ATTEMPT = {"chunk_id": 1, "task_id": 1, "machine_id": 1000, "token": "t", "assigned_us": 1, "directory": ""}
RESULT = {"task_id": 1, "chunk_id": 1, "attempt_id": 5, "state": "landed", "size": 1, "digest": "", "crc32": 0}


@pytest.fixture
async def task_id(database: Database) -> int:
    """A farm with one waiting task of two chunks, in which everything fits."""

    def build(connection: Connection) -> int:
        add_engine(connection)
        user = add_user(connection, role=Role.ADMIN)
        machine = {"machine_id": 1000, "ip_address": "", "port": 0, "name": "n", "secret_hash": "x"}
        connection.execute(machines.insert().values(**machine))
        connection.execute(farm.update().where(farm.c.key == "next_chunk_id").values(value="100000000"))
        return submit(connection, user.user_id, frames="1-4", chunk_size=2).task_id

    task_id = await database.write(build)
    assert await database.read(check) == ()
    return task_id


async def findings(db: Database, *statements: Any) -> list[str]:
    """What the check says after these statements, without warnings."""
    await db.write(lambda c: [c.execute(statement) for statement in statements])
    return [f"{one.table} {one.key}: {one.message}" for one in await db.read(check) if not one.is_warning]


def chunk_state(state: str, count: int = 2) -> list[Any]:
    """All chunks in this state, and the counters as they must be."""
    counters = {f"chunks_{name}": 0 for name in ("waiting", "assigned", "running", "succeeded", "failed", "canceled")}
    return [chunks.update().values(state=state), tasks.update().values(**{**counters, f"chunks_{state}": count})]


WRONG = {
    "counters": ([tasks.update().values(chunks_waiting=7)], "counters say 7 waiting, its chunks are 2 waiting"),
    "running": ([tasks.update().values(is_running=1)], "is_running is 1, but it is queued"),
    "success": ([tasks.update().values(is_success=1)], "is_success is 1, but it is queued"),
    "end": ([tasks.update().values(end_us=5)], "Its end is 5"),
    "unqueued": ([queue.delete()], "0 queue rows"),
    "queued twice": ([text("INSERT INTO queue (task_id) SELECT task_id FROM tasks")], "2 queue rows"),
    "frames": ([tasks.update().values(frames_done=9)], "9 of 4 frames"),
    "frames without a chunk": ([chunks.update().values(last_frame=chunks.c.first_frame)], "hold 2 of 4 frames"),
    "a frame in two chunks": ([chunks.update().values(first_frame=1, last_frame=4)], "hold 8 of 4 frames"),
    "frames that never landed": (
        [
            results.insert().values({**RESULT, "name": "a", "name_hash": "a", "landed_us": 1, "frame": 1}),
            tasks.update().values(frames_done=3),
        ],
        "3 frames are said to be done, 1 have landed",
    ),
    "benched for nothing": ([machines.update().values(benched_us=5)], "benched without a reason"),
    "reason without a bench": ([machines.update().values(bench_reason="it fails")], "benched without a reason"),
    "no chunks": ([chunks.delete()], "no chunks"),
    "unknown user": ([tasks.update().values(user_id=99)], "Its user does not exist"),
    "unknown render": ([tasks.update().values(render_id=99)], "Its render does not exist"),
    "ended": ([*chunk_state("succeeded"), tasks.update().values(frames_done=4)], "1 queue rows, but it is succeeded"),
    "succeeded without frames": (chunk_state("succeeded"), "succeeded with 0 of 4 frames"),
    "no lease": (chunk_state("running"), "It is running and has 0 live attempts"),
    "orphan queue": ([queue.insert().values(task_id=99)], "belongs to task 99"),
    "orphan chunk": ([chunks.insert().values(chunk_id=99, task_id=99, kind="render", state="failed")], "task 99"),
    "orphan attempt": (
        [attempts.insert().values({**ATTEMPT, "attempt_id": 5, "task_id": 99, "state": "assigned"})],
        "attempts 5: It belongs to task 99",
    ),
    "orphan result": (
        [results.insert().values({**RESULT, "task_id": 99, "name": "a", "name_hash": "a", "landed_us": 1})],
        "task 99",
    ),
    "orphan wait": ([waits_for.insert().values(task_id=99, waits_for_task_id=1)], "task 99"),
    "landed without a time": ([results.insert().values({**RESULT, "name": "a", "name_hash": "a"})], "without a time"),
    "unknown state": (
        [results.insert().values({**RESULT, "name": "a", "name_hash": "a", "state": "lost"})],
        "no known state",
    ),
    "counter behind": ([farm.update().where(farm.c.key == "next_chunk_id").values(value="1")], "next_chunk_id"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_does_not_fit_is_found(database: Database, task_id: int, what: str) -> None:
    statements, says = WRONG[what]
    found = await findings(database, *statements)
    assert any(says in one for one in found), found


async def test_two_live_attempts_of_a_chunk_are_found(database: Database, task_id: int) -> None:
    chunk_id = await database.read(lambda c: c.scalar(text("SELECT min(chunk_id) FROM chunks")))
    lease = {**ATTEMPT, "chunk_id": chunk_id, "task_id": task_id, "state": "running"}
    found = await findings(
        database,
        chunks.update().where(chunks.c.chunk_id == chunk_id).values(state="running"),
        *(attempts.insert().values({**lease, "attempt_id": number}) for number in (2**41, 2**41 + 1)),
    )
    assert any("running and has 2 live attempts" in one for one in found), found


async def test_a_live_attempt_of_a_waiting_chunk_and_one_on_no_machine_are_found(
    database: Database, task_id: int
) -> None:
    chunk_id = await database.read(lambda c: c.scalar(text("SELECT min(chunk_id) FROM chunks")))
    lease = {**ATTEMPT, "chunk_id": chunk_id, "task_id": task_id, "attempt_id": 2**41, "state": "assigned"}
    found = await findings(database, attempts.insert().values({**lease, "machine_id": 4}))
    assert any("It is waiting and has 1 live attempts" in one for one in found), found
    assert any("machine 4, which does not exist" in one for one in found), found


async def test_an_attempt_that_ended_without_an_outcome_is_found(database: Database, task_id: int) -> None:
    lease = {**ATTEMPT, "chunk_id": 1, "task_id": task_id, "attempt_id": 2**41, "state": "ended"}
    found = await findings(database, attempts.insert().values(**lease))
    assert any("without an outcome" in one for one in found), found


async def test_a_frame_with_two_files_is_found(database: Database, task_id: int) -> None:
    row = {**RESULT, "task_id": task_id, "frame": 1, "landed_us": 1}
    found = await findings(
        database, *(results.insert().values({**row, "name": name, "name_hash": name}) for name in ("a", "b"))
    )
    assert any("Frame 1" in one for one in found), found


async def test_raw_tokens_and_a_farm_without_administrator_are_warned_of(database: Database, task_id: int) -> None:
    await database.write(lambda c: c.execute(users.update().values(token="raw", role="artist")))
    found = await database.read(check)
    assert [one.is_warning for one in found] == [True, True]
    assert "--upgrade-tokens" in found[0].message
    assert "administrator" in found[1].message


async def test_a_limit_that_is_exceeded_is_warned_of(database: Database, task_id: int) -> None:
    await database.write(lambda c: c.execute(text("UPDATE subscriptions SET queue_limit = 0")))
    (finding,) = await database.read(check)
    assert finding.is_warning
    assert "limit is 0" in finding.message


async def test_there_are_never_endless_findings(database: Database, task_id: int) -> None:
    lost = [{"task_id": 10_000 + number} for number in range(MAX_FINDINGS + 200)]
    await database.write(lambda c: c.execute(queue.insert(), lost))
    assert len(await database.read(check)) == MAX_FINDINGS


async def test_tasks_inserted_by_hand_are_named_and_adopted_by_migrate(database: Database, task_id: int) -> None:
    row = {"user_id": 1, "is_running": 0, "is_success": 0, "render_id": 1, "queue_us": NOW_US}
    no_chunks, uncounted = await findings(database, tasks.insert().values(**row))
    assert "It has no chunks" in no_chunks
    assert "db migrate" in no_chunks
    assert "db migrate" in uncounted
    upkeep.adopt(database)
    assert await findings(database) == []
