"""Needs, limits, hours, reservations (R9 Scheduling): what the plan promises, with the database and real links in
between."""

import asyncio
import time
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import text

from renderonline.database.administration_rows import change_machine
from renderonline.farm.needs import Needs
from renderonline.farm.scheduling import RESERVE_US
from tests.support.dispatching import Machine, Rig, joined, until


async def told(rig: Rig, task_id: int) -> str:
    return " ".join(await rig.explain(task_id, user_id=None))


async def planned(rig: Rig) -> None:
    """Wait until a plan was made of all that is known now."""
    await rig.dispatcher.refresh()
    await until(lambda: not rig.farm.background.woken.is_set(), "plan")
    await rig.dispatcher.leased()


async def set_machine(rig: Rig, machine: Machine, **changes: Any) -> None:
    await rig.database.write(lambda c: change_machine(c, machine.machine_id, changes))
    await rig.dispatcher.refresh()


async def limit_users(rig: Rig, limit: int) -> None:
    await rig.database.write(lambda c: c.execute(text(f"update subscriptions set running_limit = {limit}")))
    await rig.dispatcher.refresh()


@pytest.mark.both_databases
async def test_task_goes_to_the_machine_that_has_what_it_needs(rig: Rig) -> None:
    plain = await joined(rig)
    able = await joined(rig, hello={"tags": ("GPU",), "memory_mib": 64, "gpus": ("card",)})
    needs = Needs(engine_version="1.0", tags=("gpu",), memory_mib=64, gpus=1)
    assert (await rig.ended(await rig.submit("1-3", needs=needs))).is_success == 1
    assert len(able.assigned) == 3
    assert not plain.assigned
    await rig.assert_sound()


async def test_explain_says_machine_by_machine_what_is_missing(rig: Rig) -> None:
    await joined(rig, hello={"memory_mib": 16})
    cases = {
        Needs(engine_version="2.5"): "fake 1.0, not 2.5 or newer",
        Needs(tags=("gpu",)): "no tag gpu",
        Needs(pool="film"): "not in the pool film",
        Needs(memory_mib=17): "16 MiB of memory, not 17",
        Needs(gpus=1): "0 graphics cards, not 1",
    }
    for needs, reason in cases.items():
        assert reason in await told(rig, await rig.submit("1", needs=needs))


async def test_task_hears_of_machines_that_can_take_it_and_of_its_place(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    await joined(rig, engines=("povray",))
    first = await rig.submit("1-2")
    await machine.given(1)
    running, waiting = await rig.explain(first, user_id=None)
    assert running.startswith("1 of its parts is being rendered on ")
    assert waiting == "All machines that can take it are busy (1); it is the first in the queue."
    second = await rig.submit("1")
    assert await told(rig, second) == waiting.replace("it is the first", "1 task is before it")


async def test_operator_says_what_a_machine_is_for(rig: Rig) -> None:
    machine = await joined(rig)
    await set_machine(rig, machine, pool="Film", tags=["Fast"])
    plain, film = await rig.submit("1"), await rig.submit("1", needs=Needs(pool="film", tags=("fast",)))
    assert (await rig.ended(film)).is_success == 1
    assert "kept for the pool film" in await told(rig, plain)
    (view,) = [machine.view() for machine in rig.farm.machines]
    assert (view["pool"], view["tags"]) == ("film", ["fast"])
    await set_machine(rig, machine, pool="")
    assert (await rig.ended(plain)).is_success == 1


async def test_memory_of_running_chunks_counts(rig: Rig) -> None:
    machine = await joined(rig, works=False, slots=3, hello={"memory_mib": 10})
    first = await rig.submit("1-2", needs=Needs(memory_mib=6))
    await machine.given(1)
    plain = await rig.submit("1")
    await machine.given(2)
    await planned(rig)
    assert len(machine.assigned) == 2
    assert "leaves 2 MiB of memory" in await told(rig, first)
    machine.works = True
    for attempt in list(machine.assigned):
        await machine.render(attempt)
    assert (await rig.ended(first)).is_success == (await rig.ended(plain)).is_success == 1


async def test_needs_and_limits_are_known_after_a_restart(rig: Rig) -> None:
    machine = await joined(rig, works=False, slots=4, hello={"memory_mib": 10})
    large = await rig.submit("1-2", needs=Needs(memory_mib=6))
    limited = await rig.submit("1-3", running_limit=1)
    await machine.given(2)
    await rig.restart()
    await machine.dial()
    await planned(rig)
    assert len(machine.assigned) == 2
    assert "leaves 2 MiB" in await told(rig, large)
    assert "may run at once: 1" in await told(rig, limited)


async def test_task_never_has_more_chunks_running_than_its_limit(rig: Rig) -> None:
    machine = await joined(rig, works=False, slots=8)
    task_id = await rig.submit("1-6", running_limit=2)
    for done in range(0, 6, 2):
        await machine.given(done + 2)
        await planned(rig)
        assert len(machine.assigned) == done + 2
        for attempt in list(machine.assigned)[done:]:
            await machine.render(attempt)
    assert (await rig.ended(task_id)).is_success == 1
    await rig.assert_sound()


async def test_limited_task_goes_on_as_soon_as_a_chunk_has_ended(rig: Rig) -> None:
    await joined(rig, slots=4)
    assert (await rig.ended(await rig.submit("1-12", running_limit=1))).is_success == 1


async def test_limit_of_a_user_holds_for_submissions_at_the_same_moment(rig: Rig) -> None:
    machine = await joined(rig, works=False, slots=9)
    await limit_users(rig, 2)
    tasks = await asyncio.gather(*(rig.submit("1-2") for _ in range(4)))
    await machine.given(2)
    await planned(rig)
    assert len(machine.assigned) == 2
    assert "the subscription allows no more" in await told(rig, tasks[-1])
    machine.works = True
    for attempt in list(machine.assigned):
        await machine.render(attempt)
    for task_id in tasks:
        assert (await rig.ended(task_id)).is_success == 1


async def test_raised_limit_counts_at_once(rig: Rig) -> None:
    machine = await joined(rig, works=False, slots=4)
    await limit_users(rig, 1)
    await rig.submit("1-3")
    await machine.given(1)
    await limit_users(rig, 0)
    await machine.given(3)


async def test_machine_takes_nothing_new_outside_its_hours(rig: Rig) -> None:
    machine = await joined(rig)
    rig.farm.clocks.time = datetime(2026, 3, 2, 12, 0).timestamp
    await set_machine(rig, machine, hours="18:00-08:00")
    task_id = await rig.submit("1")
    await planned(rig)
    assert "it takes work 18:00-08:00 only" in await told(rig, task_id)
    assert not machine.assigned
    rig.farm.clocks.time = datetime(2026, 3, 2, 18, 0).timestamp
    await rig.dispatcher.refresh()
    assert (await rig.ended(task_id)).is_success == 1


async def test_hours_that_were_written_wrong_by_hand_close_the_machine(rig: Rig) -> None:
    machine = await joined(rig)
    await rig.database.write(lambda c: c.execute(text("update machines set hours = 'tonight'")))
    await rig.dispatcher.refresh()
    assert "it takes work tonight only" in await told(rig, await rig.submit("1"))
    await set_machine(rig, machine, hours="")
    await machine.given(1)


async def test_large_request_that_waited_long_gets_a_machine(rig: Rig) -> None:
    machine = await joined(rig, works=False, slots=2, hello={"memory_mib": 10})
    await rig.submit("1", needs=Needs(memory_mib=6))
    await machine.given(1)
    large = await rig.submit("1", needs=Needs(memory_mib=10), queue_us=int(time.time() * 1e6) - RESERVE_US)
    await planned(rig)
    small = await rig.submit("1")
    await planned(rig)
    assert "kept for a larger task" in await told(rig, small)
    assert len(machine.assigned) == 1
    await machine.render(next(iter(machine.assigned)))
    second = (await machine.given(3))[1]
    assert second.task == large
    await planned(rig)
    assert {assign.task for assign in machine.assigned.values()} >= {large, small}


async def test_chunk_goes_where_its_task_was_before(rig: Rig) -> None:
    first = await joined(rig, works=False)
    task_id = await rig.submit("1-3", running_limit=1)
    await first.given(1)
    other = await joined(rig)
    first.works = True
    await first.render(next(iter(first.assigned)))
    assert (await rig.ended(task_id)).is_success == 1
    assert len(first.assigned) == 3
    assert not other.assigned


async def test_machine_where_a_chunk_failed_does_not_attract_the_others(rig: Rig) -> None:
    broken = await joined(rig, works=False)
    task_id = await rig.submit("1-3", running_limit=1)
    (assign,) = await broken.given(1)
    other = await joined(rig, works=False)
    await broken.start(assign.attempt)
    await broken.exit(assign.attempt, "failed", failure="crash")
    (second,) = await other.given(1)
    assert len(broken.assigned) == 1
    broken.works = other.works = True
    await other.render(second.attempt)
    assert (await rig.ended(task_id)).is_success == 1
