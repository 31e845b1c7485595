"""Machines on which chunks fail get nothing for a while (R1.5 Machine blame)."""

import time

import pytest

from renderonline.database import administration_rows, machine_rows
from tests.support.dispatching import Machine, Rig, joined, until


async def fail_three_tasks(rig: Rig, machine: Machine) -> list[int]:
    """Three tasks of one chunk each fail on a machine that alone is free."""
    task_ids = []
    for _ in range(3):
        before = len(machine.assigned)
        task_ids.append(await rig.submit("1"))
        assign = (await machine.given(before + 1))[-1]
        await machine.start(assign.attempt)
        await machine.exit(assign.attempt, "failed", failure="crash")
        await machine.all_acked()
        await rig.control.cancel(task_ids[-1], user_id=rig.user_id)
    return task_ids


async def busy(rig: Rig, count: int) -> list[Machine]:
    """Machines that have something to do."""
    await rig.submit(f"1-{count}")
    others = [await joined(rig, works=False) for _ in range(count)]
    for other in others:
        await other.given()
    return others


def view(rig: Rig, machine: Machine) -> dict[str, object]:
    found = rig.farm.machines.get(machine.machine_id)
    assert found is not None
    return found.view()


@pytest.mark.both_databases
async def test_machine_that_fails_three_tasks_in_a_row_is_benched_and_says_so(rig: Rig) -> None:
    await busy(rig, 3)
    bad = await joined(rig, works=False)
    await fail_three_tasks(rig, bad)
    await until(lambda: view(rig, bad)["benched"], "bench")
    assert view(rig, bad)["reason"] == "benched: parts of 3 tasks failed there and none succeeded in between"
    row = await rig.database.read(lambda c: machine_rows.get_machine(c, bad.machine_id))
    assert abs(row.benched_us - time.time() * 1e6) < 60e6
    await until(lambda: any(one["benched"] for one in rig.events.of("machine")), "event")
    await rig.submit("1")
    good = await joined(rig)
    await until(lambda: good.assigned, "work elsewhere")
    assert len(bad.assigned) == 3


async def test_at_most_a_quarter_of_the_machines_is_benched(rig: Rig) -> None:
    await busy(rig, 2)
    bad = await joined(rig, works=False)
    await fail_three_tasks(rig, bad)
    assert not view(rig, bad)["benched"]
    await rig.submit("1")
    await bad.given(4)


async def test_benched_machine_is_tried_again_when_its_time_is_over(rig: Rig) -> None:
    await busy(rig, 3)
    bad = await joined(rig, works=False)
    await fail_three_tasks(rig, bad)
    await until(lambda: view(rig, bad)["benched"], "bench")
    task_id = await rig.submit("1")
    await rig.dispatcher.refresh()
    assert view(rig, bad)["benched"]
    rig.farm.benching.bench_s = 0.0
    await rig.dispatcher.refresh()
    assert (await bad.given(4))[-1].task == task_id
    assert (view(rig, bad)["benched"], view(rig, bad)["reason"]) == (False, "")


@pytest.mark.both_databases
async def test_bench_outlives_a_restart_of_renderapi(rig: Rig) -> None:
    await busy(rig, 3)
    bad = await joined(rig, works=False)
    await fail_three_tasks(rig, bad)
    await until(lambda: view(rig, bad)["benched"], "bench")
    await rig.restart()
    await bad.dial()
    await rig.submit("1")
    await rig.dispatcher.leased()
    assert view(rig, bad)["benched"]
    assert len(bad.assigned) == 3


@pytest.mark.both_databases
async def test_operator_ends_a_bench_at_once_and_nothing_is_held_against_the_machine(rig: Rig) -> None:
    await busy(rig, 3)
    bad = await joined(rig, works=False)
    await fail_three_tasks(rig, bad)
    await until(lambda: view(rig, bad)["benched"], "bench")
    await rig.dispatcher.refresh()
    await rig.database.write(lambda c: administration_rows.change_machine(c, bad.machine_id, {"wish": "active"}))
    await rig.dispatcher.refresh()
    assert not view(rig, bad)["benched"]
    task_id = await rig.submit("1")
    again = (await bad.given(4))[-1]
    assert again.task == task_id
    await bad.start(again.attempt)
    await bad.exit(again.attempt, "failed", failure="crash")
    await bad.all_acked()
    assert not view(rig, bad)["benched"]


async def test_parts_that_succeed_elsewhere_count_against_the_machine_where_they_failed(rig: Rig) -> None:
    bad = await joined(rig, works=False, slots=3)
    task_id = await rig.submit("1-3")
    given = await bad.given(3)
    good = [await joined(rig) for _ in range(3)]
    for assign in given:
        await bad.start(assign.attempt)
    for assign in given:
        await bad.exit(assign.attempt, "failed", failure="crash")
    assert (await rig.ended(task_id)).is_success == 1
    assert sum(len(one.assigned) for one in good) == 3
    await until(lambda: view(rig, bad)["benched"], "bench")
    assert view(rig, bad)["reason"] == "benched: 3 parts failed there that succeeded elsewhere"


async def test_scenes_that_nobody_can_render_are_no_machines_fault(rig: Rig) -> None:
    await busy(rig, 3)
    bad = await joined(rig, works=False, slots=4)
    for task in range(4):
        await rig.submit("1")
        assign = (await bad.given(task + 1))[-1]
        await bad.exit(assign.attempt, "failed", failure="scene")
    await bad.all_acked()
    assert not view(rig, bad)["benched"]


async def test_machine_that_fails_parts_of_one_broken_scene_is_not_benched(rig: Rig) -> None:
    await busy(rig, 3)
    bad = await joined(rig, works=False, slots=5)
    await rig.submit("1-5")
    for assign in await bad.given(5):
        await bad.start(assign.attempt)
        await bad.exit(assign.attempt, "failed", failure="crash")
    await bad.all_acked()
    assert not view(rig, bad)["benched"]
