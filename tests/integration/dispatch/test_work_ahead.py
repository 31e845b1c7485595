"""Short chunks wait on the machine itself, so that no slot waits for a round trip (R9.1 Work ahead)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from renderonline.database.administration_rows import change_machine
from renderonline.database.door import Database
from renderonline.farm.scheduling import AHEAD, SHORT_IN_A_ROW
from renderonline.protocol.link import PROTOCOL, Assign, HeldAttempt
from renderonline.renderapi import work_ahead
from tests.integration.dispatch.test_scheduling import planned, told
from tests.support.dispatching import Machine, Rig, joined, opened_rig, until


@dataclass
class Held:
    """A machine that renders nothing by itself. `rendered` is in its only slot, `ahead` waits for that."""

    rig: Rig
    machine: Machine
    task_id: int
    rendered: Assign
    ahead: Sequence[Assign]

    async def outcomes(self, *, ahead: bool = True) -> list[tuple[str | None, str]]:
        wanted = {one.attempt for one in self.ahead} if ahead else {self.rendered.attempt}
        found = await self.rig.attempts(self.task_id)
        return [(one.outcome, one.failure) for one in found if one.attempt_id in wanted]

    async def taken_back(self, why: str) -> None:
        """Wait until all that waits was taken back, for this reason; that cost nothing."""
        await until(lambda: set(self.machine.canceled) >= {one.attempt for one in self.ahead}, "cancel")
        assert await self.outcomes() == [("canceled", "")] * len(self.ahead)
        rows = {one.attempt_id: one for one in await self.rig.attempts(self.task_id)}
        assert {rows[one.attempt].reason for one in self.ahead} == {why}
        for one in self.ahead:
            await self.machine.exit(one.attempt, "canceled")
        assert {chunk.tries for chunk in await self.rig.chunks(self.task_id)} == {0}

    @property
    def is_rendered(self) -> bool:
        return self.rendered.attempt not in self.machine.canceled


async def short_chunks(rig: Rig, machine: Machine, **more: Any) -> int:
    """A task of which it is known that its chunks are short; the machine has what it gets then."""
    task_id = await rig.submit("1-12", **more)
    for done in range(SHORT_IN_A_ROW):
        await machine.render((await machine.given(done + 1))[-1].attempt)
    await machine.all_acked()
    await machine.given(SHORT_IN_A_ROW + 1)
    await planned(rig)
    return task_id


async def holding(rig: Rig, **more: Any) -> Held:
    machine = await joined(rig, works=False)
    task_id = await short_chunks(rig, machine, **more)
    rendered, *ahead = (await machine.given(SHORT_IN_A_ROW + 1 + AHEAD))[SHORT_IN_A_ROW:]
    await machine.start(rendered.attempt)
    await machine.all_acked()
    return Held(rig, machine, task_id, rendered, ahead)


async def finished(held: Held) -> None:
    """The machine renders everything now."""
    held.machine.works = True
    left = [one for one in held.machine.assigned if one not in held.machine.canceled]
    for attempt in left[SHORT_IN_A_ROW:]:
        await held.machine.render(attempt)
    assert (await held.rig.ended(held.task_id)).is_success == 1
    await held.rig.assert_sound()


@pytest.mark.both_databases
async def test_machine_holds_two_short_chunks_more_than_it_has_slots(rig: Rig) -> None:
    held = await holding(rig)
    assert len(held.ahead) == AHEAD
    assert [one.frames for one in held.ahead] == [(6,), (7,)]
    await planned(rig)
    assert len(held.machine.assigned) == SHORT_IN_A_ROW + 1 + AHEAD
    reasons = await told(rig, held.task_id)
    assert "1 of its parts is being rendered on " in reasons
    assert "2 more wait there for a slot." in reasons
    await finished(held)


@pytest.mark.parametrize(
    ("protocol", "allowed"), [(PROTOCOL - 1, 1), (PROTOCOL, 2)], ids=["of the version before", "with slots of its own"]
)
async def test_machine_that_would_not_keep_the_rule_holds_nothing(rig: Rig, protocol: int, allowed: int) -> None:
    """One that queues by more slots than it may have would run them all at once."""
    slots, held = (1, 1) if allowed == 1 else (3, 2)
    machine_id = await rig.add_machine(slots=allowed)
    machine = Machine(rig, machine_id, works=False, slots=slots, protocol=protocol)
    await machine.dial()
    task_id = await rig.submit("1-12")
    for done in range(SHORT_IN_A_ROW):
        await machine.render(list(await machine.given(done + held))[done].attempt)
    await machine.all_acked()
    await machine.given(SHORT_IN_A_ROW + held)
    await planned(rig)
    assert rig.farm.memory.short == {task_id}
    assert len(machine.assigned) == SHORT_IN_A_ROW + held


async def test_chunks_that_take_a_second_or_fail_are_not_short(rig: Rig) -> None:
    held = await holding(rig)
    memory = rig.farm.memory
    memory.took(held.task_id, 1.0)
    assert not memory.short
    for _ in range(SHORT_IN_A_ROW):
        memory.took(held.task_id, 0.99)
    assert memory.short == {held.task_id}
    await held.machine.exit(held.rendered.attempt, "failed", failure="crash")
    await held.machine.all_acked()
    assert not memory.short


async def test_what_is_held_ahead_goes_back_when_a_higher_class_waits(rig: Rig) -> None:
    held = await holding(rig)
    same = await rig.submit("1")
    await planned(rig)
    assert not held.machine.canceled
    urgent = await rig.submit("1", priority=90)
    await held.taken_back("something of a higher class waits")
    assert held.is_rendered
    await held.machine.render(held.rendered.attempt)
    following = await held.machine.given(SHORT_IN_A_ROW + 2 + AHEAD)
    assert following[SHORT_IN_A_ROW + 1 + AHEAD].task == urgent
    await finished(held)
    assert (await rig.ended(same)).is_success == 1


async def test_higher_class_that_may_not_start_takes_nothing_back(rig: Rig) -> None:
    other = await joined(rig, works=False)
    limited = await rig.submit("1-2", priority=90, running_limit=1)
    await other.given(1)
    held = await holding(rig)
    await planned(rig)
    assert await told(rig, limited)
    assert not held.machine.canceled


async def test_paused_task_begins_nothing_that_waits_on_a_machine(rig: Rig) -> None:
    held = await holding(rig)
    await rig.control.pause(held.task_id, user_id=rig.user_id)
    await held.taken_back("its task starts nothing now")
    assert held.is_rendered
    await rig.control.resume(held.task_id, user_id=rig.user_id)
    await finished(held)


async def test_canceled_task_is_over_on_its_machine_too(rig: Rig) -> None:
    held = await holding(rig)
    await rig.control.cancel(held.task_id, user_id=rig.user_id)
    await until(lambda: len(held.machine.canceled) == 1 + AHEAD, "cancel")
    await rig.assert_sound()


async def test_draining_machine_gives_back_what_waits_on_it(rig: Rig) -> None:
    held = await holding(rig)
    await rig.database.write(lambda c: change_machine(c, held.machine.machine_id, {"wish": "draining"}))
    await rig.dispatcher.refresh()
    await held.taken_back("its machine takes no work now")
    assert held.is_rendered


async def test_what_waits_for_too_long_goes_to_another_machine(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    held = await holding(rig)
    monkeypatch.setattr(work_ahead, "LONGEST_S", 0.3)
    await rig.submit("1")  # wakes the planner
    await held.taken_back("its machine had no slot for it within 0.3 s")
    assert held.is_rendered
    assert not rig.farm.memory.short
    other = await joined(rig)
    await until(lambda: len(other.assigned) >= 3, "work of the other machine")


async def test_what_has_begun_is_not_taken_back(rig: Rig) -> None:
    held = await holding(rig)
    begun = rig.farm.memory.attempts[held.ahead[0].attempt]
    await held.machine.start(begun.attempt_id)
    await held.machine.all_acked()
    begun.running = False  # as if the report had come in between
    await rig.farm.reports.take_back([(begun, "it is not needed here")])
    assert held.machine.canceled == []
    assert await held.outcomes() == [(None, ""), (None, "")]


async def test_dead_machine_costs_what_waited_on_it_no_try(database: Database, tmp_path: Any) -> None:
    async with opened_rig(database, tmp_path, silence_s=1.0) as rig:
        held = await holding(rig)
        held.machine.mute = True
        await held.machine.hang_up()
        honest = await joined(rig)
        assert (await rig.ended(held.task_id)).is_success == 1
        assert await held.outcomes(ahead=False) == [("lost", "")]
        assert await held.outcomes() == [("lost", "not_begun")] * AHEAD
        assert sorted(chunk.tries for chunk in await rig.chunks(held.task_id)) == [0] * 11 + [1]
        assert len(honest.assigned) == 12 - SHORT_IN_A_ROW
        await rig.assert_sound()


async def test_what_waits_on_a_machine_is_kept_when_renderapi_restarts(rig: Rig) -> None:
    held = await holding(rig)
    await rig.restart()
    held.machine.held = tuple(HeldAttempt(one.attempt, one.token, running=True) for one in (held.rendered, *held.ahead))
    await held.machine.dial()
    assert held.machine.welcome is not None
    assert set(held.machine.welcome.keep) == {held.rendered.attempt, *(one.attempt for one in held.ahead)}
    await planned(rig)
    assert len(held.machine.assigned) == SHORT_IN_A_ROW + 1 + AHEAD
    assert not held.machine.canceled
    await finished(held)
