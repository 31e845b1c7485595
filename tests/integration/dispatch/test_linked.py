"""The way of a task over linked machines: assigned, started, landed, settled."""

import asyncio
import io
import zipfile

import pytest

from tests.support.dispatching import Rig, joined, until

pytestmark = pytest.mark.both_databases


async def test_submitted_task_is_rendered_and_lands_in_its_directory(rig: Rig) -> None:
    await joined(rig)
    task_id = await rig.submit("1-4")
    row = await rig.ended(task_id)
    assert (row.is_success, row.is_running, row.frames_done, row.chunks_succeeded) == (1, 0, 4, 4)
    assert row.start_time is not None
    assert row.end_time is not None
    assert not await rig.in_queue(task_id)
    folder = (await rig.scene_of(task_id)).parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "a.scene",
        *(f"frame_000{frame}.png" for frame in range(1, 5)),
    ]
    await until(lambda: not rig.left_attempts(), "end of the attempts' directories")
    await rig.assert_sound()


async def test_results_lie_beside_the_folders_that_came_with_the_scene(rig: Rig) -> None:
    await joined(rig)
    root = rig.files / str(rig.user_id) / "638500000000000000"
    scene = root / "shots" / "a.scene"
    await asyncio.to_thread(scene.parent.mkdir, parents=True)
    scene.write_text("scene")
    task_id = await rig.submit("1-2", file_name="shots/a.scene", file_path=str(scene))
    assert (await rig.ended(task_id)).is_success == 1
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        "frame_0001.png",
        "frame_0002.png",
        "shots/a.scene",
    ]
    content = await rig.farm.task_views().archive(task_id, rig.user_id, "a.zip")
    with zipfile.ZipFile(io.BytesIO(b"".join(content.pieces(0, content.size)))) as archive:
        assert sorted(archive.namelist()) == ["frame_0001.png", "frame_0002.png", "shots/a.scene"]
        assert archive.testzip() is None
    await rig.assert_sound()


async def test_task_without_named_outputs_lands_whatever_it_reports(rig: Rig) -> None:
    machine = await joined(rig, works=False)
    await rig.database.write(lambda c: c.exec_driver_sql("update engines set definition = null"))
    task_id = await rig.submit(values='{"start_frame": "1", "end_frame": "1"}')
    (assign,) = await machine.given()
    await machine.start(assign.attempt)
    await machine.write(assign.attempt, "sub/deep.exr")
    await machine.send(machine.result(assign.attempt, "../../evil.png", b"evil"))
    await machine.write(assign.attempt, "log.txt", frame=7)
    await machine.exit(assign.attempt)
    row = await rig.ended(task_id)
    assert row.is_success == 1
    assert await rig.landed(task_id) == ["log.txt", "sub/deep.exr"]
    assert ((await rig.scene_of(task_id)).parent / "sub" / "deep.exr").exists()
    await rig.assert_sound()


async def test_machines_share_the_chunks(rig: Rig) -> None:
    machines = [await joined(rig) for _ in range(3)]
    task_id = await rig.submit("1-30")
    await rig.ended(task_id)
    assert all(len(machine.assigned) >= 3 for machine in machines)
    await rig.assert_sound()
