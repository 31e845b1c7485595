"""What a stop leaves half-way is settled at the next start (R6 Landing), and a broken database is survived
(R3.2 Repeatable operations)."""

import asyncio
import hashlib
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from renderonline.farm.errors import NotAvailable
from renderonline.farm.tasks import Landing
from renderonline.protocol.link import HeldAttempt
from renderonline.renderapi import landings
from renderonline.storage import landing
from tests.support.dispatching import DEADLINE_S, Rig, begun, joined, until

pytestmark = pytest.mark.both_databases

DATA = b"the frame"


async def half_landed(rig: Rig) -> tuple[int, int, Path]:
    """A task whose one result was stopped after step (a): (task, attempt, source)."""
    _, task_id, assign = await begun(rig)
    source = Path(assign.directory, "frame_0001.png")
    await asyncio.to_thread(source.write_bytes, DATA)
    digest = hashlib.blake2b(DATA, digest_size=32).hexdigest()
    row = {
        "task": task_id,
        "hash": hashlib.sha256(b"frame_0001.png").hexdigest(),
        "chunk": assign.chunk,
        "attempt": assign.attempt,
        "digest": digest,
        "size": len(DATA),
    }
    insert = text(
        "insert into results (task_id, name_hash, name, chunk_id, attempt_id, state, frame, size, digest, crc32)"
        " values (:task, :hash, 'frame_0001.png', :chunk, :attempt, 'landing', 1, :size, :digest, 1)"
    )
    await rig.database.write(lambda c: c.execute(insert, row))
    return task_id, assign.attempt, source


async def test_landing_that_was_stopped_before_the_link_is_finished(rig: Rig) -> None:
    task_id, _, _ = await half_landed(rig)
    await rig.restart()
    assert await rig.landed(task_id) == ["frame_0001.png"]
    assert ((await rig.scene_of(task_id)).parent / "frame_0001.png").read_bytes() == DATA
    assert (await rig.task(task_id)).frames_done == 1


async def test_landing_whose_last_step_was_given_up_is_finished_without_a_restart(rig: Rig) -> None:
    """A disk that was full when step (c) was to be written must not keep the frame's name for ever."""
    task_id, _, _ = await half_landed(rig)
    rig.farm.background.gave_up()
    await until(lambda: rig.landed(task_id), "landed frame")
    assert (await rig.task(task_id)).frames_done == 1


async def test_result_that_is_landing_is_not_settled_beside_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a report is between (a) and (c), its row and its files are its own: memory may be rebuilt just then."""
    steps: list[str] = []
    placing, go_on = threading.Event(), threading.Event()
    place, settle = landing.place, landings.settle_interrupted

    def slow(landings: Sequence[Landing], closed: Collection[int]) -> Sequence[landing.Placed]:
        placing.set()
        assert go_on.wait(DEADLINE_S)
        steps.append("placed")
        return place(landings, closed)

    async def noted(*arguments: Any) -> None:
        steps.append("settled")
        await settle(*arguments)

    monkeypatch.setattr("renderonline.renderapi.landings.place", slow)
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await machine.given()
    monkeypatch.setattr("renderonline.renderapi.reports.settle_interrupted", noted)
    await machine.render(assign.attempt)
    await until(placing.is_set, "result that lands")
    rig.farm.background.gave_up()
    await until(lambda: not rig.farm.background.in_doubt.is_set(), "begin of the rebuilding")
    go_on.set()
    assert (await rig.ended(task_id)).is_success == 1
    await until(lambda: rig.farm.background.ready, "rebuilt memory")
    assert steps == ["placed", "settled"]
    await rig.assert_sound()


async def test_landing_that_was_stopped_after_the_link_is_finished(rig: Rig) -> None:
    task_id, _, source = await half_landed(rig)
    frame = source.rename((await rig.scene_of(task_id)).parent / "frame_0001.png")
    await rig.restart()
    assert await rig.landed(task_id) == ["frame_0001.png"]
    assert frame.exists()


async def test_landing_without_any_file_is_missing_again(rig: Rig) -> None:
    task_id, _, source = await half_landed(rig)
    source.unlink()
    await rig.restart()
    count = text("select count(*) from results")
    assert await rig.database.read(lambda c: c.scalar(count)) == 0
    assert (await rig.task(task_id)).frames_done == 0


async def test_old_directories_are_swept_and_live_ones_kept(rig: Rig) -> None:
    _, _, assign = await begun(rig)
    folder = Path(assign.directory).parent
    foreign = 2**45 if abs(assign.attempt - 2**45) > 2**32 else 2**44
    for name in (str(assign.attempt - 1), str(foreign), "notes"):
        (folder / name).mkdir()
    await rig.restart()
    assert sorted(path.name for path in folder.iterdir()) == sorted([str(assign.attempt), str(foreign), "notes"])


async def test_directory_of_a_lost_attempt_goes_when_its_machine_is_back_without_it(rig: Rig) -> None:
    machine, _, assign = await begun(rig)
    await rig.database.write(lambda c: c.execute(text("update attempts set state = 'ended', outcome = 'lost'")))
    await rig.database.write(lambda c: c.execute(text("update chunks set state = 'canceled'")))
    await rig.database.write(
        lambda c: c.execute(text("update tasks set chunks_running = 0, chunks_canceled = 1, canceled = 1"))
    )
    await rig.database.write(lambda c: c.execute(text("delete from queue")))
    await machine.hang_up()
    await rig.restart()
    assert rig.left_attempts() == [str(assign.attempt)]
    machine.held = (HeldAttempt(assign.attempt, assign.token, running=False),)
    await machine.dial()
    assert rig.left_attempts() == [str(assign.attempt)]
    await machine.hang_up()
    machine.held = ()
    await machine.dial()
    await until(lambda: not rig.left_attempts(), "end of the directory")


async def test_full_disk_is_given_a_moment(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = landing._link

    def link(*values: Any, **named: Any) -> landing.Placed:
        calls.append(values)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return real(*values, **named)

    monkeypatch.setattr(landing, "_link", link)
    await joined(rig)
    task_id = await rig.submit("1")
    assert (await rig.ended(task_id)).is_success == 1
    assert len(calls) == 2
    await rig.assert_sound()


async def test_assignment_that_could_not_be_committed_is_made_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = []

    def assign(*_: object, **__: object) -> None:
        failures.append(1)
        if len(failures) == 1:
            monkeypatch.undo()
        raise NotAvailable("The database does not answer.")

    monkeypatch.setattr("renderonline.renderapi.planner.assign", assign)
    await joined(rig)
    task_id = await rig.submit("1-3")
    assert (await rig.ended(task_id)).is_success == 1
    assert failures
    await rig.assert_sound()


async def test_reports_that_could_not_be_committed_come_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = await joined(rig, works=False)
    task_id = await rig.submit("1")
    (assign,) = await machine.given()

    def apply_steps(*_: object, **__: object) -> None:
        raise NotAvailable("The database does not answer.")

    monkeypatch.setattr("renderonline.renderapi.report_writing.apply_steps", apply_steps)
    await machine.start(assign.attempt)
    await machine.closed.wait()
    monkeypatch.undo()
    machine.held = (HeldAttempt(assign.attempt, assign.token, running=True),)
    machine.seq = 0
    await until(lambda: rig.farm.memory.attempts.get(assign.attempt), "rebuilt memory")
    await machine.dial()
    await machine.render(assign.attempt)
    row = await rig.ended(task_id)
    assert (row.is_success, len(await rig.attempts(task_id))) == (1, 1)
    await rig.assert_sound()
