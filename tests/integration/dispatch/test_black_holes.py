"""Machines that take work and do nothing with it, or never end it: the farm keeps the limits itself
(R14 Authority first)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from renderonline.database import administration_rows
from renderonline.database.door import Database
from renderonline.farm.settling import Patience
from renderonline.protocol.link import Assign, HeldAttempt
from tests.integration.dispatch.test_benching import busy, view
from tests.support.dispatching import DEFINITION, Machine, Rig, joined, opened_rig, until

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)

QUICK = Patience(start_s=1.0, fetch_s=60.0, end_s=0.5, sending_s=60.0)
AWAKE_S = 3.0


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    """A farm that waits for a second only."""
    async with opened_rig(database, tmp_path, patience=QUICK, return_s=0.1) as opened:
        yield opened


def awake(rig: Rig) -> float:
    return rig.farm.clocks.awake()


async def outlast(rig: Rig) -> None:
    """Wait until the farm has waited for much longer than its patience."""
    end = awake(rig) + AWAKE_S
    await until(lambda: awake(rig) > end, "time")


async def outcomes(rig: Rig, task_id: int) -> list[tuple[str | None, str]]:
    return [(one.outcome, one.failure) for one in await rig.attempts(task_id)]


async def taken_back(machine: Machine, assign: Assign) -> None:
    await until(lambda: assign.attempt in machine.canceled, "cancel")


async def test_assignment_that_is_not_started_goes_to_another_machine(rig: Rig) -> None:
    hole = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await hole.given()
    honest = await joined(rig)
    assert (await rig.ended(task_id)).is_success == 1
    await taken_back(hole, assign)
    assert len(honest.assigned) == 1
    assert await outcomes(rig, task_id) == [("canceled", "not_started"), ("succeeded", "")]
    assert [chunk.tries for chunk in await rig.chunks(task_id)] == [0]
    assert f"{view(rig, hole)['name']} did nothing with it" in (await rig.attempts(task_id))[0].reason
    await rig.assert_sound()


async def test_machine_that_dials_again_and_again_gains_no_time(rig: Rig) -> None:
    hole = await joined(rig, works=False)
    task_id = await rig.submit("1")
    await hole.given()

    async def dialled_again() -> bool:
        await hole.hang_up()
        await hole.dial()
        return (await outcomes(rig, task_id))[0][0] is not None

    await until(dialled_again, "end of the assignment")
    assert (await outcomes(rig, task_id))[0] == ("canceled", "not_started")


async def test_assignment_whose_files_are_on_their_way_is_kept(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await machine.given()
    end = awake(rig) + AWAKE_S

    def fetched() -> bool:
        rig.farm.machines.moved(machine.machine_id)
        return awake(rig) > end

    await until(fetched, "time")
    assert await outcomes(rig, task_id) == [(None, "")]
    await machine.render(assign.attempt)
    assert (await rig.ended(task_id)).is_success == 1


async def test_assignment_that_waits_for_a_slot_is_kept(rig: Rig) -> None:
    """HPCServer was restarted with fewer slots than it had assignments."""
    machine = await joined(rig, works=False, slots=2)
    task_id = await rig.submit("1-2")
    first, second = await machine.given(2)
    await machine.hang_up()
    machine.slots = 1
    await machine.dial()
    await machine.start(first.attempt)
    await machine.all_acked()
    await outlast(rig)
    assert await outcomes(rig, task_id) == [(None, ""), (None, "")]
    await machine.render(first.attempt)
    await machine.render(second.attempt)
    assert (await rig.ended(task_id)).is_success == 1


async def test_nothing_counts_before_every_machine_had_time_to_come_back(database: Database, tmp_path: Path) -> None:
    async with opened_rig(database, tmp_path, patience=QUICK, return_s=60.0) as rig:
        machine = await joined(rig, works=False)
        task_id = await rig.submit("1")
        await machine.given()
        await outlast(rig)
        assert await outcomes(rig, task_id) == [(None, "")]


async def test_machine_that_starts_nothing_of_three_tasks_is_benched(rig: Rig) -> None:
    others = await busy(rig, 3)
    for other in others:
        await other.start(next(iter(other.assigned)))
    hole = await joined(rig, works=False)
    for count in range(1, 4):
        task_id = await rig.submit("1")
        assign = (await hole.given(count))[-1]
        await taken_back(hole, assign)
        await rig.control.cancel(task_id, user_id=rig.user_id)
        await hole.exit(assign.attempt, "canceled")
    await until(lambda: view(rig, hole)["benched"], "bench")
    assert view(rig, hole)["reason"] == "benched: it started nothing of 3 tasks in a row"


async def limited(rig: Rig, limits: str) -> None:
    """Have the rig's engine limit its attempts."""
    definition = limits + DEFINITION
    await rig.database.write(lambda c: administration_rows.change_engine(c, rig.engine_id, {"definition": definition}))


async def test_attempt_that_goes_on_beyond_its_time_limit_is_ended_by_the_farm(rig: Rig) -> None:
    await limited(rig, "frame_time_s = 0.2\n")
    liar = await joined(rig, works=False)
    task_id = await rig.submit("1-2", chunk_size=2)
    (assign,) = await liar.given()
    assert (assign.limits.time_s, assign.limits.grace_s) == (0.4, 5.0)
    await liar.start(assign.attempt)
    honest = await joined(rig)
    assert (await rig.ended(task_id)).is_success == 1
    assert assign.attempt in liar.canceled
    assert len(honest.assigned) == 1
    assert await outcomes(rig, task_id) == [("lost", "overtime"), ("succeeded", "")]
    first = (await rig.attempts(task_id))[0]
    assert first.reason.startswith("The machine did not end it at its time limit")
    await rig.assert_sound()


async def test_attempt_without_a_limit_goes_on(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await machine.given()
    assert assign.limits.time_s == 0
    await machine.start(assign.attempt)
    await machine.all_acked()
    await outlast(rig)
    assert await outcomes(rig, task_id) == [(None, "")]


async def test_limit_of_an_attempt_outlives_a_restart_of_renderapi(rig: Rig) -> None:
    await limited(rig, "time_s = 0.2\n")
    liar = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await liar.given()
    await liar.start(assign.attempt)
    await liar.all_acked()
    await rig.restart()
    liar.held = (HeldAttempt(assign.attempt, assign.token, running=True),)
    await liar.dial()
    await joined(rig)
    assert (await rig.ended(task_id)).is_success == 1
    assert (await outcomes(rig, task_id))[0] == ("lost", "overtime")
