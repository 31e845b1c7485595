"""What tasks take, and which of them may go."""

from dataclasses import replace

import pytest
from sqlalchemy import update

from renderonline.database import administration_rows, control_rows
from renderonline.database.control_rows import Selection, condemn_task, delete_task, requeue_task
from renderonline.database.door import Database
from renderonline.database.file_rows import store_inputs
from renderonline.database.listing_rows import get_task
from renderonline.database.queue_rows import AttemptFacts
from renderonline.database.report_rows import (
    EndedStep,
    InPlace,
    Reported,
    apply_steps,
    begin_landing,
    drop_landing,
    take_in_place,
)
from renderonline.database.schema import results, tasks
from renderonline.database.submission_rows import NewChunk, assign
from renderonline.database.task_rows import Moment
from renderonline.database.upkeep import check
from renderonline.farm.errors import Conflict
from renderonline.farm.frames import FrameRange
from renderonline.farm.settling import Ending, RetryPolicy
from renderonline.farm.tasks import InputFile, Offer, Outcome
from tests.support.farm_rows import NOW_US, add_engine, add_user, submit

MOMENT = Moment.at(NOW_US / 1e6)
INPUTS = (InputFile("scene.blend", 1234, 1, "0" * 64), InputFile("tex/wood.png", 66, 2, "1" * 64))


@pytest.fixture
async def user_id(database: Database) -> int:
    await database.write(add_engine)
    return (await database.write(lambda c: add_user(c, "ada@example.org"))).user_id


async def task(db: Database, user_id: int, *, ended: int | None = None, **more: object) -> int:
    """A task that has ended `ended` days ago."""
    task_id = (await db.write(lambda c: submit(c, user_id, **more))).task_id
    if ended is not None:
        end_us = NOW_US - ended * control_rows.DAY_US
        ending = update(tasks).where(tasks.c.task_id == task_id)
        await db.write(lambda c: c.execute(ending.values(end_us=end_us, chunks_waiting=0, chunks_succeeded=1)))
    return task_id


async def result(db: Database, task_id: int, name: str, size: int, state: str = "landed") -> None:
    about = {"chunk_id": 1, "attempt_id": 1, "crc32": 0, "digest": "", "name_hash": name}
    row = {"task_id": task_id, "name": name, "state": state, "size": size, **about}
    await db.write(lambda c: c.execute(results.insert().values(row)))


async def test_a_task_takes_what_came_with_it_and_what_was_made_of_it(database: Database, user_id: int) -> None:
    first = await task(database, user_id, ended=1, inputs=INPUTS)
    older = await task(database, user_id, ended=2)  # submitted before files were counted: its scene's size is known
    other = await database.write(lambda c: add_user(c))
    await task(database, other.user_id, ended=3, inputs=INPUTS)
    for name, state in (("a.png", "landed"), ("b.png", "landing"), ("c.png", "stale")):
        await result(database, first, name, 2**40, state)
    found = await database.read(lambda c: control_rows.stored_tasks(c, user_id))
    assert found == ((older, 1234, True), (first, 1300 + 3 * 2**40, True))
    assert [type(one.size) for one in found] == [int, int]
    await database.write(control_rows.count_kept_bytes)
    limits = await database.read(lambda c: administration_rows.limits(c, user_id))
    assert limits["kept_bytes"] == 2534 + 3 * 2**40


async def test_what_a_user_keeps_is_counted_as_it_changes(database: Database, user_id: int) -> None:
    kept: list[int] = []

    async def count() -> None:
        kept.append((await database.read(lambda c: administration_rows.limits(c, user_id)))["kept_bytes"])
        findings = await database.read(lambda c: [one for one in check(c) if "bytes" in one.message])
        assert findings == []

    new = [NewChunk(1, FrameRange(1, 1))]
    task_id = await task(database, user_id, inputs=INPUTS, chunks=new, frames="1", frames_total=1)
    machine = (await database.write(lambda c: administration_rows.add_v1(c, "10.0.0.1", 1, now_us=1))).machine_id
    await count()

    async def rendered(attempt_id: int, size: int, *, lands: bool = True) -> None:
        attempt = AttemptFacts(attempt_id, "token", 1, task_id, user_id, machine, "/nowhere")
        assert (await database.write(lambda c: assign(c, [attempt], MOMENT))).leases
        offer = Offer(attempt_id, "token", "a.png", 1, size, "0" * 64, 0)
        for again in (replace(offer, size=7), offer):  # the same file is offered again with another size
            (landing,) = await database.write(lambda c, again=again: begin_landing(c, [again], machine))
        await count()
        if not lands:
            await database.write(lambda c: drop_landing(c, [landing.result_id]))
        end = EndedStep(attempt_id, "token", Ending(Outcome.SUCCEEDED if lands else Outcome.CANCELED), ("a.png",), 1)
        reported = Reported([*([landing] if lands else []), end], machine)
        await database.write(lambda c: apply_steps(c, [reported], MOMENT, RetryPolicy()) and None)
        await count()

    await rendered(1, 500, lands=False)
    again = {"task_id": task_id, "moment": MOMENT, "user_id": None}
    await database.write(lambda c: requeue_task(c, **again, selection=Selection()))
    await rendered(2, 500)
    await database.write(lambda c: requeue_task(c, **again, selection=Selection()))
    await rendered(3, 300)
    place = [InPlace("a.png", "", 310, "1" * 64, 1), InPlace("b.png", "", 20, "2" * 64, 1)]
    await database.write(lambda c: take_in_place(c, task_id, place, 1))
    await count()
    await database.write(lambda c: requeue_task(c, **again, selection=Selection()))
    await count()
    await database.write(lambda c: delete_task(c, task_id))
    await count()
    assert kept == [1300, 1800, 1300, 1800, 1800, 2100, 1600, 1630, 1610, 0]


async def test_inputs_that_an_older_task_is_found_to_have_count_instead_of_its_scene(
    database: Database, user_id: int
) -> None:
    task_id = await task(database, user_id)
    await database.write(lambda c: store_inputs(c, task_id, INPUTS))
    assert (await database.read(lambda c: administration_rows.limits(c, user_id)))["kept_bytes"] == 1300


async def test_what_has_not_ended_or_is_waited_for_never_goes(database: Database, user_id: int) -> None:
    waited_for = await task(database, user_id, ended=9)
    free = await task(database, user_id, ended=8)
    waiting = await task(database, user_id, waits_for=(waited_for,))
    done = await task(database, user_id, ended=7, waits_for=(free,))
    found = await database.read(lambda c: control_rows.stored_tasks(c, user_id))
    assert {one.task_id for one in found if one.may_go} == {free, done}
    for task_id in (waited_for, waiting):
        condemning = {"task_id": task_id, "moment": Moment.at(NOW_US / 1e6), "user_id": None, "only_ended": True}
        with pytest.raises(Conflict):
            await database.write(lambda c, given=condemning: condemn_task(c, **given))
        assert (await database.read(lambda c, one=task_id: get_task(c, one))).status != "canceled"


async def test_days_of_a_subscription_count_from_the_end(database: Database, user_id: int) -> None:
    old, new = await task(database, user_id, ended=8), await task(database, user_id, ended=6)
    await task(database, user_id)
    kept_for_ever = await database.write(lambda c: add_user(c))
    await task(database, kept_for_ever.user_id, ended=999)
    subscription = (await database.read(lambda c: administration_rows.get_user(c, user_id))).subscription_id
    assert await database.read(lambda c: control_rows.expired(c, NOW_US)) == ()
    for days, expected in ((7, (old,)), (5, (old, new)), (1_000_000, ()), (0, ())):
        await database.write(
            lambda c, days=days: administration_rows.change_subscription(c, subscription, {"keep_days": days})
        )
        assert await database.read(lambda c: control_rows.expired(c, NOW_US)) == expected, days
        view = await database.read(lambda c: get_task(c, old))
        assert view.delete_us == (view.end_us + days * control_rows.DAY_US if days else None)


async def test_only_what_the_database_does_not_have_is_gone(database: Database, user_id: int) -> None:
    task_id = await task(database, user_id)
    many = range(task_id, task_id + 2500)
    assert await database.read(lambda c: control_rows.gone(c, "task", many)) == set(many) - {task_id}
    assert await database.read(lambda c: control_rows.gone(c, "attempt", [7])) == {7}
    assert await database.read(lambda c: control_rows.gone(c, "attempt", ())) == set()
