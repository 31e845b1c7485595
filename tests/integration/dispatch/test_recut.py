"""What a chunk lacks becomes the fewest ranges of exactly the missing frames (R4.2 Chunk ranges, decision 0007)."""

from typing import Any

import pytest
from sqlalchemy import Connection, select

from renderonline.database.door import Database
from renderonline.database.schema import engines, results, tasks, users
from renderonline.database.task_rows import name_hash
from tests.support.dispatching import DEFINITION, Machine, Rig, joined, until

STEPS = DEFINITION.replace('last = "end_frame"', 'last = "end_frame"\nstep = "frame_step"').replace(
    "[frames]", '[[arguments]]\nid = "frame_step"\ntype = "integer"\ndefault = "1"\n[frames]'
)


def frames_of(row: Any) -> list[int]:
    return list(range(row.first_frame, row.last_frame + 1, row.frame_step))


async def all_frames(rig: Rig, task_id: int) -> list[int]:
    return sorted(frame for chunk in await rig.chunks(task_id) for frame in frames_of(chunk))


async def ranges(rig: Rig, task_id: int, state: str) -> list[tuple[int, int, int]]:
    rows = [row for row in await rig.chunks(task_id) if row.state == state]
    return [(row.first_frame, row.last_frame, row.frame_step) for row in rows]


async def fails_with(machine: Machine, attempt: int, *landed: int) -> None:
    """Render some frames, then crash."""
    await machine.start(attempt)
    for frame in landed:
        await machine.write(attempt, f"frame_{frame:04}.png")
    await machine.exit(attempt, "failed", failure="crash")


@pytest.mark.both_databases
async def test_two_gaps_become_two_chunks_that_hold_exactly_the_missing_frames(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-10", chunk_size=10)
    (first,) = await machine.given(1)
    await fails_with(machine, first.attempt, 1, 4, 5, 6, 8, 9, 10)
    second = (await machine.given(2))[-1]
    assert second.frames == (2, 3)
    assert await ranges(rig, task_id, "succeeded") == [(1, 1, 1), (4, 6, 1), (8, 10, 1)]
    assert await ranges(rig, task_id, "waiting") == [(7, 7, 1)]
    assert await all_frames(rig, task_id) == list(range(1, 11))
    await rig.assert_sound()
    await machine.render(second.attempt)
    third = (await machine.given(3))[-1]
    assert third.frames == (7,)
    assert third.chunk != second.chunk
    await machine.render(third.attempt)
    row = await rig.ended(task_id)
    assert (row.is_success, row.frames_done, row.chunks_succeeded) == (1, 10, 5)
    assert len(await rig.landed(task_id)) == 10
    await rig.assert_sound()


async def test_pieces_are_rendered_side_by_side_and_not_where_the_chunk_failed(rig: Rig) -> None:
    bad = await joined(rig, works=False)
    task_id = await rig.submit("1-5", chunk_size=5)
    (first,) = await bad.given(1)
    good = await joined(rig, works=False, slots=2)
    await fails_with(bad, first.attempt, 2, 4)
    assert sorted(one.frames for one in await good.given(2)) == [(1,), (3,)]
    assert len(bad.assigned) == 1
    for one in list(good.assigned):
        await good.render(one)
    await good.render((await good.given(3))[-1].attempt)
    assert (await rig.ended(task_id)).is_success == 1


async def test_engine_that_takes_a_step_gets_every_second_frame_in_one_go(rig: Rig) -> None:
    await rig.database.write(lambda c: c.execute(engines.update().values(definition=STEPS)))
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-9", chunk_size=9)
    (first,) = await machine.given(1)
    await fails_with(machine, first.attempt, 1, 3, 5, 7, 9)
    second = (await machine.given(2))[-1]
    assert second.frames == (2, 4, 6, 8)
    assert len(await rig.chunks(task_id)) == 1
    await machine.render(second.attempt)
    assert (await rig.ended(task_id)).frames_done == 9


async def test_chunk_with_a_step_stays_whole_when_nothing_of_it_landed(rig: Rig) -> None:
    """Also after a restart, when RenderAPI has not read yet that the engine takes steps."""
    await rig.database.write(lambda c: c.execute(engines.update().values(definition=STEPS)))
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-9x2", chunk_size=9)
    (first,) = await machine.given(1)
    await machine.start(first.attempt)
    await machine.exit(first.attempt, "canceled")
    await machine.all_acked()
    await machine.hang_up()
    await rig.restart()
    await machine.dial()
    second = (await machine.given(2))[-1]
    assert second.frames == (1, 3, 5, 7, 9)
    await fails_with(machine, second.attempt, 1, 9)
    assert (await machine.given(3))[-1].frames == (3, 5, 7)
    assert len(await rig.chunks(task_id)) == 1
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_pieces_outlive_a_restart_of_renderapi(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-5", chunk_size=5)
    (first,) = await machine.given(1)
    await fails_with(machine, first.attempt, 2, 4)
    await machine.given(2)
    await rig.restart()
    machine.works = True
    await machine.dial()  # it names nothing, so what it had is sent again
    assert (await rig.ended(task_id)).is_success == 1
    assert [row.state for row in await rig.chunks(task_id)] == ["succeeded"] * 5
    await rig.assert_sound()


async def test_piece_that_fails_has_no_more_tries_than_its_chunk_had(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-3", chunk_size=3)
    (first,) = await machine.given(1)
    await fails_with(machine, first.attempt, 2)
    for tries in range(2, 6):
        await fails_with(machine, (await machine.given(tries))[-1].attempt)
    row = await rig.ended(task_id)
    assert (row.is_success, row.chunks_failed, row.chunks_succeeded, row.frames_done) == (0, 2, 1, 1)
    assert len(await rig.attempts(task_id)) == 5
    await rig.assert_sound()
    machine.works = True
    await rig.control.retry(task_id, user_id=rig.user_id)
    assert (await rig.ended(task_id)).frames_done == 3


async def test_chunk_that_late_results_completed_is_not_rendered_again(rig: Rig, database: Database) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-2", chunk_size=2)
    (first,) = await machine.given(1)
    await machine.start(first.attempt)
    await machine.write(first.attempt, "frame_0001.png")
    await machine.all_acked()
    await rig.control.pause(task_id, user_id=rig.user_id)
    await machine.exit(first.attempt, "canceled")
    await machine.all_acked()
    await database.write(lambda c: _land_the_rest(c, task_id))
    await rig.control.resume(task_id, user_id=rig.user_id)
    row = await rig.ended(task_id)
    assert (row.is_success, row.frames_done) == (1, 2)
    assert len(machine.assigned) == 1
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_many_gaps_are_cut_in_one_transaction(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-99", chunk_size=99)
    (first,) = await machine.given(1)
    await fails_with(machine, first.attempt, *range(2, 100, 2))
    await machine.given(2)
    row = await rig.task(task_id)
    assert (row.chunks_succeeded, row.chunks_waiting + row.chunks_assigned + row.chunks_running) == (49, 50)
    assert await all_frames(rig, task_id) == list(range(1, 100))
    machine.works = True
    await machine.render((await machine.given(2))[-1].attempt)
    assert (await rig.ended(task_id)).is_success == 1
    await until(lambda: len(machine.assigned) == 51, "51 attempts")
    await rig.assert_sound()


def _land_the_rest(connection: Connection, task_id: int) -> None:
    row = dict(connection.execute(select(results)).mappings().one())
    del row["result_id"]
    row |= {"name": "frame_0002.png", "name_hash": name_hash("frame_0002.png"), "frame": 2}
    connection.execute(results.insert().values(row))
    connection.execute(tasks.update().where(tasks.c.task_id == task_id).values(frames_done=2))
    connection.execute(users.update().values(kept_bytes=users.c.kept_bytes + row["size"]))
