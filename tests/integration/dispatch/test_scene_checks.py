"""A free machine looks at the scene of a new task before its frames are rendered; without one the task goes on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from renderonline.database import administration_rows
from renderonline.database.door import Database
from renderonline.database.schema import engines as engine_rows
from renderonline.database.schema import tasks, update
from renderonline.farm.machines import Card
from renderonline.farm.needs import Needs
from renderonline.protocol.link import Assign
from renderonline.renderapi.scene_checks import NONE_FREE, NOT_THERE, NOT_YET
from tests.support.dispatching import DEFINITION, Machine, Rig, joined, opened_rig, until

CHECK = """
[check]
environment = { CHECK_ONLY = "yes" }
time_s = 20
"""
LACKS = ["//tex/wood.png is not there: it was not sent with the scene"]


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    """A farm whose engine can look at scenes."""
    async with opened_rig(database, tmp_path) as opened:
        await checks_with(opened, CHECK)
        yield opened


async def checks_with(rig: Rig, check: str) -> None:
    await rig.database.write(lambda c: update(c, engine_rows, rig.engine_id, {"definition": DEFINITION + check}))


def is_check(assign: Assign) -> bool:
    return "CHECK_ONLY" in assign.environment


async def check_of(machine: Machine, task_id: int) -> Assign:
    """The check of a task, once its machine has it."""

    def found() -> Assign | None:
        return next((one for one in machine.assigned.values() if one.task == task_id and is_check(one)), None)

    assign: Assign = await until(found, f"check of task {task_id}")
    return assign


async def frames_of(machine: Machine, task_id: int, count: int = 1) -> list[Assign]:
    """Attempts at a task's chunks, once its machine has them."""

    def found() -> list[Assign]:
        of_task = [one for one in machine.assigned.values() if one.task == task_id and not is_check(one)]
        return of_task if len(of_task) >= count else []

    assigns: list[Assign] = await until(found, f"{count} attempts at task {task_id}")
    return assigns


async def unchecked(rig: Rig, task_id: int, wanted: str | None) -> None:
    """Wait until the task says so of its check."""

    async def says() -> bool:
        return bool((await rig.task(task_id)).unchecked == wanted)

    await until(says, f"{wanted} at task {task_id}")


@pytest.mark.both_databases
async def test_warnings_of_a_check_stand_before_the_first_frame_has_landed(rig: Rig) -> None:
    machine = await joined(rig, works=False, slots=2)
    task_id = await rig.submit("1-4")
    check = await check_of(machine, task_id)
    (frame,) = await frames_of(machine, task_id)
    assert (await rig.task(task_id)).unchecked == NOT_YET
    assert (check.expected, check.frames, check.limits.time_s, check.cards) == ((), (1,), 20.0, -1)
    await machine.start(check.attempt)
    await machine.exit(check.attempt, warnings=LACKS)
    await unchecked(rig, task_id, None)
    await until(lambda: rig.events.of("task")[-1]["unchecked"] is None, "event")
    assert await rig.landed(task_id) == []
    assert (await rig.explain(task_id, user_id=None))[0] == LACKS[0]
    assert len(await rig.attempts(task_id)) == len({one.chunk for one in machine.assigned.values()} - {0})

    machine.works = True
    await machine.render(frame.attempt)
    for other in await frames_of(machine, task_id, 2):
        if other.attempt != frame.attempt:
            await machine.render(other.attempt)
    ended = await rig.ended(task_id)
    assert (ended.is_success, ended.frames_done, ended.chunks_succeeded) == (1, 4, 4)
    assert {row.tries for row in await rig.chunks(task_id)} == {0}
    assert rig.farm.reports.dropped == 0
    await until(lambda: not rig.left_attempts(), "removal of the attempts' directories")
    await rig.assert_sound()


async def test_a_busy_farm_starts_the_task_and_marks_it_as_not_checked(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    busy = await rig.submit("1-2")
    await machine.exit((await check_of(machine, busy)).attempt)
    await frames_of(machine, busy)
    task_id = await rig.submit("1")
    assert (await rig.task(task_id)).unchecked == NONE_FREE
    machine.works = True
    await machine.render(list(machine.assigned)[-1])
    assert (await rig.ended(task_id)).is_success
    await unchecked(rig, task_id, NONE_FREE)
    assert not [one for one in machine.assigned.values() if one.task == task_id and is_check(one)]
    await rig.assert_sound()


async def test_a_machine_that_does_not_fit_the_task_does_not_check_it(rig: Rig) -> None:
    await joined(rig)
    task_id = await rig.submit("1", needs=Needs(tags=("big",)))
    assert (await rig.task(task_id)).unchecked == NONE_FREE
    await checks_with(rig, f'{CHECK}engine_version = "1.1"\n')
    old = await rig.submit("1")
    assert (await rig.task(old)).unchecked == NONE_FREE
    assert (await rig.ended(old)).is_success


async def test_a_check_takes_no_graphics_card(rig: Rig) -> None:
    cards = (Card("0", "cuda", "GeForce", 8000),)
    machine = await joined(rig, works=False, slots=2, hello={"cards": cards})
    task_id = await rig.submit("1", needs=Needs(gpus=1))
    assert is_check(await check_of(machine, task_id))
    assert (await frames_of(machine, task_id))[0].cards == 1


async def test_scenes_of_one_user_are_checked_one_at_a_time(rig: Rig) -> None:
    machine = await joined(rig, works=False, slots=4)
    first, second = await rig.submit("1"), await rig.submit("1")
    check = await check_of(machine, first)
    await frames_of(machine, second)
    assert (await rig.task(second)).unchecked == NOT_YET
    assert [one.task for one in machine.assigned.values() if is_check(one)] == [first]
    await machine.exit(check.attempt)
    await machine.exit((await check_of(machine, second)).attempt)
    await unchecked(rig, first, None)
    await unchecked(rig, second, None)


async def test_what_waits_is_rendered_before_the_next_scene_is_looked_at(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    first, second = await rig.submit("1"), await rig.submit("1")
    await machine.exit((await check_of(machine, first)).attempt)
    for task_id in (first, second):
        (frame,) = await frames_of(machine, task_id)
        assert [one.task for one in machine.assigned.values() if is_check(one)] == [first]
        await machine.render(frame.attempt)
    await machine.exit((await check_of(machine, second)).attempt)
    await unchecked(rig, second, None)


async def test_a_canceled_task_ends_its_check_and_frees_its_slot(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    check = await check_of(machine, task_id)
    machine.works = True
    await rig.control.cancel(task_id, user_id=None)
    await until(lambda: machine.canceled == [check.attempt], "cancel")
    other = await rig.submit("1")
    await rig.ended(other)
    assert (await rig.task(task_id)).canceled == 1
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_a_deleted_task_takes_its_check_along(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    check = await check_of(machine, task_id)
    await rig.control.delete(task_id, user_id=None)
    await until(lambda: machine.canceled == [check.attempt], "cancel")
    await machine.exit(check.attempt, warnings=LACKS)
    await machine.all_acked()
    assert await rig.task(task_id) is None
    await rig.assert_sound()


async def test_a_machine_that_is_killed_leaves_the_task_unchecked(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    await check_of(machine, task_id)
    await machine.hang_up()
    await unchecked(rig, task_id, NOT_THERE)
    other = await joined(rig)
    assert (await rig.ended(task_id)).is_success
    assert len(other.assigned) == 1
    await machine.dial()
    assert machine.welcome is not None
    assert machine.welcome.keep == ()
    await rig.submit("1-9")
    await until(lambda: len(machine.assigned) > 1, "work for the machine that came back")


async def test_a_check_that_takes_too_long_ends(rig: Rig) -> None:
    await checks_with(rig, CHECK.replace("20", "0.2"))
    machine = await joined(rig, works=False, slots=2)
    task_id = await rig.submit("1")
    check = await check_of(machine, task_id)
    await unchecked(rig, task_id, "it took longer than 0.2 s")
    await until(lambda: machine.canceled == [check.attempt], "cancel")
    await machine.exit(check.attempt, "canceled", warnings=LACKS)
    await machine.all_acked()
    assert (await rig.task(task_id)).warnings is None
    assert rig.farm.reports.dropped == 0


@pytest.mark.both_databases
async def test_a_restart_leaves_the_task_unchecked_and_the_machine_free(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    check = await check_of(machine, task_id)
    await rig.restart()
    machine.held = ()
    machine.works = True
    await machine.dial()
    assert machine.welcome is not None
    assert machine.welcome.keep == ()
    assert (await rig.ended(task_id)).is_success
    await unchecked(rig, task_id, NOT_YET)
    await machine.exit(check.attempt, "canceled")
    await machine.all_acked()
    await rig.assert_sound()


@pytest.mark.parametrize("outcome", ["failed", "canceled", "timed_out"])
async def test_a_check_that_fails_fails_no_task(rig: Rig, outcome: str) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    check = await check_of(machine, task_id)
    machine.works = True
    await machine.exit(check.attempt, outcome, failure="scene", reason="The scene can't be read", warnings=LACKS)
    ended = await rig.ended(task_id)
    assert ended.is_success
    assert ended.unchecked
    assert LACKS[0] in ended.warnings
    assert not rig.farm.machines.get(machine.machine_id).row.benched_us  # type: ignore[union-attr]


@pytest.mark.both_databases
async def test_a_strict_task_waits_for_its_check_and_fails_when_files_are_missing(rig: Rig) -> None:
    machine = await joined(rig, works=False, slots=2)
    task_id = await rig.submit("1-4", strict=True)
    check = await check_of(machine, task_id)
    await rig.dispatcher.refresh()
    await rig.control.pause(task_id, user_id=None)
    await rig.control.resume(task_id, user_id=None)
    assert "A machine looks at its scene first, for it is strict." in await rig.explain(task_id, user_id=None)
    await machine.exit(check.attempt, "failed", failure="scene", reason=f"Warning: {LACKS[0]}")
    ended = await rig.ended(task_id)
    assert (ended.is_success, ended.canceled, ended.chunks_canceled) == (0, 0, 4)
    assert LACKS[0] in ended.reason
    assert list(machine.assigned) == [check.attempt]
    assert await rig.attempts(task_id) == []
    await rig.assert_sound()

    machine.works = True
    await rig.control.retry(task_id, user_id=None)
    await until(lambda: len(machine.assigned) > 1, "frames")
    assert (await rig.ended(task_id)).is_success


async def test_a_strict_task_starts_when_its_scene_is_complete_or_nobody_can_look(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1", strict=True)
    await machine.exit((await check_of(machine, task_id)).attempt)
    await frames_of(machine, task_id)
    other = await rig.submit("1", strict=True)
    assert (await rig.task(other)).unchecked == NONE_FREE
    machine.works = True
    await machine.render((await frames_of(machine, task_id))[0].attempt)
    assert (await rig.ended(other)).is_success


async def test_a_submission_that_is_not_committed_frees_its_slot(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1", client_key="same")
    await machine.exit((await check_of(machine, task_id)).attempt)
    (frame,) = await frames_of(machine, task_id)
    machine.works = True
    await machine.render(frame.attempt)
    await rig.ended(task_id)
    assert await rig.submit("1", client_key="same") == task_id
    seen = rig.farm.machines.get(machine.machine_id)
    assert seen is not None
    await until(lambda: not seen.occupied, "free slot")
    await asyncio.gather(*(rig.submit("1") for _ in range(3)))
    rows = await rig.rows(tasks)
    for row in rows:
        await rig.ended(row.task_id)


async def test_an_engine_that_cannot_look_gets_no_check(rig: Rig) -> None:
    await checks_with(rig, "")
    machine = await joined(rig, slots=2)
    task_id = await rig.submit("1")
    assert (await rig.ended(task_id)).unchecked is None
    assert len(machine.assigned) == 1
    assert (
        await rig.database.read(lambda c: administration_rows.get_engine(c, rig.engine_id))
    ).definition == DEFINITION
