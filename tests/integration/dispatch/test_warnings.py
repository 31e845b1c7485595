"""What machines say that a person must know of a task's pictures stays with the task (R16 No false success)."""

import pytest
from sqlalchemy import text

from renderonline.database.listing_rows import get_task
from tests.support.dispatching import Rig, begun, until


async def warnings(rig: Rig, task_id: int) -> tuple[str, ...]:
    return (await rig.database.read(lambda c: get_task(c, task_id))).warnings


@pytest.mark.both_databases
async def test_warnings_of_attempts_stay_with_their_task_until_all_of_it_is_rendered_again(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig, "1-2")
    await machine.write(assign.attempt, "frame_0001.png")
    await machine.exit(assign.attempt, warnings=["a.png is missing", "b\x1b[0m is\nmissing"])
    second = (await machine.given(2))[1]
    await machine.start(second.attempt)
    await machine.write(second.attempt, "frame_0002.png")
    await machine.exit(second.attempt, warnings=["a.png is missing"])
    await rig.ended(task_id)
    told = ("a.png is missing", "b [0m is missing")
    assert await warnings(rig, task_id) == told
    assert (await until(lambda: rig.events.of("task"), "event"))[-1]["warnings"] == told
    assert await rig.explain(task_id, user_id=None) == (*told, "It succeeded.")

    await rig.control.requeue(task_id, frames="1", user_id=None)
    assert await warnings(rig, task_id) == told
    await rig.control.requeue(task_id, user_id=None)
    assert await warnings(rig, task_id) == ()
    await rig.assert_sound()


async def test_a_machine_can_fill_no_task_with_warnings(rig: Rig) -> None:
    machine, task_id, _ = await begun(rig, "1-3")
    for number in range(3):
        assign = (await machine.given(number + 1))[number]
        if number:
            await machine.start(assign.attempt)
        await machine.write(assign.attempt, assign.expected[0].name)
        await machine.exit(assign.attempt, warnings=[f"{number} {one} " + "x" * 1000 for one in range(500)])
    await rig.ended(task_id)
    told = await warnings(rig, task_id)
    assert len(told) == 20
    assert max(map(len, told)) == 300
    assert told[-1].startswith("and at least ")
    stored = await rig.database.read(lambda c: c.scalar(text("select length(warnings) from tasks")))
    assert stored < 8000
