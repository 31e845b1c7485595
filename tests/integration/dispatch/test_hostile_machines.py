"""A machine of the farm that lies: what it says has no effect beyond its own attempts (R14 Authority first)."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from renderonline.database.door import Database
from renderonline.database.schema import machines
from renderonline.protocol.link import Assign, Exited, HeldAttempt, Log, Progress, Result, Started
from tests.support.dispatching import Machine, Rig, begun, joined, opened_rig, until
from tests.support.existing_node import ExistingNode

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)


def begin_picture(assign: Assign) -> None:
    """What an engine has written so far."""
    Path(assign.directory, "half.png").write_bytes(b"half a picture")


def is_there(assign: Assign) -> bool:
    return Path(assign.directory, "half.png").exists()


async def heard_out(rig: Rig, thief: Machine) -> None:
    """Wait until everything that the machine sent was read and applied."""
    await thief.send(Started(thief.seq + 1, 1, "none", 1, 1))
    thief.seq += 1
    await thief.all_acked()


@pytest.mark.parametrize("token", ["guessed", ""])
async def test_reports_of_foreign_attempts_end_and_delete_nothing(rig: Rig, token: str) -> None:
    victim, task_id, assign = await begun(rig)
    begin_picture(assign)
    thief = await joined(rig, works=False)
    with capture_logs() as logs:
        for number in (assign.attempt, assign.attempt + 1, 1):
            await thief.send(Exited(thief.seq + 1, number, token, 1, "failed", 1, "scene"))
            await thief.send(Result(thief.seq + 2, number, token, 1, "frame_0001.png", 1, "0" * 64, 0))
            thief.seq += 2
        await thief.send(Progress(assign.attempt, 0.9))
        await heard_out(rig, thief)
        await rig.farm.background.settled()
    assert is_there(assign)
    assert rig.farm.memory.attempts[assign.attempt].progress is None
    (told,) = [entry for entry in logs if entry["log_level"] == "warning"]  # once, however often it was tried
    seen = rig.farm.machines.get(thief.machine_id)
    assert seen is not None
    assert (told["name"], told["machine_id"]) == (seen.name, thief.machine_id)
    await victim.render(assign.attempt)
    assert (await rig.ended(task_id)).is_success == 1
    await until(lambda: not rig.left_attempts(), "end of the attempt's directory")


async def test_machine_without_the_right_token_does_not_free_the_slot(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    await machine.send(Exited(machine.seq + 1, assign.attempt, "guessed", 1, "failed", 1))
    machine.seq += 1
    await machine.all_acked()
    seen = rig.farm.machines.get(machine.machine_id)
    assert seen is not None
    assert list(seen.occupied) == [assign.attempt]
    assert rig.left_attempts() == [str(assign.attempt)]
    await rig.control.cancel(task_id, user_id=rig.user_id)
    await machine.exit(assign.attempt, "canceled")
    await until(lambda: not seen.occupied and not rig.left_attempts(), "end of the attempt")


async def test_v1_machine_that_names_a_foreign_attempt_deletes_nothing(rig: Rig, tmp_path: Path) -> None:
    _, _, assign = await begun(rig)
    begin_picture(assign)
    program = tmp_path / "renderer"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    with ExistingNode({"fake": str(program)}) as node:
        await rig.add_v1(node.port)
        await rig.submit()
        await until(lambda: node.starts, "start")
        node.faults.other_task = assign.attempt
        await until(lambda: any(one.body.get("taskid") == assign.attempt for one in node.stops), "stop")
        await rig.farm.background.settled()
        assert is_there(assign)


async def test_address_that_is_more_than_a_host_is_never_asked(rig: Rig) -> None:
    """An operator can't add one any more, but a row may say anything."""
    with ExistingNode({}) as inner, ExistingNode({}) as honest:
        row = {"machine_id": 7, "ip_address": "user@127.0.0.1", "port": inner.port}
        await rig.database.write(lambda c: c.execute(machines.insert(), row))
        await rig.add_v1(honest.port)
        await until(lambda: honest.requests, "status")
        await rig.dispatcher.refresh()
        await until(lambda: len(honest.requests) > 1, "another status")
        assert inner.requests == []


async def test_machine_writes_logs_of_its_own_attempts_only(rig: Rig) -> None:
    victim, task_id, assign = await begun(rig)
    kept = rig.farm.logs
    await victim.send(Log(assign.attempt, 0, "the truth\n"))
    await victim.render(assign.attempt)
    await rig.ended(task_id)
    await until(lambda: kept.size(assign.attempt) == 10, "log")
    await victim.hang_up()
    thief = Machine(rig, await rig.add_machine(), works=False)
    numbers = (assign.attempt, assign.attempt + 100, 1)
    thief.held = tuple(HeldAttempt(number, "guessed", running=False) for number in numbers)
    await thief.dial()
    await rig.submit("1")
    (own,) = await thief.given()
    for number in (*numbers, own.attempt):
        await thief.send(Log(number, kept.size(number), "a lie\n"))
    await until(lambda: kept.size(own.attempt), "log of its own attempt")
    assert kept.read(assign.attempt).data == b"the truth\n"
    assert sorted(kept.on_disk()) == [assign.attempt, own.attempt]


async def test_log_of_an_ended_attempt_goes_on_for_the_machine_that_had_it(rig: Rig) -> None:
    machine, task_id, assign = await begun(rig)
    kept = rig.farm.logs
    await machine.render(assign.attempt)
    await rig.ended(task_id)
    for token, size in (("guessed", 0), (assign.token, 5)):
        await machine.hang_up()
        machine.held = (HeldAttempt(assign.attempt, token, running=False),)
        await machine.dial()
        await machine.send(Log(assign.attempt, 0, "late\n"))
        await heard_out(rig, machine)
        await until(lambda size=size: kept.size(assign.attempt) == size, "log")


async def test_logs_leave_the_reserve_of_the_disk_alone(database: Database, tmp_path: Path) -> None:
    async with opened_rig(database, tmp_path, reserve_mib=2**40) as rig:
        machine, task_id, assign = await begun(rig)
        with capture_logs() as logs:
            for offset in range(0, 5000, 5):
                await machine.send(Log(assign.attempt, offset, "line\n"))
            await machine.render(assign.attempt)
            assert (await rig.ended(task_id)).is_success == 1
            await until(lambda: [one for one in logs if one["log_level"] == "warning"], "warning")
        assert len([one for one in logs if one["log_level"] == "warning"]) == 1
        assert rig.farm.logs.on_disk() == ()
