"""v1 machines beside linked ones: whole tasks, files that are landed for them, a cut task made whole (R7.4 Whole tasks,
R4.2 Chunk ranges)."""

import asyncio
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderonline.database.schema import results
from tests.support.dispatching import Rig, joined, until
from tests.support.existing_node import ExistingNode

RENDERER = """#!{python} -IS
import os, sys
words = sys.argv[1:]
def of(flag):
    return words[words.index(flag) + 1]
first, last, folder = int(of("-s")), int(of("-e")), of("-o")
gate = os.path.join(os.path.dirname(sys.argv[0]), "gate")
while os.path.exists(gate):
    pass
for frame in range(first, last + 1):
    with open(os.path.join(folder, "frame_%04d.png" % frame), "w") as file:
        file.write("picture %d" % frame)
sys.exit(int(os.path.exists(os.path.join(os.path.dirname(sys.argv[0]), "broken"))))
"""


@pytest.fixture
def renderer(tmp_path: Path) -> Path:
    """A program that writes its frames, as the engine of the rig is defined."""
    program = tmp_path / "bin" / "renderer"
    program.parent.mkdir()
    program.write_text(RENDERER.format(python=sys.executable))
    program.chmod(0o755)
    return program


@pytest.fixture
def node(renderer: Path) -> Iterator[ExistingNode]:
    with ExistingNode({"fake": str(renderer)}) as running:
        yield running


@pytest.mark.both_databases
async def test_files_that_a_v1_machine_wrote_are_landed(rig: Rig, node: ExistingNode) -> None:
    await rig.add_v1(node.port)
    task_id = await rig.submit("1-3", chunk_size=0)
    row = await rig.ended(task_id)
    assert (row.is_success, row.frames_done) == (1, 3)
    folder = (await rig.scene_of(task_id)).parent
    assert (folder / "frame_0002.png").read_text() == "picture 2"
    (attempt,) = await rig.attempts(task_id)
    assert node.task_id == attempt.attempt_id
    assert attempt.attempt_id >= 2**40
    await until(lambda: not rig.left_attempts(), "end of the attempt's directory")
    await rig.assert_sound()


async def test_cut_task_is_made_whole_for_a_v1_machine(rig: Rig, node: ExistingNode) -> None:
    await rig.add_v1(node.port)
    task_id = await rig.submit("1-6", chunk_size=2)
    row = await rig.ended(task_id)
    assert (row.is_success, row.frames_done, row.chunks_succeeded) == (1, 6, 1)
    (chunk,) = await rig.chunks(task_id)
    assert (chunk.first_frame, chunk.last_frame, chunk.place) == (1, 6, 0)
    await rig.assert_sound()


async def test_cut_task_is_left_to_linked_machines_that_have_the_engine(rig: Rig, node: ExistingNode) -> None:
    await rig.add_v1(node.port)
    linked = await joined(rig, works=False)
    await until(lambda: rig.dispatcher.figures()["slots_free"] == 2, "two free slots")
    task_id = await rig.submit("1-3")
    await linked.given()
    assert not node.starts
    linked.works = True
    await linked.render(next(iter(linked.assigned)))
    row = await rig.ended(task_id)
    assert (row.is_success, row.chunks_succeeded) == (1, 3)
    assert not node.starts


async def test_frames_that_are_no_range_are_not_made_whole(rig: Rig, node: ExistingNode) -> None:
    await rig.add_v1(node.port)
    await until(lambda: rig.dispatcher.figures()["slots_free"] == 1, "a free slot")
    task_id = await rig.submit("1-3,7", chunk_size=0)
    reasons = await rig.explain(task_id, user_id=None)
    assert any("whole tasks only" in reason for reason in reasons)
    await joined(rig)
    assert (await rig.ended(task_id)).is_success == 1
    assert not node.starts


async def test_success_without_the_files_is_a_failure(rig: Rig, tmp_path: Path) -> None:
    with ExistingNode({"fake": "/bin/true"}) as node:
        await rig.add_v1(node.port)
        task_id = await rig.submit("1", chunk_size=0)
        row = await rig.ended(task_id, 60)
    assert row.is_success == 0
    assert "frame_0001.png" in row.reason


async def test_restart_of_the_dispatcher_finds_the_render_again(rig: Rig, node: ExistingNode, renderer: Path) -> None:
    gate = renderer.parent / "gate"
    gate.touch()
    await rig.add_v1(node.port)
    task_id = await rig.submit("1-2", chunk_size=0)
    await until(lambda: node.is_running, "render")
    await rig.restart()
    gate.unlink()
    row = await rig.ended(task_id)
    assert (row.is_success, len(await rig.attempts(task_id)), len(node.starts)) == (1, 1, 1)
    await rig.assert_sound()


async def test_cancel_stops_the_render(rig: Rig, node: ExistingNode, renderer: Path) -> None:
    (renderer.parent / "gate").touch()
    await rig.add_v1(node.port)
    task_id = await rig.submit("1", chunk_size=0)
    await until(lambda: node.is_running, "render")
    await rig.control.cancel(task_id, user_id=None)
    await until(lambda: not node.is_running, "end of the render")
    (renderer.parent / "gate").unlink()
    assert (await rig.ended(await rig.submit("1", chunk_size=0))).is_success == 1
    await until(lambda: not rig.left_attempts(), "end of the attempts' directories")
    await rig.assert_sound()


async def test_task_that_was_inserted_by_hand_is_rendered(rig: Rig, node: ExistingNode, tmp_path: Path) -> None:
    await rig.add_v1(node.port)
    arguments = f"fake {tmp_path}/a.scene -s 1 -e 2 -o {tmp_path}"
    render = f"77, 'a.scene', '{tmp_path}/a.scene', 1, '{arguments}', {rig.engine_id}"
    task = f"77, {rig.user_id}, '2026-01-02 03:04:05', 0, 0, 77"
    by_hand = (
        f"insert into renders (render_id, file_name, file_path, file_size, arguments, engine_id) values ({render})",
        f"insert into tasks (task_id, user_id, queue_time, is_running, is_success, render_id) values ({task})",
        "insert into queue (task_id) values (77)",
    )
    for statement in by_hand:
        await rig.database.write(lambda c, statement=statement: c.exec_driver_sql(statement))
    await rig.dispatcher.refresh()
    assert (await rig.ended(77)).is_success == 1
    assert (tmp_path / "frame_0002.png").exists()
    assert node.starts[0].body["arguments"] == arguments.removeprefix("fake ")
    await rig.assert_sound()


async def test_files_beside_the_scene_get_a_digest_when_a_v1_task_succeeds(rig: Rig, node: ExistingNode) -> None:
    """Nobody names them and nobody lands them; what is known of them goes when they are rendered again
    (R15 Served as landed)."""
    folder = rig.files / str(rig.user_id) / "638000000000000077"
    await asyncio.to_thread(folder.mkdir, parents=True)
    (folder / "a.scene").write_text("scene")
    words = ("$RENDERONLINE:@uploaded_file", "-s", "1", "-e", "2", "-o", str(folder))
    await rig.database.write(lambda c: c.exec_driver_sql("update engines set definition = null"))
    task_id = await rig.submit(file_path=str(folder / "a.scene"), template=json.dumps(words))

    async def digests() -> dict[str, str]:
        return {one.name: one.digest for one in await rig.rows(results, task_id=task_id)}

    await rig.add_v1(node.port)
    assert (await rig.ended(task_id)).is_success == 1
    await until(digests, "digests")
    expected = {
        f"frame_000{frame}.png": hashlib.blake2b(f"picture {frame}".encode(), digest_size=32).hexdigest()
        for frame in (1, 2)
    }
    assert await digests() == expected
    await rig.control.requeue(task_id, user_id=rig.user_id)
    assert await digests() == {}
    assert (await rig.ended(task_id)).is_success == 1
    await until(digests, "digests")
    assert await digests() == expected
    await rig.assert_sound()
