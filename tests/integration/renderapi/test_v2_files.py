"""`/renderapi/v2`: the files of a task: whole, in ranges, one by one, and gone."""

import asyncio
import hashlib
import io
import zipfile
import zlib
from functools import partial

import pytest
from aiohttp import ClientPayloadError

from renderonline.database import schema as tables
from renderonline.database.door import Database
from tests.support.renderapi import Running


async def landed(api: Running, url: str, name: str, content: bytes) -> None:
    """A result as the dispatcher leaves it."""
    directory = api.settings.files / api.tree()[1]
    (directory / name).write_bytes(content)
    row = {
        "task_id": 1,
        "name_hash": hashlib.sha256(name.encode()).hexdigest(),
        "name": name,
        "chunk_id": 1,
        "attempt_id": 1,
        "state": "landed",
        "frame": 1,
        "size": len(content),
        "digest": hashlib.blake2b(content, digest_size=32).hexdigest(),
        "crc32": zlib.crc32(content),
        "landed_us": 1,
    }
    with Database.open(url) as database:
        database.write_now(lambda connection: connection.execute(tables.results.insert().values(row)))


@pytest.mark.both_databases
async def test_download_is_resumed_by_ranges(api: Running, migrated_url: str) -> None:
    await api.new_task()
    await landed(api, migrated_url, "frame_0001.png", b"png" * 10_000)
    whole = await api.call("GET", "/tasks/1/download")
    size, tag = len(whole.body), whole.headers["ETag"]
    assert (whole.status, int(whole.headers["Content-Length"])) == (200, size)
    assert 'filename="task-1.zip"' in whole.headers["Content-Disposition"]

    get = partial(api.call, "GET", "/tasks/1/download")
    for asked, part in [
        ("bytes=0-0", whole.body[:1]),
        ("bytes=100-199", whole.body[100:200]),
        ("bytes=20000-", whole.body[20000:]),
        ("bytes=-50", whole.body[-50:]),
        (f"bytes={size - 1}-{size + 100}", whole.body[-1:]),
    ]:
        reply = await get(headers={"Range": asked, "If-Range": tag})
        assert (reply.status, reply.body) == (206, part), asked
        assert reply.headers["Content-Range"].endswith(f"/{size}")
    assert (await get(headers={"Range": f"bytes={size}-"})).status == 416
    for other in ("bytes=1-2,4-5", "lines=1-2", "bytes=-", "bytes=5-2"):
        assert (await get(headers={"Range": other})).body == whole.body
    assert (await get(headers={"If-None-Match": tag})).status == 304

    await landed(api, migrated_url, "frame_0002.png", b"more")
    changed = await get(headers={"Range": "bytes=100-", "If-Range": tag})
    assert changed.status == 200
    assert changed.headers["ETag"] != tag


@pytest.mark.both_databases
async def test_result_is_one_file(api: Running, migrated_url: str) -> None:
    await api.new_task()
    await landed(api, migrated_url, "frame #1.png", b"png")
    listed = (await api.call("GET", "/tasks/1/results")).json()["items"]
    assert [(result["name"], result["size"], result["frame"]) for result in listed] == [("frame #1.png", 3, 1)]
    reply = await api.call("GET", "/tasks/1/results/frame%20%231.png")
    assert (reply.status, reply.body) == (200, b"png")
    assert (await api.call("GET", "/tasks/1/results/frame%20%231.png", headers={"Range": "bytes=1-"})).body == b"ng"
    assert (await api.call("GET", "/tasks/1/results/a.blend")).status == 404


@pytest.mark.both_databases
async def test_a_task_shows_the_picture_that_landed_last(api: Running, migrated_url: str) -> None:
    await api.new_task()
    for name in ("frame_0001.png", "frame_0002.png"):
        await landed(api, migrated_url, name, b"png")
    with Database.open(migrated_url) as database:
        facts = tables.results.update().values(facts='{"width": 640, "render_time_s": 1.5}')
        database.write_now(lambda connection: connection.execute(facts))
        database.write_now(lambda connection: connection.execute(tables.tasks.update().values(frames_done=1)))
    latest = (await api.call("GET", "/tasks/1")).json()["latest"]
    assert (latest["name"], latest["facts"]) == ("frame_0002.png", {"width": 640, "render_time_s": 1.5})


async def test_files_that_are_gone_are_told(api: Running) -> None:
    await api.new_task()
    scene = api.settings.files / next(path for path in api.tree() if path.endswith(".blend"))
    await asyncio.to_thread(scene.unlink)
    await asyncio.to_thread(scene.parent.rmdir)
    reply = await api.call("GET", "/tasks/1/download")
    assert (reply.status, reply.json()["code"]) == (404, "files_gone")


async def test_log_of_no_attempt_is_not_there(api: Running) -> None:
    assert (await api.call("GET", "/attempts/5/log")).status == 404
    assert (await api.call("GET", "/attempts/5/log?offset=x")).status == 400


async def test_results_leave_under_the_names_that_were_asked_for(api: Running, migrated_url: str) -> None:
    task = await api.new_task(frames="1-2", names="{file}/{name}_{frame:06}")
    assert task["names"] == "a/{name}_{frame:06}"
    await landed(api, migrated_url, "frame_0001.png", b"png")
    (listed,) = (await api.call("GET", "/tasks/1/results")).json()["items"]
    assert (listed["name"], listed["called"]) == ("frame_0001.png", "a/frame_000001.png")
    reply = await api.call("GET", "/tasks/1/results/frame_0001.png")
    assert (reply.body, 'filename="frame_000001.png"' in reply.headers["Content-Disposition"]) == (b"png", True)
    for query, names in (("", ["a.blend", "a/frame_000001.png"]), ("?name=frame_0001.png", ["a/frame_000001.png"])):
        whole = (await api.call("GET", f"/tasks/1/download{query}")).body
        assert zipfile.ZipFile(io.BytesIO(whole)).namelist() == names
    directory = api.settings.files / api.tree()[1]
    await asyncio.to_thread((directory / "frame_0001.png").write_bytes, b"gnp")
    with pytest.raises(ClientPayloadError):
        await api.call("GET", "/tasks/1/download")
    assert (await api.call("GET", "/tasks/1/results")).json()["items"][0]["integrity"] == "altered"


@pytest.mark.both_databases
async def test_a_subscription_names_the_results_of_its_tasks(api: Running) -> None:
    refused = await api.call("PATCH", "/subscriptions/1", {"names": "{name}"})
    assert (refused.status, refused.json()["code"]) == (400, "bad_names")
    assert (await api.call("PATCH", "/subscriptions/1", {"names": "{engine}/{frame:04}"})).status == 200
    assert (await api.new_task())["names"] == "blender/{frame:04}"
    sent = await api.submit({"engine": "blender", "frames": "1-2", "names": "{file}"}, ("b.blend", b"x"), version=2)
    assert sent.json()["code"] == "bad_names"
