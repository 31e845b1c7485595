"""The one way in which chunks change their state: checked, counted, however many there are."""

import time

import pytest
from sqlalchemy import Connection, select

from renderonline.database.control_rows import requeue_task
from renderonline.database.door import Database
from renderonline.database.schema import chunks, tasks
from renderonline.database.submission_rows import NewChunk
from renderonline.database.task_rows import Moment, Sheet
from renderonline.farm.errors import Conflict
from renderonline.farm.frames import FrameRange
from renderonline.farm.tasks import ChunkState
from tests.support.farm_rows import add_engine, add_user, submit

CHUNKS = 5


@pytest.fixture
async def task_id(database: Database) -> int:
    await database.write(add_engine)
    user_id = (await database.write(add_user)).user_id
    new = [NewChunk(number, FrameRange(number, number)) for number in range(1, CHUNKS + 1)]
    return await database.write(lambda c: submit(c, user_id, chunks=new, frames_total=CHUNKS).task_id)


async def states(database: Database) -> list[str]:
    return await database.read(lambda c: list(c.scalars(select(chunks.c.state).order_by(chunks.c.chunk_id))))


async def move(database: Database, task_id: int, old: ChunkState, new: ChunkState, ids: tuple[int, ...]) -> None:
    def work(connection: Connection) -> None:
        sheet = Sheet(connection, Moment.at(1e9))
        assert sheet.lock_task(task_id) is not None
        sheet.move_all(task_id, (old,), new, chunk_ids=ids)
        sheet.flush()

    await database.write(work)


async def test_chunks_can_not_take_a_state_that_may_not_follow(database: Database, task_id: int) -> None:
    await move(database, task_id, ChunkState.WAITING, ChunkState.SUCCEEDED, (1, 2))
    with pytest.raises(Conflict, match="succeeded can't become canceled"):
        await move(database, task_id, ChunkState.SUCCEEDED, ChunkState.CANCELED, (1, 2))
    assert await states(database) == ["succeeded"] * 2 + ["waiting"] * 3


async def test_chunks_changed_at_once_are_counted_with_those_changed_before(database: Database, task_id: int) -> None:
    def work(connection: Connection) -> None:
        sheet = Sheet(connection, Moment.at(1e9))
        sheet.load_chunks((1, 2))
        sheet.move(sheet.chunks[1], ChunkState.FAILED)
        sheet.move_all(task_id, (ChunkState.WAITING,), ChunkState.CANCELED, reason="stopped")
        assert (sheet.chunks[1].state, sheet.chunks[2].state) == (ChunkState.FAILED, ChunkState.CANCELED)
        sheet.flush()

    await database.write(work)
    assert await states(database) == ["failed"] + ["canceled"] * 4
    row = await database.read(lambda c: c.execute(select(tasks)).one())
    assert (row.chunks_waiting, row.chunks_failed, row.chunks_canceled) == (0, 1, 4)


async def test_retry_of_many_chunks_does_not_compare_each_with_all_others(database: Database, task_id: int) -> None:
    user_id = (await database.write(add_user)).user_id
    many = [NewChunk(number, FrameRange(number, number)) for number in range(100, 4100)]
    large = await database.write(lambda c: submit(c, user_id, chunks=many, frames_total=len(many)).task_id)
    assert large != task_id
    begun = time.process_time()
    acted = await database.write(lambda c: requeue_task(c, large, Moment.at(1e9), user_id=user_id))
    assert acted.state.counters.waiting == len(many)
    assert time.process_time() - begun < 5  # it took 15
