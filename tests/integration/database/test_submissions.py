"""Submitting: whole or not at all, within the limit, exactly once."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from renderonline.database import administration_rows, submission_rows
from renderonline.database.door import Database
from renderonline.database.schema import chunks, metadata, queue, renders, tasks, waits_for
from renderonline.database.submission_rows import NewTask, Submitted
from renderonline.database.upkeep import check
from renderonline.farm.accounts import User
from renderonline.farm.errors import InvalidRequest, LimitReached, NotAuthenticated
from tests.support.farm_rows import NOW_US, add_engine, add_user, new_task

DAY_US = 24 * 3_600_000_000


async def user_with(db: Database, limit: int) -> User:
    await db.write(lambda c: add_engine(c, f"engine for {limit}"))
    return await db.write(lambda c: add_user(c, limit=limit))


async def submit(db: Database, new: NewTask) -> Submitted:
    return await db.write(lambda c: submission_rows.submit(c, new))


async def count(db: Database, table: object) -> int:
    return await db.read(lambda c: c.scalar(select(func.count()).select_from(table)) or 0)


async def test_a_submission_is_whole(database: Database) -> None:
    user = await user_with(database, 3)
    first = await submit(database, new_task(user.user_id))
    submitted = await submit(
        database, new_task(user.user_id, frames="1-10", chunk_size=3, waits_for=(first.task_id,), paused=True)
    )
    row = await database.read(lambda c: c.execute(select(tasks).where(tasks.c.task_id == submitted.task_id)).one())
    assert (row.chunks_waiting, row.frames_total, row.paused) == (4, 10, 1)
    assert (row.is_running, row.is_success, row.start_time, row.end_time) == (0, 0, None, None)
    frames = await database.read(
        lambda c: c.execute(
            select(chunks.c.first_frame, chunks.c.last_frame, chunks.c.state)
            .where(chunks.c.task_id == submitted.task_id)
            .order_by(chunks.c.place)
        ).all()
    )
    assert frames == [(1, 3, "waiting"), (4, 6, "waiting"), (7, 9, "waiting"), (10, 10, "waiting")]
    assert await count(database, queue) == 2
    assert await count(database, waits_for) == 1
    found = await database.read(check)
    assert [one for one in found if not one.is_warning and one.table != "farm"] == []  # the ids are the tests' own


async def test_parallel_submissions_never_pass_the_limit(database: Database) -> None:
    user = await user_with(database, 3)
    answers = await asyncio.gather(
        *(submit(database, new_task(user.user_id)) for _ in range(40)), return_exceptions=True
    )
    assert sum(isinstance(answer, Submitted) for answer in answers) == 3
    refused = [answer for answer in answers if isinstance(answer, LimitReached)]
    assert len(refused) == 37
    assert str(refused[0]) == "Queue limit 3 reached for your subscription."
    for table in (tasks, renders, chunks, queue):
        assert await count(database, table) == 3


async def test_two_programs_on_one_database_never_pass_the_limit(database: Database, migrated_url: str) -> None:
    user = await user_with(database, 5)
    async with Database.open(migrated_url) as other:
        answers = await asyncio.gather(
            *(submit(db, new_task(user.user_id)) for _ in range(20) for db in (database, other)),
            return_exceptions=True,
        )
    assert sum(isinstance(answer, Submitted) for answer in answers) == 5
    assert await count(database, queue) == 5


async def test_ended_tasks_do_not_count(database: Database) -> None:
    user = await user_with(database, 1)
    first = await submit(database, new_task(user.user_id))
    with pytest.raises(LimitReached):
        await database.read(lambda c: submission_rows.check_limit(c, user.user_id))
    await database.write(lambda c: c.execute(queue.delete().where(queue.c.task_id == first.task_id)))
    await database.write(lambda c: c.execute(tasks.update().values(end_us=1)))
    await database.read(lambda c: submission_rows.check_limit(c, user.user_id))
    await submit(database, new_task(user.user_id))


async def test_a_subscription_without_places_takes_nothing(database: Database) -> None:
    user = await user_with(database, 0)
    with pytest.raises(LimitReached, match="Queue limit 0 reached"):
        await submit(database, new_task(user.user_id))


async def test_the_same_key_gives_the_same_task(database: Database) -> None:
    user = await user_with(database, 1)
    answers = await asyncio.gather(*(submit(database, new_task(user.user_id, client_key="k")) for _ in range(10)))
    assert len({answer.task_id for answer in answers}) == 1
    assert sorted(answer.repeated for answer in answers) == [False] + [True] * 9
    assert await count(database, renders) == 1
    found = await database.read(lambda c: submission_rows.find(c, user.user_id, "k"))
    assert found == Submitted(answers[0].task_id, repeated=True)


async def test_a_key_belongs_to_its_user_and_its_letter_case(database: Database) -> None:
    one, other = await user_with(database, 9), await database.write(lambda c: add_user(c, limit=9))
    keys = [(one, "key"), (other, "key"), (one, "KEY")]
    answers = [await submit(database, new_task(user.user_id, client_key=key)) for user, key in keys]
    assert len({answer.task_id for answer in answers}) == 3
    assert await database.read(lambda c: submission_rows.find(c, one.user_id, "")) is None


async def test_a_clock_that_jumps_makes_no_second_task(database: Database) -> None:
    user = await user_with(database, 9)
    first = await submit(database, new_task(user.user_id, client_key="k"))
    assert await database.write(lambda c: submission_rows.forget_old(c, now_us=NOW_US + 400 * DAY_US)) == 0
    again = await submit(database, new_task(user.user_id, client_key="k", queue_us=NOW_US + 400 * DAY_US))
    assert again == replace(first, repeated=True)


async def test_a_key_is_forgotten_after_seven_days(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission_rows, "REMEMBERED", 0)
    user = await user_with(database, 9)
    first = await submit(database, new_task(user.user_id, client_key="k"))
    assert await database.write(lambda c: submission_rows.forget_old(c, now_us=NOW_US + 7 * DAY_US - 1)) == 0
    assert (await submit(database, new_task(user.user_id, client_key="k"))).task_id == first.task_id
    assert await database.write(lambda c: submission_rows.forget_old(c, now_us=NOW_US + 7 * DAY_US)) == 1
    assert (await submit(database, new_task(user.user_id, client_key="k"))).task_id != first.task_id


async def test_a_repeated_request_is_answered_even_at_the_limit_and_after_the_end(database: Database) -> None:
    user = await user_with(database, 1)
    first = await submit(database, new_task(user.user_id, client_key="k"))
    await database.write(lambda c: c.execute(queue.delete()))
    await submit(database, new_task(user.user_id))
    assert (await submit(database, new_task(user.user_id, client_key="k"))).task_id == first.task_id


@pytest.mark.parametrize("key", ["", "k"])
async def test_an_operation_whose_commit_was_not_heard_of_stores_nothing_twice(database: Database, key: str) -> None:
    user = await user_with(database, 9)
    new = new_task(user.user_id, client_key=key)
    answers = [await submit(database, new) for _ in range(3)]
    assert len({answer.task_id for answer in answers}) == 1
    assert not any(answer.repeated for answer in answers)  # its file belongs to it
    assert await count(database, renders) == 1


@pytest.mark.parametrize("waits_for_ids", [(999,), (1, 999)])
async def test_a_task_waits_for_existing_tasks_only(database: Database, waits_for_ids: tuple[int, ...]) -> None:
    user = await user_with(database, 9)
    await submit(database, new_task(user.user_id))
    with pytest.raises(InvalidRequest, match="999"):
        await submit(database, new_task(user.user_id, waits_for=waits_for_ids))
    assert await count(database, tasks) == 1


async def test_a_task_waits_for_ones_own_tasks_only(database: Database) -> None:
    one, other = await user_with(database, 9), await database.write(lambda c: add_user(c, limit=9))
    theirs = await submit(database, new_task(other.user_id))
    with pytest.raises(InvalidRequest):
        await submit(database, new_task(one.user_id, waits_for=(theirs.task_id,)))


async def test_who_was_switched_off_meanwhile_is_refused(database: Database) -> None:
    user = await user_with(database, 9)
    await database.write(lambda c: administration_rows.change_user(c, user.user_id, {"is_active": False}))
    with pytest.raises(NotAuthenticated):
        await submit(database, new_task(user.user_id))
    with pytest.raises(NotAuthenticated):
        await submit(database, new_task(4711))


async def test_a_key_that_is_too_long_changes_nothing(database: Database) -> None:
    user = await user_with(database, 9)
    with pytest.raises(InvalidRequest, match="64"):
        await submit(database, new_task(user.user_id, client_key="x" * 65))
    assert await count(database, tasks) == 0


async def test_the_largest_task_fits(database: Database) -> None:
    user = await user_with(database, 9)
    frames = ",".join(str(number) for number in range(100_000, 110_000))  # 70 kB
    largest = replace(new_task(user.user_id, frames="1-11000", chunk_size=1), frames=frames)
    submitted = await submit(database, largest)
    row = await database.read(lambda c: c.execute(select(tasks).where(tasks.c.task_id == submitted.task_id)).one())
    assert (row.frames, row.chunks_waiting) == (frames, 11_000)


async def test_a_submission_that_fails_leaves_no_row(database: Database) -> None:
    user = await user_with(database, 9)
    before = [await count(database, table) for table in metadata.sorted_tables]
    with pytest.raises(Exception, match="priority"):
        await submit(database, new_task(user.user_id, priority=None))
    assert [await count(database, table) for table in metadata.sorted_tables] == before
