"""Rendering again what is done, stopping without a failure, changing what waits: whatever goes on meanwhile."""

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from renderonline.database.listing_rows import list_results
from renderonline.database.report_rows import Reported, apply_steps, begin_landing
from renderonline.database.schema import results
from renderonline.farm.errors import Conflict, InvalidRequest, LimitReached, NotFound, RenderOnlineError
from renderonline.farm.tasks import Landing, Offer
from renderonline.renderapi import control
from tests.support.dispatching import QUICK, Machine, Rig, begun, joined, until


async def done(rig: Rig, machine: Machine, frames: str, chunk_size: int = 1, **more: Any) -> tuple[int, Path]:
    """A task that succeeded, and its directory; the machine does nothing by itself afterwards."""
    machine.works = True
    task_id = await rig.submit(frames, chunk_size, **more)
    assert (await rig.ended(task_id)).is_success == 1
    machine.works = False
    return task_id, (await rig.scene_of(task_id)).parent


async def shown(rig: Rig, task_id: int) -> dict[str, str]:
    """The results that a user sees: name -> digest."""
    page = await rig.database.read(lambda c: list_results(c, task_id, 500))
    assert len({one.name for one in page.items}) == len(page.items)
    return {one.name: one.digest for one in page.items}


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


async def offer(rig: Rig, machine: Machine, attempt: int, name: str, data: bytes) -> Landing:
    """Begin a landing as RenderAPI does, and leave it half-way."""
    assign = machine.assigned[attempt]
    put(Path(assign.directory, name), data)
    said = machine.result(attempt, name, data)
    one = Offer(attempt, assign.token, name, 1, said.size, said.digest, said.crc32)
    (landing,) = await rig.database.write(partial(begin_landing, offers=[one], machine_id=machine.machine_id))
    return landing


@pytest.mark.both_databases
async def test_requeued_task_renders_every_frame_again_and_replaces_its_files(rig: Rig) -> None:
    machine = await joined(rig)
    task_id, folder = await done(rig, machine, "1-3")
    before = await shown(rig, task_id)
    state = await rig.control.requeue(task_id, user_id=rig.user_id)
    assert (state.status, state.frames_done, state.counters.waiting) == ("queued", 0, 3)
    assert await rig.in_queue(task_id)
    for number in range(3):
        assign = (await machine.given(4 + number))[-1]
        await machine.start(assign.attempt)
        await machine.write(assign.attempt, assign.expected[0].name, f"new {number}".encode())
        await machine.exit(assign.attempt)
    row = await rig.ended(task_id)
    assert (row.is_success, row.frames_done, row.chunks_succeeded) == (1, 3, 3)
    assert sorted(path.read_bytes()[:3] for path in folder.glob("*.png")) == [b"new"] * 3
    after = await shown(rig, task_id)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert len(await rig.rows(results, task_id=task_id)) == 3
    await rig.assert_sound()


async def test_old_frame_is_there_until_the_new_one_takes_its_place(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = await joined(rig)
    task_id, folder = await done(rig, machine, "1")
    frame, old = folder / "frame_0001.png", (folder / "frame_0001.png").read_bytes()
    digests = await shown(rig, task_id)
    await rig.control.requeue(task_id, user_id=None)
    assign = (await machine.given(2))[-1]
    await machine.start(assign.attempt)
    await machine.all_acked()
    assert frame.read_bytes() == old
    assert await shown(rig, task_id) == digests
    await rig.assert_sound()
    seen: list[bytes] = []
    monkeypatch.setattr("os.replace", lambda *a, real=os.replace, **o: (seen.append(frame.read_bytes()), real(*a, **o)))
    await machine.write(assign.attempt, "frame_0001.png", b"new")
    await machine.exit(assign.attempt)
    await rig.ended(task_id)
    assert (seen, frame.read_bytes()) == ([old], b"new")
    (row,) = await rig.rows(results, task_id=task_id)
    assert row.landed_us
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.both_databases
async def test_single_frames_are_rendered_again_and_no_others(rig: Rig) -> None:
    machine = await joined(rig)
    task_id, _ = await done(rig, machine, "1-4", 4)
    await rig.control.requeue(task_id, frames="2-3", user_id=rig.user_id)
    assert (await rig.task(task_id)).frames_done == 2
    again = (await machine.given(2))[-1]
    assert again.frames == (2, 3)
    await machine.render(again.attempt)
    assert (await rig.ended(task_id)).frames_done == 4
    by_attempt = {row.frame: row.attempt_id for row in await rig.rows(results, task_id=task_id)}
    first = by_attempt[1]
    assert by_attempt == {1: first, 2: again.attempt, 3: again.attempt, 4: first}
    await rig.assert_sound()


async def test_scattered_frames_are_rendered_again(rig: Rig) -> None:
    machine = await joined(rig)
    task_id, _ = await done(rig, machine, "1-9", 9)
    machine.works = True
    await rig.control.requeue(task_id, frames="1,4-5,9", user_id=rig.user_id)
    row = await rig.ended(task_id)
    assert (row.is_success, row.frames_done) == (1, 9)
    first = min(machine.assigned)
    landed = {row.frame: row.attempt_id for row in await rig.rows(results, task_id=task_id)}
    assert {frame for frame, attempt in landed.items() if attempt != first} == {1, 4, 5, 9}
    await rig.assert_sound()


async def test_requeueing_twice_is_requeueing_once(rig: Rig) -> None:
    machine = await joined(rig)
    task_id, _ = await done(rig, machine, "1-2")
    await machine.hang_up()
    for _ in range(2):
        await rig.control.requeue(task_id, frames="2", user_id=rig.user_id)
    row = await rig.task(task_id)
    assert (row.frames_done, row.chunks_waiting, row.chunks_succeeded) == (1, 1, 1)
    await rig.assert_sound()


async def test_running_chunk_whose_frame_has_landed_is_stopped_and_begins_anew(rig: Rig) -> None:
    machine, task_id, first = await begun(rig, "1-3", 3)
    for frame in (1, 2):
        await machine.write(first.attempt, f"frame_000{frame}.png", b"old")
    await machine.all_acked()
    await rig.control.requeue(task_id, frames="1", user_id=rig.user_id)
    await until(lambda: machine.canceled == [first.attempt], "cancel")
    await machine.write(first.attempt, "frame_0003.png", b"too late")
    await machine.exit(first.attempt, "canceled")
    second = (await machine.given(2))[-1]
    await machine.all_acked()
    assert await rig.landed(task_id) == ["frame_0002.png"]
    machine.works = True
    await machine.render(second.attempt)
    row = await rig.ended(task_id)
    assert (row.is_success, row.frames_done) == (1, 3)
    assert {chunk.tries for chunk in await rig.chunks(task_id)} == {0}
    assert (await rig.attempts(task_id))[0].outcome == "canceled"
    await rig.assert_sound()


async def test_running_chunk_that_has_not_come_to_the_frame_goes_on(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig, "1-3", 3)
    await machine.write(assign.attempt, "frame_0001.png")
    await machine.all_acked()
    await rig.control.requeue(task_id, frames="3", user_id=rig.user_id)
    await machine.write(assign.attempt, "frame_0002.png")
    await machine.write(assign.attempt, "frame_0003.png")
    await machine.exit(assign.attempt)
    assert (await rig.ended(task_id)).is_success == 1
    assert (machine.canceled, len(machine.assigned)) == ([], 1)
    await rig.assert_sound()


async def test_chunks_are_requeued_by_id_whatever_their_state(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-3")
    bad = (await machine.given(1))[-1]
    await machine.exit(bad.attempt, "failed", failure="scene", reason="broken")
    good = (await machine.given(2))[-1]
    await machine.render(good.attempt)
    await machine.given(3)
    await rig.control.cancel(task_id, user_id=rig.user_id)
    running = (await machine.given(3))[-1]
    await machine.exit(running.attempt, "canceled")
    await machine.all_acked()
    await machine.hang_up()
    state = await rig.control.requeue(task_id, chunks=[bad.chunk, good.chunk], user_id=rig.user_id)
    assert (state.status, state.counters.waiting, state.counters.canceled) == ("queued", 2, 1)
    state = await rig.control.requeue(task_id, chunks=[running.chunk], user_id=rig.user_id)
    assert (state.counters.waiting, state.reason) == (3, None)
    await rig.assert_sound()
    await joined(rig)
    assert (await rig.ended(task_id)).is_success == 1
    await rig.assert_sound()


async def test_what_a_task_does_not_have_is_refused_and_nothing_changes(rig: Rig) -> None:
    machine = await joined(rig)
    task_id, _ = await done(rig, machine, "1-3", 3)
    other, _ = await done(rig, machine, "1")
    foreign = (await rig.chunks(other))[0].chunk_id
    before = (await rig.task(task_id), await rig.chunks(task_id), await rig.rows(results, task_id=task_id))
    for wrong in ({"frames": "2-4"}, {"frames": "x"}, {"chunks": [foreign]}, {"frames": "1", "chunks": [2**63 - 1]}):
        with pytest.raises(InvalidRequest):
            await rig.control.requeue(task_id, user_id=rig.user_id, **wrong)  # type: ignore[arg-type]
    for whose, number in ((rig.user_id + 1, task_id), (None, 4711)):
        with pytest.raises(NotFound):
            await rig.control.requeue(number, user_id=whose)
    assert before == (await rig.task(task_id), await rig.chunks(task_id), await rig.rows(results, task_id=task_id))


@pytest.mark.both_databases
async def test_requeueing_an_ended_task_counts_against_the_queue_limit(rig: Rig) -> None:
    machine = await joined(rig)
    task_id, _ = await done(rig, machine, "1")
    await rig.submit("1")
    await rig.database.write(lambda c: c.execute(text("update subscriptions set queue_limit = 1")))
    with pytest.raises(LimitReached):
        await rig.control.requeue(task_id, user_id=rig.user_id)
    assert (await rig.task(task_id)).is_success == 1
    await rig.assert_sound()


async def test_frame_that_somebody_altered_is_replaced_by_the_next_one(rig: Rig) -> None:
    machine = await joined(rig)
    task_id, folder = await done(rig, machine, "1-2")
    before = await shown(rig, task_id)
    put(folder / "frame_0001.png", b"forged")
    machine.works = True
    await rig.control.requeue(task_id, frames="1", user_id=rig.user_id)
    row = await rig.ended(task_id)
    assert (row.is_success, row.frames_done) == (1, 2)
    assert (folder / "frame_0001.png").read_bytes() != b"forged"
    assert await shown(rig, task_id) == before
    await rig.assert_sound()


async def test_engine_that_names_no_files_renders_the_whole_chunk_again(rig: Rig) -> None:
    machine = await joined(rig)
    plain = "update engines set definition = replace(definition, '[outputs]\npattern = \"frame_####.png\"\n', '')"
    await rig.database.write(lambda c: c.exec_driver_sql(plain))
    task_id, folder = await done(rig, machine, "1-4", 2)
    state = await rig.control.requeue(task_id, frames="3", user_id=rig.user_id)
    assert (state.frames_done, state.counters.waiting) == (2, 1)
    again = (await machine.given(3))[-1]
    assert again.frames == (3, 4)
    await machine.start(again.attempt)
    await machine.write(again.attempt, "some.png", b"old")
    await machine.exit(again.attempt)
    assert (await rig.ended(task_id)).frames_done == 4
    await rig.control.requeue(task_id, frames="4", user_id=rig.user_id)
    again = (await machine.given(4))[-1]
    await machine.start(again.attempt)
    await machine.write(again.attempt, "some.png", b"new")
    await machine.exit(again.attempt)
    assert (await rig.ended(task_id)).frames_done == 4
    assert (folder / "some.png").read_bytes() == b"new"
    await rig.assert_sound()


async def test_result_on_its_way_to_its_name_is_waited_for_and_dropped_too(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig, "1-2", 2)
    landing = await offer(rig, machine, assign.attempt, "frame_0001.png", b"old")
    requeued = asyncio.create_task(rig.control.requeue(task_id, frames="1", user_id=rig.user_id))
    await until(lambda: machine.canceled == [assign.attempt], "cancel")
    await machine.exit(assign.attempt, "canceled")
    await machine.all_acked()
    assert not requeued.done()
    moment = rig.farm.clocks.now()
    await rig.database.write(partial(apply_steps, reported=[Reported([landing])], moment=moment, policy=QUICK))
    state = await requeued
    assert (state.frames_done, state.counters.waiting) == (0, 1)
    assert [row.state for row in await rig.rows(results, task_id=task_id)] == ["stale"]
    assert (await machine.given(2))[-1].frames == (1, 2)
    await rig.assert_sound()


async def test_result_that_never_arrives_does_not_hold_up_the_task(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_STOPPING_S", 0.2)
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await machine.given()
    await offer(rig, machine, assign.attempt, "frame_0001.png", b"old")
    with pytest.raises(RenderOnlineError, match="Try again"):
        await rig.control.requeue(task_id, user_id=rig.user_id)
    await machine.exit(assign.attempt, "canceled")
    await machine.given(2)


@pytest.mark.both_databases
async def test_restart_in_the_middle_of_a_replacement_finishes_it(rig: Rig) -> None:
    machine = await joined(rig)
    task_id, folder = await done(rig, machine, "1")
    await rig.control.requeue(task_id, user_id=None)
    assign = (await machine.given(2))[-1]
    await machine.start(assign.attempt)
    await machine.all_acked()
    await offer(rig, machine, assign.attempt, "frame_0001.png", b"new")
    assert len(await rig.rows(results, task_id=task_id)) == 2
    await rig.restart()
    assert (folder / "frame_0001.png").read_bytes() == b"new"
    assert [row.state for row in await rig.rows(results, task_id=task_id)] == ["landed"]
    assert (await rig.task(task_id)).frames_done == 1
    await rig.assert_sound()


async def test_late_result_from_before_does_not_pass_for_the_new_frame(rig: Rig) -> None:
    lost, task_id, assign = await begun(rig)
    await lost.hang_up()
    lost.instance, lost.seq, lost.works = "", 0, True
    await lost.dial()  # without naming the attempt: it is lost
    assert (await rig.ended(task_id)).is_success == 1
    lost.works = False
    await rig.control.requeue(task_id, user_id=None)
    await lost.write(assign.attempt, "frame_0001.png", b"from before")
    await lost.all_acked()
    assert await rig.landed(task_id) == []
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_delete_of_a_requeued_running_task_leaves_nothing(rig: Rig) -> None:
    machine = await joined(rig)
    task_id, folder = await done(rig, machine, "1-2")
    await rig.control.requeue(task_id, user_id=None)
    assign = (await machine.given(3))[-1]
    await machine.start(assign.attempt)
    await machine.all_acked()
    machine.works = True
    await rig.control.delete(task_id, user_id=rig.user_id)
    assert not folder.exists()
    assert await rig.rows(results) == []
    await rig.assert_sound()


async def test_task_that_is_being_deleted_is_not_started_again(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    deleted = asyncio.create_task(rig.control.delete(task_id, user_id=rig.user_id))
    await until(lambda: machine.canceled == [assign.attempt], "cancel")
    with pytest.raises(Conflict, match="is being deleted"):
        await rig.control.requeue(task_id, user_id=rig.user_id)
    await machine.exit(assign.attempt, "canceled")
    await deleted
    assert rig.farm.memory.attempts == {}
    await machine.all_acked()
    assert await rig.task(task_id) is None
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_many_chunks_are_requeued_at_once(rig: Rig) -> None:
    task_id = await rig.submit("1-2500")
    await rig.database.write(lambda c: c.execute(text("update chunks set tries = 2, not_before_us = 5")))
    state = await rig.control.requeue(task_id, user_id=rig.user_id)
    assert state.counters.waiting == 2500
    assert {(chunk.state, chunk.tries, chunk.not_before_us) for chunk in await rig.chunks(task_id)} == {
        ("waiting", 0, 0)
    }
    assert len(rig.farm.memory.index) == 2500
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_pause_now_stops_what_runs_without_a_failure(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig, "1-3", 3)
    await machine.write(assign.attempt, "frame_0001.png")
    await machine.all_acked()
    for _ in range(2):
        state = await rig.control.pause(task_id, now=True, user_id=rig.user_id)
        assert (state.status, state.counters.waiting) == ("paused", 1)
    await until(lambda: machine.canceled == [assign.attempt], "cancel")
    await machine.exit(assign.attempt, "canceled")
    await machine.all_acked()
    await until(lambda: not rig.left_attempts(), "end of the attempt's directory")
    assert (await rig.chunks(task_id))[0].tries == 0
    await rig.assert_sound()
    await rig.control.resume(task_id, user_id=rig.user_id)
    again = (await machine.given(2))[-1]
    assert again.frames == (2, 3)
    await machine.render(again.attempt)
    assert (await rig.ended(task_id)).is_success == 1
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_priority_that_is_changed_counts_at_once(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    await rig.submit("1")
    (assign,) = await machine.given()
    first, second = await rig.submit("1"), await rig.submit("1")
    for _ in range(2):
        await rig.control.change(second, {"priority": 90, "name": "urgent"}, user_id=rig.user_id)
    await machine.render(assign.attempt)
    assert (await machine.given(2))[-1].task == second
    row = await rig.task(second)
    assert (row.priority, row.name, (await rig.task(first)).priority) == (90, "urgent", 50)
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_running_limit_that_is_changed_counts_at_once(rig: Rig) -> None:
    machine = await joined(rig, works=False, slots=3)
    blocker = await rig.submit("1", paused=True)
    task_id = await rig.submit("1-4", running_limit=1)
    (first,) = await machine.given()
    await rig.control.change(task_id, {"running_limit": 2}, user_id=rig.user_id)
    await machine.given(2)
    await machine.render(first.attempt)
    await machine.given(3)
    assert (await rig.task(task_id)).chunks_assigned == 2
    await rig.control.change(task_id, {"running_limit": 0}, user_id=rig.user_id)
    await machine.given(4)
    assert blocker not in {one.task for one in machine.assigned.values()}


async def test_changes_that_can_not_be_are_refused(rig: Rig) -> None:
    task_id = await rig.submit("1")
    for wrong in ({}, {"name": "a\x1b[0m"}):
        with pytest.raises(InvalidRequest):
            await rig.control.change(task_id, wrong, user_id=rig.user_id)
    with pytest.raises(NotFound):
        await rig.control.change(task_id, {"priority": 99}, user_id=rig.user_id + 1)
    assert (await rig.task(task_id)).priority == 50


async def test_cancel_and_retry_can_be_repeated(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    await machine.given()
    for _ in range(2):
        assert (await rig.control.cancel(task_id, user_id=rig.user_id)).status == "canceled"
    with pytest.raises(Conflict):
        await rig.control.dequeue(task_id, user_id=rig.user_id)  # v1 says that it is not in the queue
    for _ in range(2):
        await rig.control.retry(task_id, user_id=rig.user_id)
    again = await next_assign_of(machine, task_id)
    await rig.control.retry(task_id, user_id=rig.user_id)
    await machine.render(again.attempt)
    assert (await rig.ended(task_id)).is_success == 1
    assert (await rig.attempts(task_id))[-1].attempt_id == again.attempt
    await rig.assert_sound()


async def next_assign_of(machine: Machine, task_id: int) -> Any:
    """Free the slot of what was canceled, and wait for the next assignment of the task."""
    for attempt in await until(lambda: list(machine.canceled), "cancel") if machine.assigned else ():
        await machine.exit(attempt, "canceled")
    return await until(
        lambda: next((one for one in machine.assigned.values() if one.attempt not in machine.canceled), None),
        f"assignment of task {task_id}",
    )
