"""Links that break, machines that vanish or come back, and reports that come twice or late
(R5 Attempts and reports)."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from renderonline.database.door import Database
from renderonline.protocol.link import (
    MOST_IN_FRAME,
    PROTOCOL,
    Exited,
    Heartbeat,
    HeldAttempt,
    Log,
    Progress,
    Started,
    encode,
)
from renderonline.renderapi import greeting, machine_links
from renderonline.storage.attempt_logs import AttemptLogs
from tests.support import dispatching
from tests.support.dispatching import Machine, Rig, begun, joined, opened_rig, until


@pytest.fixture
async def quick(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    """A rig that takes a machine for gone after a second."""
    async with opened_rig(database, tmp_path, silence_s=1.0, return_s=2.0) as opened:
        yield opened


@pytest.mark.both_databases
async def test_lost_machine_requeues_its_chunk(quick: Rig) -> None:
    gone = await joined(quick, works=False)
    task_id = await quick.submit("1")
    (assign,) = await gone.given()
    await gone.start(assign.attempt)
    await gone.all_acked()
    await gone.hang_up()
    other = await joined(quick)
    assert (await quick.ended(task_id)).is_success == 1
    assert len(other.assigned) == 1
    outcomes = [one.outcome for one in await quick.attempts(task_id)]
    assert outcomes == ["lost", "succeeded"]
    await quick.assert_sound()


async def test_open_link_that_says_nothing_is_closed_and_its_work_lost(quick: Rig) -> None:
    mute = await joined(quick, works=False, mute=True)
    task_id = await quick.submit("1")
    await mute.given()
    await asyncio.wait_for(mute.closed.wait(), 10)
    await until(lambda: _lost(quick, task_id), "lost attempt")


async def _lost(rig: Rig, task_id: int) -> bool:
    return any(one.outcome == "lost" for one in await rig.attempts(task_id))


@pytest.mark.both_databases
async def test_late_result_of_a_lost_attempt_lands_and_completes_the_chunk(quick: Rig) -> None:
    late = await joined(quick, works=False)
    task_id = await quick.submit("1")
    (assign,) = await late.given()
    await late.start(assign.attempt)
    await late.all_acked()
    await late.hang_up()
    slow = await joined(quick, works=False)
    (again,) = await slow.given()
    await slow.start(again.attempt)
    await slow.all_acked()
    late.held = (HeldAttempt(assign.attempt, assign.token, running=False),)
    await late.dial()
    assert late.welcome is not None
    assert late.welcome.keep == ()
    await late.write(assign.attempt, "frame_0001.png")
    await late.exit(assign.attempt, warnings=["a.png is not there"])
    row = await quick.ended(task_id)
    assert (row.is_success, row.frames_done) == (1, 1)
    await until(lambda: again.attempt in slow.canceled, "cancel of the attempt without work")
    first, second = await quick.attempts(task_id)
    assert (first.outcome, second.outcome) == ("lost", "canceled")
    assert (await quick.chunks(task_id))[0].tries == 1
    await late.all_acked()
    assert (await quick.task(task_id)).warnings == '["a.png is not there"]'
    await quick.assert_sound()


async def test_late_reports_of_a_canceled_task_are_dropped_and_acknowledged(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    await rig.control.cancel(task_id, user_id=rig.user_id)
    await until(lambda: assign.attempt in machine.canceled, "cancel")
    await machine.write(assign.attempt, "frame_0001.png")
    await machine.exit(assign.attempt)
    await machine.all_acked()
    row = await rig.task(task_id)
    assert (row.canceled, row.chunks_canceled, row.chunks_succeeded) == (1, 1, 0)
    assert await rig.landed(task_id) == []
    assert rig.farm.reports.dropped >= 1
    await until(lambda: not rig.left_attempts(), "end of the attempt's directory")
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_reports_that_come_twice_are_applied_once(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    await machine.write(assign.attempt, "frame_0001.png")
    await machine.exit(assign.attempt)
    await machine.all_acked()
    row = await rig.ended(task_id)
    again = machine.result(assign.attempt, "frame_0001.png", b"other bytes", seq=2)
    await machine.send(again)
    machine.seq = 1
    await machine.exit(assign.attempt, "failed")
    await machine.hang_up()
    machine.seq, machine.acked = 0, 0
    await machine.dial()
    assert machine.welcome is not None
    assert machine.welcome.last_seq == 3
    assert (await rig.task(task_id)) == row
    assert len(await rig.landed(task_id)) == 1


async def test_new_instance_begins_its_sequence_anew(rig: Rig) -> None:
    machine = await joined(rig)
    await rig.ended(await rig.submit("1"))
    await machine.hang_up()
    machine.instance, machine.seq, machine.acked = "", 0, 0
    await machine.dial()
    assert machine.welcome is not None
    assert machine.welcome.last_seq == 0
    task_id = await rig.submit("1")
    assert (await rig.ended(task_id)).is_success == 1


async def test_assignment_that_never_arrived_is_sent_again(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await machine.given()
    await machine.hang_up()
    machine.assigned.clear()
    machine.works = True
    await machine.dial()
    (again,) = await machine.given()
    assert again == assign
    assert (await rig.ended(task_id)).is_success == 1
    assert len(await rig.attempts(task_id)) == 1


async def test_running_attempt_that_is_not_named_is_lost(rig: Rig) -> None:
    machine, task_id, _ = await begun(rig)
    await machine.hang_up()
    machine.instance, machine.seq = "", 0
    machine.works = True
    await machine.dial()
    assert (await rig.ended(task_id)).is_success == 1
    assert [one.outcome for one in await rig.attempts(task_id)] == ["lost", "succeeded"]


async def test_held_attempt_is_kept_and_its_log_goes_on(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    await machine.send(Log(assign.attempt, 0, "first line\n"))
    await until(lambda: rig.farm.logs.size(assign.attempt) == 11, "log")
    await machine.hang_up()
    machine.held = (HeldAttempt(assign.attempt, assign.token, running=True), HeldAttempt(5, "x", running=True))
    await machine.dial()
    assert machine.welcome is not None
    assert machine.welcome.keep == (assign.attempt,)
    assert machine.welcome.log_offsets == {str(assign.attempt): 11}
    await machine.send(Log(assign.attempt, 11, "second line\n"))
    await machine.write(assign.attempt, "frame_0001.png")
    await machine.exit(assign.attempt)
    assert (await rig.ended(task_id)).is_success == 1
    part = await until(lambda: _whole(rig, assign.attempt), "whole log")
    assert part == b"first line\nsecond line\n"


def _whole(rig: Rig, attempt: int) -> bytes | None:
    part = rig.farm.logs.read(attempt)
    return part.data if part.size == 23 else None


async def test_attempt_that_is_named_with_a_wrong_token_is_not_kept(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    await rig.submit("1")
    (assign,) = await machine.given()
    await machine.hang_up()
    machine.held = (HeldAttempt(assign.attempt, "guessed", running=True),)
    await machine.dial()
    assert machine.welcome is not None
    assert machine.welcome.keep == ()


async def test_report_with_a_wrong_token_changes_nothing(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await machine.given()
    machine.seq += 1
    await machine.send(Started(1, assign.attempt, "guessed", at_us=1, pid=1))
    await machine.all_acked()
    assert (await rig.attempts(task_id))[0].state == "assigned"


async def test_machine_cannot_report_for_an_attempt_of_another(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await machine.given()
    thief = await joined(rig, works=False)
    thief.assigned[assign.attempt] = assign
    await thief.start(assign.attempt)
    await thief.write(assign.attempt, "frame_0001.png")
    await thief.exit(assign.attempt, "failed", failure="scene")
    await thief.all_acked()
    assert (await rig.attempts(task_id))[0].state == "assigned"
    assert await rig.landed(task_id) == []


async def test_earlier_link_of_the_same_machine_is_closed(rig: Rig) -> None:
    machine = await joined(rig)
    second = Machine(rig, machine.machine_id)
    await second.dial()
    assert second.welcome is not None
    await asyncio.wait_for(machine.closed.wait(), 5)
    assert (await rig.ended(await rig.submit("1"))).is_success == 1
    assert not machine.assigned


async def test_machine_whose_earlier_link_does_not_end_is_told_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "_CLOSING_S", 0.05)
    may_end, finish = asyncio.Event(), machine_links.LinkedMachine._finish

    async def late(link: machine_links.LinkedMachine) -> None:
        await may_end.wait()
        await finish(link)

    monkeypatch.setattr(machine_links.LinkedMachine, "_finish", late)
    machine = await joined(rig)
    machine = Machine(rig, machine.machine_id, instance=machine.instance)
    await machine.dial()
    assert machine.refused is not None
    assert (machine.refused.code, machine.refused.final) == ("not_available", False)
    assert "earlier link" in machine.refused.message
    may_end.set()


async def test_log_is_written_by_one_link_at_a_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, _, assign = await begun(rig)
    begins, may_end, writing = threading.Event(), threading.Event(), threading.Lock()
    append, together = AttemptLogs.append, []

    def slow(logs: AttemptLogs, attempt_id: int, offset: int, data: bytes) -> int:
        together.append(not writing.acquire(blocking=False))
        begins.set()
        may_end.wait(10)
        end = append(logs, attempt_id, offset, data)
        writing.release()
        return end

    monkeypatch.setattr(AttemptLogs, "append", slow)
    await machine.send(Log(assign.attempt, 0, "first line\n"))
    await asyncio.to_thread(begins.wait, 10)
    await machine.hang_up()
    machine.held = (HeldAttempt(assign.attempt, assign.token, running=True),)
    dialing = asyncio.create_task(machine.dial())
    await asyncio.wait({dialing}, timeout=0.5)
    assert not dialing.done()
    may_end.set()
    await dialing
    assert machine.welcome is not None
    assert machine.welcome.log_offsets == {str(assign.attempt): 11}
    assert together == [False]


@pytest.mark.both_databases
async def test_two_programs_with_one_secret_disable_the_machine(rig: Rig) -> None:
    first = await joined(rig)
    second = Machine(rig, first.machine_id)
    await second.dial()
    await asyncio.wait_for(first.closed.wait(), 5)
    await first.dial()
    assert first.refused is not None
    assert first.refused.code == "disabled"
    assert "Two programs" in first.refused.message
    known = rig.farm.machines.get(first.machine_id)
    assert known is not None
    view = known.view()
    assert view["status"] == "disabled"
    assert "Two programs" in view["reason"]


async def test_restarted_program_is_not_taken_for_a_second_one(rig: Rig) -> None:
    machine = await joined(rig)
    for _ in range(4):
        await machine.hang_up()
        machine.instance = ""
        await machine.dial()
        assert machine.welcome is not None


@pytest.mark.parametrize(
    ("change", "code"),
    [({"secret": "wrong"}, "not_authenticated"), ({"machine_id": 4711}, "not_authenticated"),
     ({"protocol": 99}, "protocol"), ({"protocol": 0}, "protocol")],
)  # fmt: skip
async def test_machine_that_may_not_link_is_told_why(rig: Rig, change: dict[str, object], code: str) -> None:
    machine = Machine(rig, await rig.add_machine())
    for name, value in change.items():
        setattr(machine, name, value)
    await machine.dial()
    assert machine.refused is not None
    assert (machine.refused.code, machine.refused.final) == (code, True)


async def test_machine_of_the_version_before_works_and_an_older_one_is_told_what_to_install(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R5.6 Protocol versions: N and N-1."""
    monkeypatch.setattr(greeting, "PROTOCOL", PROTOCOL + 1)
    before = await joined(rig)
    assert before.welcome is not None
    assert before.welcome.protocol == PROTOCOL
    assert (await rig.ended(await rig.submit("1-3"))).is_success == 1
    monkeypatch.setattr(greeting, "PROTOCOL", PROTOCOL + 2)
    older = Machine(rig, await rig.add_machine())
    await older.dial()
    assert older.refused is not None
    assert (older.refused.code, older.refused.final) == ("protocol", True)
    assert "Update this machine's RenderOnline: pip install --upgrade renderonline" in older.refused.message


async def test_welcome_is_a_frame_of_its_own_though_assignments_wait_for_the_machine(rig: Rig) -> None:
    machine = await joined(rig, slots=2, works=False)
    await rig.submit("1-2", chunk_size=1)
    await until(lambda: len(machine.assigned) == 2, "assignments")
    assert machine.link is not None
    await machine.hang_up()
    machine.assigned.clear()
    await machine.dial()  # it holds nothing: both are sent again, right behind the welcome
    assert machine.welcome is not None
    await until(lambda: len(machine.assigned) == 2, "assignments, once more")


@pytest.mark.parametrize("text", ["{", "[]", '{"type": "hello"}', '{"type": "ack", "seq": 1}', "x" * 2_000_000])
async def test_first_message_that_is_no_hello_ends_the_link(rig: Rig, text: str) -> None:
    async with connect(rig.url, compression=None) as link:
        await link.send(text)
        answers = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                answers.append(json.loads(await link.recv()))
    assert all(answer["type"] == "refused" for answer in answers)


@pytest.mark.parametrize(
    "text",
    ["nonsense", '{"type": "started"}', '{"type": "hello"}', "y" * 2_000_000, "[]", '[[{"type": "heartbeat"}]]',
     '[{"type": "heartbeat"},{"type": "started"}]', f"[{','.join([encode(Heartbeat())] * (MOST_IN_FRAME + 1))}]"],
)  # fmt: skip
async def test_machine_that_talks_nonsense_is_cut_off_and_may_come_back(rig: Rig, text: str) -> None:
    machine = await joined(rig)
    await machine.send(text)
    await asyncio.wait_for(machine.closed.wait(), 5)
    await machine.dial()
    assert machine.welcome is not None


@pytest.mark.parametrize("protocol", [PROTOCOL, PROTOCOL - 1])
async def test_what_is_sent_at_one_moment_travels_in_one_frame(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    """R5.6 Protocol versions: a machine of the version before gets single messages."""
    received: list[list[object]] = []
    decode_frame = dispatching.decode_frame

    def note(text: str, kind: object) -> list[object]:
        received.append(messages := decode_frame(text, kind))
        return messages

    monkeypatch.setattr(dispatching, "decode_frame", note)
    machine = await joined(rig, works=False, slots=8, protocol=protocol)
    await rig.submit("1-8")
    await machine.given(8)
    most = max(map(len, received))
    assert most == 1 if protocol < PROTOCOL else most > 1


async def test_acknowledgement_travels_with_the_next_assignment(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_links, "ACK_S", 600.0)
    machine = await joined(rig, works=False)
    await rig.submit("1-2")
    (first,) = await machine.given()
    await machine.render(first.attempt)
    await machine.given(2)
    assert machine.acked > 0


async def test_reports_of_one_frame_are_applied_together(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await machine.given()
    started = Started(1, assign.attempt, assign.token, 1, pid=1)
    ended = Exited(2, assign.attempt, assign.token, 2, "canceled", reason="no reason", failure="handed_back")
    await machine.send(f"[{encode(started)},{encode(Heartbeat())},{encode(ended)}]")
    await until(lambda: machine.acked == 2, "acknowledgement")
    assert "canceled" in [one.outcome for one in await rig.attempts(task_id)]


@pytest.mark.parametrize(
    "change",
    [{"instance": "i" * 65}, {"instance": "\u00e9"}, {"engines": ("e",) * 300}, {"hello": {"gpus": ("g" * 501,)}}],
)  # fmt: skip
async def test_hello_that_no_machine_needs_is_refused(rig: Rig, change: dict[str, object]) -> None:
    machine = Machine(rig, await rig.add_machine())
    for name, value in change.items():
        setattr(machine, name, value)
    await machine.dial()
    assert machine.refused is not None
    assert machine.refused.code == "invalid_hello"


@pytest.mark.both_databases
async def test_restart_finds_live_attempts_again(rig: Rig) -> None:
    machine = await joined(rig, works=False, slots=2)
    task_id = await rig.submit("1-3")
    running, assigned = await machine.given(2)
    await machine.start(running.attempt)
    await machine.all_acked()
    await rig.restart()
    machine.held = (HeldAttempt(running.attempt, running.token, running=True),)
    await machine.dial()
    assert machine.welcome is not None
    assert machine.welcome.keep == (running.attempt,)
    await until(lambda: machine.times_assigned.count(assigned.attempt) == 2, "assignment sent again")
    machine.works = True
    await machine.render(assigned.attempt)
    await machine.write(running.attempt, "frame_0001.png")
    await machine.exit(running.attempt)
    row = await rig.ended(task_id)
    assert (row.is_success, row.frames_done) == (1, 3)
    assert len(await rig.attempts(task_id)) == 3
    await rig.assert_sound()


@pytest.mark.both_databases
async def test_attempts_of_a_machine_that_does_not_come_back_are_lost_after_the_grace(quick: Rig) -> None:
    machine = await joined(quick, works=False)
    task_id = await quick.submit("1")
    await machine.given()
    await quick.restart()
    other = await joined(quick)
    await asyncio.sleep(0)
    assert not other.assigned
    assert (await quick.ended(task_id)).is_success == 1
    assert [one.outcome for one in await quick.attempts(task_id)] == ["lost", "succeeded"]


async def test_progress_is_kept_in_memory_and_told(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    await machine.send(Progress(assign.attempt, 7.5, frame=1, remaining_s=-3.0, message="x" * 9999))
    progress = await until(lambda: rig.farm.memory.attempts[assign.attempt].progress, "progress")
    assert (progress.fraction, progress.remaining_s, len(progress.message)) == (1.0, None, 500)
    (event,) = rig.events.of("progress")
    assert (event["task_id"], event["fraction"]) == (task_id, 1.0)


async def test_machine_that_cannot_write_is_given_nothing(rig: Rig) -> None:
    machine = await joined(rig, hello={"full": "the disk is full"})
    task_id = await rig.submit("1")
    reasons = await rig.explain(task_id, user_id=rig.user_id)
    assert any("the disk is full" in reason for reason in reasons)
    assert not machine.assigned


async def test_machine_that_stays_full_wakes_the_planner_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = await joined(rig)
    machine.mute = True
    (seen,) = rig.farm.machines
    woken: list[str] = []
    monkeypatch.setattr(rig.farm.background, "wake", lambda: woken.append(seen.full))
    for load in range(10, 13):
        await machine.send(Heartbeat(load=load, full="no room " * 99))
        await until(lambda load=load: seen.load.get("load") == load, "heartbeat")
    assert len(woken) == 1
    assert woken[0].startswith("no room")


async def test_events_tell_the_way_of_a_task(rig: Rig) -> None:
    machine = await joined(rig)
    task_id = await rig.submit("1-2")
    await rig.ended(task_id)
    await machine.all_acked()
    told = [event["status"] for event in rig.events.of("task") if event["task_id"] == task_id]
    assert told[0] == "running"
    assert told[-1] == "succeeded"
    assert {event["name"] for event in rig.events.of("result")} == {"frame_0001.png", "frame_0002.png"}
    await until(lambda: rig.events.of("machine")[-1]["status"] == "idle", "event of the idle machine")
