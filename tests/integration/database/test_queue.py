"""What memory is rebuilt from."""

from typing import Any

import pytest
from sqlalchemy import update

from renderonline.database.door import Database
from renderonline.database.queue_rows import load_queue
from renderonline.database.schema import chunks
from renderonline.database.submission_rows import NewChunk
from renderonline.farm.frames import FrameRange
from renderonline.farm.tasks import ChunkKind, ChunkState
from tests.support.farm_rows import add_engine, add_user, submit

CHUNKS = 6


@pytest.fixture
async def task_ids(database: Database) -> list[int]:
    await database.write(add_engine)
    user_id = (await database.write(add_user)).user_id
    found = []
    for first in (1, CHUNKS + 1):
        new = [NewChunk(number, FrameRange(number, number)) for number in range(first, first + CHUNKS)]
        new.append(NewChunk(100 + first, None, ChunkKind.FILM, stage=1))
        make = {"chunks": new, "frames": "1-6", "frames_total": CHUNKS, "film": "mp4", "client_key": f"key{first}"}
        found.append(await database.write(lambda c, make=make: submit(c, user_id, **make).task_id))
    return found


async def change(database: Database, chunk_id: int, **values: Any) -> None:
    changing = update(chunks).where(chunks.c.chunk_id == chunk_id).values(values)
    await database.write(lambda c: c.execute(changing) and None)


async def test_chunks_that_anybody_may_have_are_told_from_the_others(database: Database, task_ids: list[int]) -> None:
    await change(database, 2, tries=1)
    await change(database, 3, not_before_us=5)
    await change(database, 4, state=ChunkState.SUCCEEDED.value)
    first, second = sorted(await database.read(load_queue), key=lambda task: task.task_id)
    assert first.plain is not None
    assert second.plain is not None
    assert [chunk.chunk_id for chunk in reversed(first.plain.chunks)] == [1, 2, 5, 6], "a try alone holds back nothing"
    assert [(chunk.chunk_id, chunk.not_before_us) for chunk in first.chunks] == [(3, 5)]
    assert [chunk.chunk_id for chunk in reversed(second.plain.chunks)] == list(range(7, 13))
    assert not second.chunks
    (alone,) = await database.read(lambda c: load_queue(c, [task_ids[1]]))
    assert alone.plain is not None
    assert (alone.task_id, len(alone.plain.chunks)) == (task_ids[1], CHUNKS)


async def test_film_waits_until_its_frames_are_there(database: Database, task_ids: list[int]) -> None:
    for chunk_id in range(1, CHUNKS + 1):
        await change(database, chunk_id, state=ChunkState.SUCCEEDED.value)
    (task,) = await database.read(lambda c: load_queue(c, [task_ids[0]]))
    assert task.plain is not None
    assert not task.plain.chunks
    assert [(chunk.chunk_id, chunk.film) for chunk in task.chunks] == [(101, True)]
