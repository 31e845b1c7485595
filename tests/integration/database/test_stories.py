"""What the database knows about why a task is where it is."""

import time
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import insert, update

from renderonline.database.control_rows import Story, task_story
from renderonline.database.door import Connection, Database
from renderonline.database.schema import attempts, chunks, tasks
from renderonline.database.submission_rows import NewChunk
from renderonline.farm.frames import FrameRange
from tests.support.farm_rows import add_engine, add_user, submit


@pytest.fixture(autouse=True)
async def _engine(database: Database) -> None:
    await database.write(add_engine)


async def task_of(database: Database, count: int, first: int = 1) -> int:
    user_id = (await database.write(lambda c: add_user(c, f"ada{first}@example.org"))).user_id
    new = [NewChunk(number, FrameRange(number, number)) for number in range(first, first + count)]
    return await database.write(lambda c: submit(c, user_id, chunks=new, frames_total=count).task_id)


async def tried(database: Database, task_id: int, states: Mapping[int, tuple[str, str | None]]) -> None:
    """Give chunks these states and reasons, and an attempt each."""

    def work(connection: Connection) -> None:
        for chunk_id, (state, reason) in states.items():
            changed = update(chunks).where(chunks.c.chunk_id == chunk_id)
            connection.execute(changed.values(state=state, reason=reason))
            row = {"chunk_id": chunk_id, "task_id": task_id, "machine_id": 1, "token": "", "state": "ended"}
            more = {"outcome": "failed", "failure": f"failure {chunk_id}", "assigned_us": 1, "directory": "/nowhere"}
            connection.execute(insert(attempts), {"attempt_id": 1000 + chunk_id, **row, **more})

    await database.write(work)


async def story(database: Database, task_id: int) -> Story:
    return await database.read(lambda c: task_story(c, task_id, user_id=None))


async def test_reasons_of_parts_that_failed_and_of_those_that_wait_again(database: Database) -> None:
    task_id = await task_of(database, 9)
    assert (await story(database, task_id)).reasons == ()
    await tried(database, task_id, {7: ("waiting", "it crashed"), 2: ("succeeded", None), 1: ("waiting", "no room")})
    found = await story(database, task_id)
    assert (found.reasons, found.failure) == (("no room", "it crashed"), "")
    settled: dict[str, Any] = {"chunks_waiting": 0, "chunks_failed": 3, "chunks_canceled": 5, "chunks_succeeded": 1}
    await tried(database, task_id, {3: ("failed", "a"), 5: ("failed", "b")})
    canceled = update(chunks).where(chunks.c.chunk_id.in_((4, 6, 8, 9))).values(state="canceled", reason="stopped")
    await database.write(lambda c: c.execute(canceled) and None)
    await database.write(lambda c: c.execute(update(tasks).values(**settled)) and None)
    found = await story(database, task_id)
    assert (found.reasons, found.failure) == (("no room", "a", "stopped", "b"), "failure 7")


async def test_story_of_a_large_task_costs_as_much_as_that_of_a_small_one(database: Database) -> None:
    small, large = await task_of(database, 3), await task_of(database, 20_000, first=4)

    async def cost(task_id: int) -> float:
        begun = time.perf_counter()
        await story(database, task_id)
        return time.perf_counter() - begun

    costs = [[await cost(task_id) for _ in range(20)] for task_id in (small, large)]
    assert min(costs[1]) < 3 * min(costs[0])
