"""Reserved ids: never twice, whatever is lost."""

import asyncio

import pytest

from renderonline.database.door import BLOCK, FIRST_ATTEMPT, Database, IdBlocks
from renderonline.farm.errors import NotAvailable


async def test_two_programs_never_get_the_same_id(database: Database) -> None:
    one, other = [await asyncio.to_thread(IdBlocks, database) for _ in range(2)]
    chunks = [number for ids in (one, other, one) for number in await ids.next_chunk_ids(500)]
    attempts = [ids.next_attempt_id() for ids in (one, other) for _ in range(500)]
    assert len(set(chunks)) == 1500
    assert len(set(attempts)) == 1000
    assert min(attempts) >= FIRST_ATTEMPT
    assert max(attempts) < 2**53


async def test_ids_of_one_task_follow_each_other(database: Database) -> None:
    ids = await asyncio.to_thread(IdBlocks, database)
    taken = await ids.next_chunk_ids(10)
    assert list(taken) == list(range(taken[0], taken[0] + 10))


async def test_blocks_are_refilled_before_they_run_dry(database: Database) -> None:
    ids = await asyncio.to_thread(IdBlocks, database)
    seen: set[int] = set()
    for _ in range(5):
        seen.update(await ids.next_chunk_ids(BLOCK))
    assert len(seen) == 5 * BLOCK


async def test_large_tasks_that_come_together_all_get_their_ids(database: Database) -> None:
    ids = await asyncio.to_thread(IdBlocks, database)
    counts = (60_000, 60_000, 3 * BLOCK, BLOCK + 1)
    taken = await asyncio.gather(*(ids.next_chunk_ids(count) for count in counts))
    assert tuple(map(len, taken)) == counts
    assert len(set().union(*taken)) == sum(counts)


async def test_an_empty_block_is_told(database: Database) -> None:
    ids = await asyncio.to_thread(IdBlocks, database)
    for _ in range(BLOCK):
        ids.next_attempt_id()
    with pytest.raises(NotAvailable):
        ids.next_attempt_id()


async def test_a_database_that_was_not_migrated_is_told(database_url: str) -> None:
    async with Database.open(database_url) as db:
        with pytest.raises(NotAvailable, match="db migrate"):
            await asyncio.to_thread(IdBlocks, db)
