"""What follows from failures: tried again elsewhere, at most three times, then a plain reason (R1.4 Retries,
R9 Scheduling)."""

from collections.abc import AsyncIterator

import pytest

from renderonline.protocol.link import Assign
from tests.support.dispatching import Machine, Rig, begun, joined, until


@pytest.mark.both_databases
async def test_failed_chunk_is_tried_three_times_then_fails_with_a_reason(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    for tries in range(1, 4):
        assigns = await machine.given(tries)
        await machine.start(assigns[-1].attempt)
        await machine.exit(assigns[-1].attempt, "failed", failure="crash", reason="signal 11", exit_code=139)
    row = await rig.ended(task_id)
    assert (row.is_success, row.chunks_failed, row.chunks_waiting) == (0, 1, 0)
    assert row.reason == "The engine crashed: signal 11 (tried 3 times)"
    reasons = await rig.explain(task_id, user_id=None)
    assert reasons[0] == f"It failed. Try it again with: renderonline retry {task_id}."
    assert not await rig.in_queue(task_id)
    attempts = await rig.attempts(task_id)
    assert [one.outcome for one in attempts] == ["failed"] * 3
    assert attempts[0].exit_code == 139
    assert (await rig.chunks(task_id))[0].tries == 3
    await rig.assert_sound()


async def test_scene_failure_is_not_tried_again(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    await machine.exit(assign.attempt, "failed", failure="scene", reason="no camera")
    row = await rig.ended(task_id)
    assert row.reason == "The scene can't be rendered: no camera"
    assert len(await rig.attempts(task_id)) == 1
    advice, *why = await rig.explain(task_id, user_id=None)
    logs = f"The engine's log: renderonline logs {task_id}"
    assert (advice, why) == (f"It failed. Correct the scene and submit it again. {logs}", [row.reason])


async def test_a_missing_render_engine_is_looked_for_on_another_machine_and_counts_as_no_try(rig: Rig) -> None:
    lacking, task_id, assign = await begun(rig)
    having = await joined(rig, works=True)
    reason = "this Blender has no render engine OCTANE"
    await lacking.exit(assign.attempt, "failed", failure="no_render_engine", reason=reason)
    assert (await rig.ended(task_id)).is_success == 1
    first, second = await rig.attempts(task_id)
    assert (first.machine_id, second.machine_id) == (lacking.machine_id, having.machine_id)
    assert (await rig.chunks(task_id))[0].tries == 0
    await having.hang_up()
    task_id = await rig.submit("1")
    for number in (2, 3):
        again = (await lacking.given(number))[-1]
        await lacking.start(again.attempt)
        await lacking.exit(again.attempt, "failed", failure="no_render_engine", reason=reason)
    row = await rig.ended(task_id)
    assert row.reason.endswith("no render engine OCTANE (and no other machine is left)")
    advice = (await rig.explain(task_id, user_id=None))[0]
    assert advice.startswith("It failed. Set up a Blender that has it, or submit it with another engine")


async def test_success_without_the_expected_files_is_a_failure(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-2", chunk_size=2)
    for tries in range(1, 4):
        assign = (await machine.given(tries))[-1]
        await machine.start(assign.attempt)
        if tries == 1:
            await machine.write(assign.attempt, "frame_0001.png")
        await machine.exit(assign.attempt)
    row = await rig.ended(task_id)
    assert row.is_success == 0
    assert row.frames_done == 1
    assert "frame_0002.png" in row.reason
    assert (await rig.attempts(task_id))[0].failure == "missing_output"
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_second_try_renders_only_what_is_missing(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-4", chunk_size=4)
    first = (await machine.given(1))[-1]
    await machine.start(first.attempt)
    await machine.write(first.attempt, "frame_0001.png")
    await machine.write(first.attempt, "frame_0002.png")
    await machine.exit(first.attempt, "failed", failure="crash")
    second = (await machine.given(2))[-1]
    assert second.frames == (3, 4)
    assert second.argv[-4:] == ("-s", "3", "-e", "4")
    await machine.render(second.attempt)
    row = await rig.ended(task_id)
    assert (row.is_success, row.frames_done) == (1, 4)


async def test_crash_after_the_last_file_leaves_nothing_to_do(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    await machine.write(assign.attempt, "frame_0001.png")
    await machine.exit(assign.attempt, "failed", failure="crash")
    assert (await rig.ended(task_id)).is_success == 1
    assert (await rig.attempts(task_id))[0].outcome == "failed"


async def test_chunk_that_failed_goes_to_another_machine(rig: Rig) -> None:
    bad = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await bad.given()
    good = await joined(rig)
    await bad.start(assign.attempt)
    await bad.exit(assign.attempt, "failed", failure="crash")
    assert (await rig.ended(task_id)).is_success == 1
    assert len(bad.assigned) == 1
    assert len(good.assigned) == 1


async def test_machine_that_hands_back_is_no_failure(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await machine.given()
    await machine.exit(assign.attempt, "canceled", reason="the program stops")
    await machine.given(2)
    assert (await rig.chunks(task_id))[0].tries == 0


async def test_command_that_cannot_be_written_fails_the_task_and_frees_the_slot(rig: Rig) -> None:
    machine = await joined(rig)
    broken = await rig.submit("1", template='["$RENDERONLINE:nothing"]')
    row = await rig.ended(broken)
    assert row.is_success == 0
    assert row.reason.startswith("The engine's command can't be written")
    fine = await rig.submit("1")
    assert (await rig.ended(fine)).is_success == 1
    assert len(machine.assigned) == 1


async def test_result_with_the_scenes_name_never_replaces_it(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    await rig.database.write(lambda c: c.exec_driver_sql("update engines set definition = null"))
    task_id = await rig.submit(values='{"start_frame": "1", "end_frame": "1"}')
    (assign,) = await machine.given()
    await machine.start(assign.attempt)
    await machine.write(assign.attempt, "a.scene", b"not the scene")
    await machine.exit(assign.attempt)
    await rig.ended(task_id)
    assert (await rig.scene_of(task_id)).read_text() == "scene"
    assert await rig.landed(task_id) == []


async def test_result_whose_size_is_wrong_is_not_landed(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    await machine.write(assign.attempt, "frame_0001.png", size=3)
    await machine.exit(assign.attempt)
    await machine.given(2)
    assert await rig.landed(task_id) == []
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_paused_task_starts_nothing_new_and_goes_on_when_resumed(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1-3")
    first = (await machine.given())[0]
    await rig.control.pause(task_id, user_id=rig.user_id)
    await machine.render(first.attempt)
    await machine.all_acked()
    row = await until(lambda: rig.task(task_id), "row")
    assert (row.paused, row.chunks_succeeded, row.chunks_waiting) == (1, 1, 2)
    assert len(machine.assigned) == 1
    machine.works = True
    await rig.control.resume(task_id, user_id=rig.user_id)
    assert (await rig.ended(task_id)).is_success == 1


@pytest.mark.both_databases
async def test_task_waits_for_the_task_it_names(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    first = await rig.submit("1")
    second = await rig.submit("1", waits_for=(first,))
    (assign,) = await machine.given()
    assert assign.task == first
    reasons = await rig.explain(second, user_id=rig.user_id)
    assert f"It waits for task {first} to succeed." in reasons
    machine.works = True
    await machine.render(assign.attempt)
    assert (await rig.ended(second)).is_success == 1


async def test_arguments_that_the_engine_refuses_are_not_tried_again(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    await machine.exit(assign.attempt, "failed", failure="arguments", reason="unknown option -Q", exit_code=2)
    assert (await rig.ended(task_id)).reason == "The engine does not take these arguments: unknown option -Q"
    assert len(await rig.attempts(task_id)) == 1


@pytest.mark.both_databases
async def test_task_stops_early_when_ten_chunks_failed_for_good(rig: Rig) -> None:
    machine = await joined(rig, works=False, slots=12)
    task_id = await rig.submit("1-50")
    given = await machine.given(12)
    for assign in given:
        await machine.start(assign.attempt)
    for assign in given[:10]:
        await machine.exit(assign.attempt, "failed", failure="scene", reason="no camera")
    row = await rig.ended(task_id)
    assert (row.is_success, row.chunks_failed, row.chunks_canceled, row.chunks_waiting) == (0, 10, 40, 0)
    assert row.reason.startswith("The scene can't be rendered: no camera. The task stopped early")
    assert not await rig.in_queue(task_id)
    live = set(machine.assigned) - {assign.attempt for assign in given[:10]}
    await until(lambda: live <= set(machine.canceled), "cancels of what was live")
    stopped = [one for one in await rig.attempts(task_id) if one.attempt_id in live]
    assert {one.outcome for one in stopped} == {"canceled"}
    canceled = [one for one in await rig.chunks(task_id) if one.state == "canceled"]
    assert all("stopped early" in one.reason for one in canceled)
    await rig.assert_sound()
    for attempt in live:  # the machine's own word comes too late to change anything
        await machine.exit(attempt, "canceled")
    machine.works = True
    await rig.control.retry(task_id, user_id=rig.user_id)
    assert (await rig.ended(task_id)).is_success == 1
    await rig.assert_sound()


async def test_reports_behind_the_one_that_stops_a_task_early_change_nothing(rig: Rig) -> None:
    """All in one transaction: a success before the stop counts, what comes behind it doesn't."""
    machine = await joined(rig, works=False, slots=14)
    task_id = await rig.submit("1-40")
    given = await machine.given(14)
    for assign in given:
        await machine.start(assign.attempt)
    await machine.all_acked()
    await machine.write(given[0].attempt, given[0].expected[0].name)
    await machine.exit(given[0].attempt)
    await machine.exit(given[1].attempt, "failed", failure="crash")
    for assign in given[2:]:
        await machine.exit(assign.attempt, "failed", failure="scene")
    row = await rig.ended(task_id)
    await machine.all_acked()
    row = await rig.task(task_id)
    assert (row.chunks_succeeded, row.chunks_failed, row.chunks_canceled) == (1, 10, 29)
    await rig.assert_sound()


async def begun_on_two(rig: Rig) -> AsyncIterator[tuple[Machine, Assign]]:
    """The only chunk that waits, begun on a machine and, when it is over there, on another one."""
    first = await joined(rig, works=False)
    await first.given()
    for machine in (first, await joined(rig, works=False)):
        (assign,) = await machine.given()
        await machine.start(assign.attempt)
        await machine.all_acked()
        yield machine, assign


@pytest.mark.both_databases
async def test_chunk_that_was_lost_on_two_machines_fails_for_good(rig: Rig) -> None:
    task_id = await rig.submit("1")
    async for machine, _ in begun_on_two(rig):
        await machine.hang_up()
        await machine.dial()  # it names nothing: what it had is lost
    row = await rig.ended(task_id)
    assert row.reason.endswith("(lost or out of memory on 2 machines)")
    assert [one.outcome for one in await rig.attempts(task_id)] == ["lost", "lost"]
    assert (await rig.chunks(task_id))[0].tries == 2
    await rig.assert_sound()


async def test_chunk_that_ran_out_of_memory_on_two_machines_fails_for_good(rig: Rig) -> None:
    task_id = await rig.submit("1")
    async for machine, assign in begun_on_two(rig):
        await machine.exit(assign.attempt, "failed", failure="out_of_memory")
    row = await rig.ended(task_id)
    assert row.reason == "The engine ran out of memory (lost or out of memory on 2 machines)"


async def test_restart_of_hpcserver_is_not_a_try_of_the_chunk(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    await machine.exit(assign.attempt, "failed", failure="lost_process", exit_code=None)
    (_, again) = await machine.given(2)
    assert (await rig.chunks(task_id))[0].tries == 0
    await machine.render(again.attempt)
    assert (await rig.ended(task_id)).is_success == 1
