"""A power cut takes what SQLite has committed and the disk does not have: at most assignments that were sent early
(R3.1 Group commit)."""

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from renderonline.database.door import Database
from renderonline.database.schema import results
from renderonline.protocol.link import HeldAttempt
from tests.support.dispatching import DEADLINE_S, Rig, joined


def _copy(database: Database, to: Path) -> None:
    with closing(sqlite3.connect(database.place.database)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


async def test_assignment_whose_task_a_power_cut_took_ends_and_leaves_nothing(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, before = await joined(rig, works=False), rig.database
    on_disk = tmp_path / "on_disk.sqlite"
    await asyncio.to_thread(_copy, rig.database, on_disk)
    has_it = threading.Event()
    monkeypatch.setattr("renderonline.database.door.os.fdatasync", lambda _file: has_it.wait(DEADLINE_S))
    submitting = asyncio.ensure_future(rig.submit("1"))
    (lost,) = await machine.given()
    assert not submitting.done()
    assert not rig.events.of("task")  # nobody but the machine hears of it
    has_it.set()
    await submitting
    await machine.hang_up()

    async with Database.open(f"sqlite:///{on_disk}") as restored:
        rig.database = restored
        await rig.restart()
        machine.held = (HeldAttempt(lost.attempt, lost.token, running=True),)
        await machine.dial()
        assert machine.welcome is not None
        assert lost.attempt not in machine.welcome.keep
        await machine.render(lost.attempt)
        task_id = await rig.submit("1")
        lost_one, again = await machine.given(2)
        assert lost_one.attempt == lost.attempt
        assert again.attempt != lost.attempt
        await machine.all_acked()
        assert await rig.rows(results) == []
        await machine.render(again.attempt)
        assert (await rig.ended(task_id)).is_success == 1
        assert [row.attempt_id for row in await rig.attempts(task_id)] == [again.attempt]
        await rig.assert_sound()
        await machine.hang_up()
        await rig.stop()
    rig.database = before
    await rig.start()
