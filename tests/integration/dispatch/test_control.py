"""Cancel, delete, try again, and why nothing happens."""

import pytest
from sqlalchemy import func, select, text

from renderonline.database.schema import attempts, chunks, queue, renders, results, tasks
from renderonline.farm.errors import Conflict, LimitReached, NotFound
from renderonline.protocol.link import Log
from tests.support.dispatching import Rig, begun, joined, until

pytestmark = pytest.mark.both_databases


async def test_cancel_stops_the_attempt_and_ends_the_task(rig: Rig) -> None:
    machine = await joined(rig)
    machine.works = False
    task_id = await rig.submit("1-3")
    (assign,) = await machine.given()
    await machine.start(assign.attempt)
    await machine.all_acked()
    state = await rig.control.cancel(task_id, user_id=rig.user_id)
    assert state.status == "canceled"
    await until(lambda: machine.canceled == [assign.attempt], "cancel")
    row = await rig.task(task_id)
    assert (row.is_running, row.is_success, row.chunks_canceled) == (0, 0, 3)
    assert row.end_time is not None
    assert not await rig.in_queue(task_id)
    await machine.exit(assign.attempt, "canceled")
    await machine.all_acked()
    await until(lambda: not rig.left_attempts(), "end of the attempt's directory")
    await rig.assert_sound()


async def test_slot_of_a_canceled_attempt_is_free_when_the_machine_says_so(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    first = await rig.submit("1")
    (assign,) = await machine.given()
    await rig.control.cancel(first, user_id=rig.user_id)
    second = await rig.submit("1")
    await until(lambda: machine.canceled, "cancel")
    assert len(machine.assigned) == 1
    machine.works = True
    await machine.exit(assign.attempt, "canceled")
    assert (await rig.ended(second)).is_success == 1


async def test_cancel_of_an_ended_task_is_a_conflict_and_of_anothers_not_found(rig: Rig) -> None:
    await joined(rig)
    task_id = await rig.submit("1")
    await rig.ended(task_id)
    with pytest.raises(Conflict) as conflict:
        await rig.control.cancel(task_id, user_id=rig.user_id)
    assert conflict.value.reason_code == "not_in_queue"
    for wrong in (rig.user_id + 1, 4711):
        with pytest.raises(NotFound):
            await rig.control.cancel(task_id, user_id=wrong)
    with pytest.raises(NotFound):
        await rig.control.cancel(4711, user_id=None)


async def test_delete_leaves_nothing(rig: Rig) -> None:
    machine = await joined(rig)
    done = await rig.submit("1-2")
    await rig.ended(done)
    machine.works = False
    running = await rig.submit("1-2")
    assign = (await machine.given(3))[-1]
    await machine.start(assign.attempt)
    await machine.send(Log(assign.attempt, 0, "line"))
    await machine.write(assign.attempt, "frame_0001.png")
    await machine.all_acked()
    machine.works = True
    scenes = [await rig.scene_of(task) for task in (done, running)]
    for task in (done, running):
        await rig.control.delete(task, user_id=rig.user_id)
    assert not any(scene.parent.exists() for scene in scenes)
    assert not rig.left_attempts()
    assert not any((rig.directory / "data" / "logs").iterdir())
    for table in (attempts, chunks, queue, renders, results, tasks):
        count = select(func.count()).select_from(table)
        assert await rig.database.read(lambda c, count=count: c.scalar(count)) == 0
    with pytest.raises(NotFound):
        await rig.control.delete(done, user_id=rig.user_id)
    assert (await rig.ended(await rig.submit("1"))).is_success == 1
    await rig.assert_sound()


async def test_deletion_of_a_task_that_had_ended_is_no_second_end(rig: Rig) -> None:
    await joined(rig)
    task_id = await rig.submit("1")
    await rig.ended(task_id)
    await until(lambda: rig.events.of("task")[-1]["status"] == "succeeded", "event of the end")
    told = len(rig.events.of("task"))
    await rig.control.delete(task_id, user_id=rig.user_id)
    assert [event["status"] for event in rig.events.of("task")[told:]] == ["deleted"]


async def test_result_that_comes_after_the_delete_leaves_nothing(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    await machine.hang_up()
    scene = await rig.scene_of(task_id)
    await rig.control.delete(task_id, user_id=rig.user_id)
    await machine.dial()
    await machine.write(assign.attempt, "frame_0001.png")
    await machine.exit(assign.attempt)
    await machine.all_acked()
    assert not scene.parent.exists()
    await rig.assert_sound()


async def test_retry_puts_failed_chunks_back_and_keeps_what_is_done(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-2")
    good = (await machine.given(1))[0]
    await machine.render(good.attempt)
    bad = (await machine.given(2))[1]
    await machine.exit(bad.attempt, "failed", failure="scene", reason="broken")
    row = await rig.ended(task_id)
    assert (row.is_success, row.chunks_failed) == (0, 1)
    with pytest.raises(Conflict):
        await rig.control.pause(task_id, user_id=None)
    machine.works = True
    state = await rig.control.retry(task_id, user_id=rig.user_id)
    assert state.reason is None
    row = await rig.ended(task_id)
    assert (row.is_success, row.chunks_succeeded, row.reason) == (1, 2, None)
    assert len(machine.assigned) == 3
    with pytest.raises(Conflict):
        await rig.control.retry(task_id, user_id=rig.user_id)
    await rig.assert_sound()


async def test_retry_of_a_canceled_task_brings_it_back(rig: Rig) -> None:
    task_id = await rig.submit("1-2")
    await rig.control.cancel(task_id, user_id=None)
    await rig.control.retry(task_id, user_id=None)
    assert await rig.in_queue(task_id)
    await joined(rig)
    assert (await rig.ended(task_id)).is_success == 1
    await rig.assert_sound()


async def test_retry_counts_against_the_queue_limit(rig: Rig) -> None:
    task_id = await rig.submit("1")
    await rig.control.cancel(task_id, user_id=None)
    await rig.submit("1")
    await rig.database.write(lambda c: c.execute(text("update subscriptions set queue_limit = 1")))
    with pytest.raises(LimitReached):
        await rig.control.retry(task_id, user_id=rig.user_id)
    assert not await rig.in_queue(task_id)
    await rig.assert_sound()


async def test_explain_says_what_is_missing(rig: Rig) -> None:
    task_id = await rig.submit("1")
    assert await rig.explain(task_id, user_id=None) == (
        "No machine is connected. Add one: renderonline machine invite.",
    )
    other = await joined(rig, engines=("povray",))
    (reason,) = await rig.explain(task_id, user_id=None)
    assert reason.startswith("No machine has the engine fake. Install its program on one")
    await rig.control.pause(task_id, user_id=None)
    assert (await rig.explain(task_id, user_id=None))[0].startswith("It is paused")
    await rig.control.resume(task_id, user_id=None)
    machine = await joined(rig, works=False)
    (assign,) = await machine.given()
    assert "being rendered on" in (await rig.explain(task_id, user_id=None))[0]
    waiting = await rig.submit("1")
    assert "busy" in (await rig.explain(waiting, user_id=None))[0]
    await machine.exit(assign.attempt, "failed", failure="scene", reason="no camera")
    await rig.ended(task_id)
    reasons = await rig.explain(task_id, user_id=None)
    assert any("no camera" in reason for reason in reasons)
    with pytest.raises(NotFound):
        await rig.explain(task_id, user_id=4711)
    assert not other.assigned


async def test_draining_machine_finishes_and_takes_nothing_new(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    first = await rig.submit("1")
    (assign,) = await machine.given()
    await rig.database.write(lambda c: c.execute(text("update machines set wish = 'draining'")))
    await rig.dispatcher.refresh()
    second = await rig.submit("1")
    await machine.render(assign.attempt)
    assert (await rig.ended(first)).is_success == 1
    assert "draining" in (await rig.explain(second, user_id=None))[0]
    assert len(machine.assigned) == 1
    await rig.database.write(lambda c: c.execute(text("update machines set wish = 'active'")))
    machine.works = True
    assert (await rig.ended(second)).is_success == 1


async def test_deleted_row_of_a_task_in_the_queue_is_noticed(rig: Rig) -> None:
    task_id = await rig.submit("1")
    await rig.database.write(lambda c: c.execute(text("delete from queue")))
    await rig.dispatcher.refresh()
    assert task_id not in rig.farm.memory.tasks
