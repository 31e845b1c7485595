"""Uploads that arrive in pieces: nothing is sent twice, everything is checked, nobody sees what is another's."""

import asyncio
import io
import json
import os
import random
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from renderonline.database.door import Database
from renderonline.database.submission_rows import list_inputs
from renderonline.renderapi.planner import Dispatcher
from renderonline.storage.staging import Stage
from tests.support.renderapi import Running, renderapi, wait_until
from tests.support.uploading import SCRIBE, Uploader, announced, manifest, pack, pieces, record

MIB = 1024 * 1024


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def scene_of(api: Running, task: dict[str, Any]) -> Path:
    (found,) = api.settings.files.glob(f"{task['user_id']}/*/{task['file_name']}")
    return found


@pytest.fixture(name="mine")
async def _mine(api: Running) -> Uploader:
    return await uploader(api)


async def uploader(api: Running) -> Uploader:
    assert (await api.call("POST", "/engines", {"definition": SCRIBE})).status == 201
    return Uploader(api)


async def test_files_of_a_scene_travel_with_it_and_keep_their_places(api: Running, mine: Uploader) -> None:
    files = {"shots/s1.txt": b"PAGES" + noise(3 * MIB), "shots/tex/wood.png": noise(9000, 2), "empty.txt": b""}
    task, sent = await mine.send(files, scene="shots/s1.txt")
    assert sum(map(len, files.values())) <= sent < sum(map(len, files.values())) + 1000
    assert (task["file_name"], task["name"], task["file_size"]) == ("shots/s1.txt", "s1.txt", 3 * MIB + 5)
    root = scene_of(api, task).parents[1]
    assert {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()} == files
    assert root.parent.name == str(task["user_id"])
    assert list((api.settings.files / ".incoming").iterdir()) == []


async def test_download_and_delete_know_the_folders_of_a_scene(api: Running, mine: Uploader) -> None:
    files = {"shots/s1.txt": b"PAGES", "shots/tex/wood.png": b"wood", "lib/x.png": noise(5 * MIB)}
    task, _ = await mine.send(files, scene="shots/s1.txt")
    archive = zipfile.ZipFile(io.BytesIO((await mine.call("GET", f"/tasks/{task['task_id']}/download")).body))
    assert {name: archive.read(name) for name in archive.namelist()} == files
    assert (await mine.call("DELETE", f"/tasks/{task['task_id']}")).status == 204
    assert [name for name in api.tree() if name not in (str(task["user_id"]), ".manifests")] == []


async def test_the_command_writes_beside_the_folders_not_into_them(api: Running, mine: Uploader) -> None:
    task, _ = await mine.send({"a/b.txt": b"PAGES"}, scene="a/b.txt")
    with Database.open(api.settings.database) as database:
        arguments = database.read_now(lambda c: c.exec_driver_sql("select arguments from renders").scalar_one())
    directory = scene_of(api, task).parents[1]
    assert f"{directory}/a/b.txt" in arguments
    assert f"{directory}/page_" in arguments


@pytest.mark.both_databases
async def test_inputs_are_kept_with_their_digests(api: Running, mine: Uploader) -> None:
    files = {"a.txt": noise(2 * MIB), "t.png": b"png"}
    uploaded, _ = await mine.send(files)
    plain = (await api.submit({"engine": "scribe"}, ("a.txt", files["a.txt"]), version=2)).json()
    with Database.open(api.settings.database) as database:
        for task, names in ((uploaded, ("a.txt", "t.png")), (plain, ("a.txt",))):
            found = database.read_now(lambda c, number=task["task_id"]: list_inputs(c, number))
            about = [(name, len(files[name]), blake3(files[name]).hexdigest()) for name in names]
            assert [(row.name, row.size, row.digest) for row in found] == about
    await api.call("DELETE", f"/tasks/{uploaded['task_id']}")
    with Database.open(api.settings.database) as database:
        assert database.read_now(lambda c: list_inputs(c, uploaded["task_id"])) == ()


@pytest.mark.both_databases
async def test_same_scene_again_sends_nothing(api: Running, mine: Uploader) -> None:
    scene = noise(5 * MIB)
    _, sent = await mine.send({"a.txt": scene})
    _, nothing = await mine.send({"again.txt": scene})
    assert (sent > 5 * MIB, nothing) == (True, 0)
    assert next(api.settings.files.glob("*/*/again.txt")).read_bytes() == scene


async def test_an_edited_scene_sends_what_changed(api: Running, mine: Uploader) -> None:
    scene = noise(20 * MIB)
    await mine.send({"a.txt": scene})
    edited = scene[: 5 * MIB] + b"another object" + scene[5 * MIB :]
    task, sent = await mine.send({"b.txt": edited})
    assert 0 < sent < len(edited) * 0.08
    assert scene_of(api, task).read_bytes() == edited


async def test_a_scene_that_came_in_one_piece_is_not_sent_again(api: Running, mine: Uploader) -> None:
    scene = noise(6 * MIB)
    assert (await api.submit({"engine": "scribe"}, ("a.txt", scene), version=2)).status == 201
    _, sent = await mine.send({"a.txt": scene})
    assert sent == 0


async def test_of_another_users_files_nothing_is_learnt(api: Running, mine: Uploader) -> None:
    scene = noise(5 * MIB)
    await mine.send({"a.txt": scene})
    other = Uploader(api, await api.new_user("other@example.org"))
    _, sent = await other.send({"a.txt": scene})
    assert sent > len(scene)


async def test_an_older_file_that_is_gone_or_changed_is_sent_again(api: Running, mine: Uploader) -> None:
    scene = noise(5 * MIB)
    first, _ = await mine.send({"a.txt": scene})
    path = scene_of(api, first)
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"something else")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # nobody can see it but by the bytes
    upload = await mine.announce(announced("a.txt", scene))

    async def found_out() -> bool:
        return not (await mine.look(upload["upload_id"]))["complete"]

    await wait_until(found_out)
    refused = await mine.submit(upload["upload_id"])
    assert (refused.status, refused.json()["code"]) == (409, "incomplete")
    (lacking,) = refused.json()["files"]
    assert (lacking["name"], lacking["missing"]) == ("a.txt", [[0, 1]])
    await mine.put(upload["upload_id"], record(0, 0, pieces(scene)[0]))
    assert (await mine.submit(upload["upload_id"])).status == 201

    path.unlink()
    (other,) = (file for file in api.settings.files.glob("*/*/a.txt"))
    other.unlink()
    _, sent = await mine.send({"a.txt": scene})
    assert sent > len(scene)


async def test_an_upload_goes_on_after_a_restart(tmp_path: Path) -> None:
    scene, texture = noise(4 * MIB), noise(300_000, 2)
    async with renderapi(tmp_path / "data") as api:
        mine = await uploader(api)
        upload = await mine.announce(announced("a.txt", scene), announced("t.png", texture, chunked=False))
        half = pieces(scene)[:5]
        await mine.put(upload["upload_id"], b"".join(record(0, number, one) for number, one in enumerate(half)))
        assert (await mine.append(upload["upload_id"], 1, 0, texture[:1000])).headers["Upload-Offset"] == "1000"
    async with renderapi(tmp_path / "data") as api:
        mine = Uploader(api)
        there = await mine.look(upload["upload_id"])
        assert there["files"][0]["missing"][0][0] == 5
        assert [file["offset"] for file in there["files"]] == [sum(map(len, half)), 1000]
        rest = pack((scene, b""), {"files": [there["files"][0], {"missing": []}]})
        assert (await mine.put(upload["upload_id"], rest)).status == 204
        assert (await mine.append(upload["upload_id"], 1, 1000, texture[1000:])).status == 204
        task = (await mine.submit(upload["upload_id"])).json()
        assert scene_of(api, task).read_bytes() == scene
        assert scene_of(api, task).with_name("t.png").read_bytes() == texture


async def test_a_wrong_offset_is_told_the_right_one(mine: Uploader) -> None:
    upload = await mine.announce(announced("a.txt", b"0123456789", chunked=False))
    await mine.append(upload["upload_id"], 0, 0, b"01234")
    for offset in (0, 4, 6, 10):
        reply = await mine.append(upload["upload_id"], 0, offset, b"5")
        assert (reply.status, reply.json()["code"], reply.headers["Upload-Offset"]) == (409, "wrong_offset", "5")
    reply = await mine.append(upload["upload_id"], 0, 5, b"567890")
    assert (reply.status, reply.json()["code"]) == (400, "too_long")
    assert (await mine.look(upload["upload_id"]))["files"][0]["offset"] == 5


async def test_two_writers_of_one_file_do_not_mix(api: Running, mine: Uploader) -> None:
    upload = await mine.announce(announced("a.txt", b"0123456789", chunked=False))
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> Any:
        yield b"01234"
        arrived.set()
        await go_on.wait()
        yield b"56789"

    headers = {"Upload-Offset": "0", "Content-Length": "10"}
    path = f"/uploads/{upload['upload_id']}/files/0"
    first = asyncio.create_task(mine.call("PATCH", path, data=slowly(), headers=headers))
    await arrived.wait()

    async def refused() -> bool:
        return (await mine.append(upload["upload_id"], 0, 0, b"x")).json()["code"] == "busy"

    await wait_until(refused)
    assert (await mine.submit(upload["upload_id"])).json()["code"] == "busy"
    go_on.set()
    assert (await first).status == 204
    assert (await mine.submit(upload["upload_id"])).status == 201


async def test_adding_up_large_files_holds_up_nobody(
    api: Running, mine: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, add_up = threading.Event(), Stage.add_up

    def slowly(stage: Stage, index: int) -> None:
        go_on.wait()
        add_up(stage, index)

    monkeypatch.setattr(Stage, "add_up", slowly)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    try:
        for number in range(4):
            upload = await mine.announce(announced(f"{number}.txt", b"0123456789", chunked=False))
            assert (await mine.append(upload["upload_id"], 0, 0, b"0123456789")).status == 204
        assert (await mine.look(upload["upload_id"]))["complete"]
    finally:
        go_on.set()
    assert (await mine.submit(upload["upload_id"])).status == 201


async def test_a_pack_of_many_small_files_is_one_piece_of_work_afterwards(
    mine: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, add_up, count = threading.Event(), Stage.add_up, 300

    def slowly(stage: Stage, index: int) -> None:
        go_on.wait()
        add_up(stage, index)

    monkeypatch.setattr(Stage, "add_up", slowly)
    upload = await mine.announce(*(announced(f"{number}.txt", b"x") for number in range(count)))
    try:
        before = len(asyncio.all_tasks())
        reply = await mine.put(upload["upload_id"], b"".join(record(number, 0, b"x") for number in range(count)))
        assert reply.status == 204
        assert len(asyncio.all_tasks()) < before + count // 10
    finally:
        go_on.set()
    assert (await mine.look(upload["upload_id"]))["complete"]


async def test_a_chunk_that_is_something_else_is_not_stored(mine: Uploader) -> None:
    scene = noise(3 * MIB)
    chunks = pieces(scene)
    upload = await mine.announce(announced("a.txt", scene))
    body = record(0, 0, chunks[0]) + record(0, 1, b"x" * len(chunks[1])) + record(0, 2, chunks[2])
    reply = await mine.put(upload["upload_id"], body)
    assert (reply.status, reply.json()["code"]) == (422, "wrong_chunk")
    there = await mine.look(upload["upload_id"])
    assert there["files"][0]["missing"][0][0] == 1
    assert there["files"][0]["offset"] == len(chunks[0])
    for body in (record(1, 0, b"x"), record(0, 10_000, b"x"), record(2**32 - 1, 2**32 - 1, b"")):
        assert (await mine.put(upload["upload_id"], body)).status == 422
    cut_off = await mine.put(upload["upload_id"], record(0, 1, chunks[1])[:-1])
    assert (cut_off.status, cut_off.json()["code"]) == (400, "incomplete_body")


async def test_a_file_that_is_not_what_was_announced_is_refused_and_may_come_again(mine: Uploader) -> None:
    wrong = announced("a.txt", b"right", chunked=False)
    upload = await mine.announce(wrong)
    await mine.append(upload["upload_id"], 0, 0, b"wrong")
    reply = await mine.submit(upload["upload_id"])
    assert (reply.status, reply.json()["code"]) == (422, "wrong_digest")
    assert (await mine.append(upload["upload_id"], 0, 0, b"right")).status == 204
    assert (await mine.submit(upload["upload_id"])).status == 201


NO_NAMES = [
    *("../../x.txt", "/etc/x.txt", "..\\x.txt", "C:\\x.txt", "a\0.txt", ".", "", "..", "x" * 3000),
    *("a\r\nb.txt", "a//b.txt", "a/../b.txt", "a/./b.txt", ".landing-1", "tex/.landing-1", "a/b/", "\ud800.txt"),
    "_renderonline_names.json",
]


async def test_names_that_are_no_names_are_refused(api: Running, mine: Uploader) -> None:
    for name in NO_NAMES:
        body = json.dumps({"files": [{"name": name, "size": 1}]})
        reply = await mine.call("POST", "/uploads", data=body, headers={"Content-Type": "application/json"})
        assert reply.status in (400, 422), (name, reply.body)
        assert api.tree() == []


async def test_files_of_odd_names_are_kept_under_fit_ones(mine: Uploader) -> None:
    scene = "con: e\u0301.txt"
    upload = await mine.announce(*(announced(name, b"x", chunked=False) for name in (scene, "tex/-a?.png")))
    assert [one["name"] for one in upload["files"]] == [scene, "tex/-a?.png"]
    for index in range(2):
        assert (await mine.append(upload["upload_id"], index, 0, b"x")).status == 204
    task = (await mine.submit(upload["upload_id"], scene=scene)).json()
    assert task["file_name"] == "con_ \u00e9.txt"


NO_FILES: list[Any] = [
    [],
    [{"name": "a", "size": 1}, {"name": "a", "size": 1}],
    [{"name": "a", "size": 1}, {"name": "a/b", "size": 1}],
    [{"name": "a", "size": -1}],
    [{"name": "a", "size": 2**63}],
    [{"name": "a", "size": 1, "digest": "xyz"}],
    [{"name": "a", "size": 5, "chunks": "%%%"}],
    [{"name": "a", "size": 5, "chunks": "AAAA"}],
    [{"name": "a", "size": 2 * MIB, "chunks": manifest([bytes(2 * MIB)])}],
    [{"name": "a", "size": 0, "chunks": manifest([b""])}],
    [{"name": "a", "size": 99, "chunks": manifest([b"x"] * 99)}],
    "a",
    [{"name": 5, "size": 1}],
]


async def test_what_can_not_be_announced_leaves_nothing(api: Running, mine: Uploader) -> None:
    for files in NO_FILES:
        reply = await mine.call("POST", "/uploads", {"files": files})
        assert reply.status in (400, 422), (files, reply.body)
        assert api.tree() == []
    for size in (4, 6):
        wrong_sum = {"name": "a", "size": size, "chunks": manifest([b"01234"])}
        reply = await mine.call("POST", "/uploads", {"files": [wrong_sum]})
        assert (reply.status, reply.json()["code"]) == (422, "bad_manifest")


async def test_too_much_is_refused_before_a_byte_is_sent(tmp_path: Path) -> None:
    async with renderapi(tmp_path / "data", max_upload_mib=100) as api:
        mine = await uploader(api)
        huge = await mine.call("POST", "/uploads", {"files": [{"name": "a.txt", "size": 101 * MIB}]})
        assert (huge.status, huge.json()["code"]) == (413, "too_large")
        await api.call("PATCH", "/subscriptions/1", {"keep_mib": 10})
        quota = await mine.call("POST", "/uploads", {"files": [{"name": "a.txt", "size": 11 * MIB}]})
        assert (quota.status, quota.json()["code"]) == (413, "over_quota")
        assert api.tree() == []
    async with renderapi(tmp_path / "full", reserve_mib=10**9) as api:
        full = await Uploader(api).call("POST", "/uploads", {"files": [{"name": "a.txt", "size": 20 * MIB}]})
        assert (full.status, full.json()["code"]) == (507, "no_space")


@pytest.mark.both_databases
async def test_an_upload_is_its_users_only(api: Running, mine: Uploader) -> None:
    upload_id = (await mine.announce(announced("a.txt", b"x", chunked=False)))["upload_id"]
    admin_like = Uploader(api, await api.new_user("operator@example.org", "operator"))
    for reply in (
        await admin_like.call("GET", f"/uploads/{upload_id}"),
        await admin_like.append(upload_id, 0, 0, b"x"),
        await admin_like.put(upload_id, b""),
        await admin_like.call("DELETE", f"/uploads/{upload_id}"),
        await admin_like.submit(upload_id),
        await mine.call("GET", f"/uploads/{'0' * 32}"),
        await mine.call("GET", "/uploads/..%2f..%2fx"),
    ):
        assert reply.status == 404, reply.body
    nobody = Uploader(api, {})
    assert (await nobody.append(upload_id, 0, 0, b"x")).status == 401
    assert (await mine.look(upload_id))["files"][0]["offset"] == 0


async def test_an_upload_that_is_given_up_leaves_nothing(api: Running, mine: Uploader) -> None:
    upload = await mine.announce(announced("a.txt", noise(MIB)))
    await mine.put(upload["upload_id"], record(0, 0, pieces(noise(MIB))[0]))
    assert (await mine.call("DELETE", f"/uploads/{upload['upload_id']}")).status == 204
    assert api.tree() == []
    assert (await mine.call("GET", f"/uploads/{upload['upload_id']}")).status == 404


@pytest.mark.both_databases
async def test_a_task_that_is_deleted_takes_what_is_known_of_its_chunks(api: Running, mine: Uploader) -> None:
    task, _ = await mine.send({"a.txt": noise(5 * MIB)})
    assert list((api.settings.files / ".manifests").iterdir())
    await api.call("DELETE", f"/tasks/{task['task_id']}")
    assert not list((api.settings.files / ".manifests").iterdir())


@pytest.mark.both_databases
async def test_a_submission_is_made_once(api: Running, mine: Uploader) -> None:
    upload_id = (await mine.announce(announced("a.txt", b"", chunked=False)))["upload_id"]
    first = await mine.submit(upload_id, key="k1")
    again = await mine.submit(upload_id, key="k1")
    assert (first.status, again.status) == (201, 201)
    assert first.json()["task_id"] == again.json()["task_id"]
    assert (await mine.submit(upload_id, key="k2")).status == 404  # it is a task's now


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"engine": "none"}, "engine_not_found"),
        ({"scene": "t.png"}, "wrong_extension"),
        ({"scene": "x.txt"}, "which_scene"),
        ({"frames": "1"}, "no_frames"),
        ({"upload": 5}, "invalid_request"),
    ],
)
async def test_a_refused_submission_leaves_the_upload_as_it_was(
    api: Running, mine: Uploader, request_: dict[str, Any], code: str
) -> None:
    upload = await mine.announce(announced("a.txt", b"x", chunked=False), announced("t.png", b"", chunked=False))
    await mine.append(upload["upload_id"], 0, 0, b"x")
    before = api.tree()
    reply = (
        await mine.submit(upload["upload_id"], **request_)
        if "upload" not in request_
        else await mine.call("POST", "/tasks", {"engine": "scribe", **request_})
    )
    assert (reply.status, reply.json()["code"]) == (400, code)
    assert api.tree() == before
    assert (await mine.submit(upload["upload_id"])).status == 201


async def test_which_file_is_the_scene_must_be_clear(mine: Uploader) -> None:
    two = await mine.announce(*(announced(name, b"", chunked=False) for name in ("a.txt", "b.txt", "c/d.txt")))
    reply = await mine.submit(two["upload_id"])
    assert (reply.status, reply.json()["code"]) == (400, "which_scene")
    assert (await mine.submit(two["upload_id"], scene="c/d.txt")).status == 201
    one = await mine.announce(*(announced(name, b"", chunked=False) for name in ("a.txt", "t.png", "lib/b.txt")))
    assert (await mine.submit(one["upload_id"])).json()["file_name"] == "a.txt"


async def test_a_refusal_by_the_queue_limit_keeps_the_upload(api: Running) -> None:
    await api.call("POST", "/subscriptions", {"name": "one", "queue_limit": 1})
    await uploader(api)
    mine = Uploader(api, await api.new_user("one@example.org", subscription_id=2))
    await mine.send({"a.txt": b"x"})
    upload = await mine.announce(announced("b.txt", b"", chunked=False))
    before = api.tree()
    assert (await mine.submit(upload["upload_id"])).status == 429
    assert api.tree() == before


async def test_old_uploads_make_place_for_new_ones(api: Running, mine: Uploader) -> None:
    first = await mine.announce(announced("a.txt", b"x", chunked=False))
    for path in (api.settings.files / ".incoming").glob("*-*"):
        os.utime(path / "upload.json", (1, 1))
    second = await mine.announce(announced("a.txt", b"x", chunked=False))
    assert (await mine.append(first["upload_id"], 0, 0, b"x")).status == 404
    assert (await mine.append(second["upload_id"], 0, 0, b"x")).status == 204


async def test_many_small_files_go_in_one_pack(api: Running, mine: Uploader) -> None:
    files = {"a.txt": b"PAGES", **{f"tex/{number}.png": f"picture {number}".encode() for number in range(300)}}
    task, _ = await mine.send(files)
    assert (scene_of(api, task).parent / "tex/299.png").read_bytes() == b"picture 299"


async def test_body_without_a_length_is_refused(mine: Uploader) -> None:
    upload = await mine.announce(announced("a.txt", b"x", chunked=False))

    async def endless() -> Any:
        yield b"x"

    headers = {"Upload-Offset": "0"}
    reply = await mine.call("PATCH", f"/uploads/{upload['upload_id']}/files/0", data=endless(), headers=headers)
    assert (reply.status, reply.json()["code"]) == (400, "length_required")


@pytest.mark.both_databases
@pytest.mark.parametrize("as_form", [True, False])
async def test_files_of_a_committed_task_stay_when_something_fails_after_the_commit(
    api: Running, mine: Uploader, monkeypatch: pytest.MonkeyPatch, as_form: bool
) -> None:
    submit = Dispatcher.submit

    async def failing(self: Dispatcher, *args: Any) -> Any:
        await submit(self, *args)
        raise RuntimeError("after the commit")

    monkeypatch.setattr(Dispatcher, "submit", failing)
    if as_form:
        assert (await api.submit({"engine": "scribe"}, ("s1.txt", b"PAGES"), version=2)).status == 500
    else:
        upload = await mine.announce(announced("s1.txt", b"PAGES", chunked=False))
        assert (await mine.append(upload["upload_id"], 0, 0, b"PAGES")).status == 204
        assert (await mine.submit(upload["upload_id"])).status == 500
    (task,) = (await api.call("GET", "/tasks")).json()["items"]
    assert scene_of(api, task).read_bytes() == b"PAGES"
