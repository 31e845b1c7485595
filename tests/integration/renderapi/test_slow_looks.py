"""What one user asks for that is slow: others wait no longer for it, and it ends when its client goes
(R14 Authority first)."""

import asyncio
import contextlib
import io
import os
import random
import time
import zipfile
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import zstandard

from tests.support.blend_files import Blend, File
from tests.support.neighbours import p99, spared, waits
from tests.support.renderapi import Running, renderapi, wait_until
from tests.support.uploading import SCRIBE, Uploader, announced

TRIES = 3
"""A machine with two processors may be busy with something else for a moment."""
SCENE = Blend().write()
SEQUENCES = Blend(files=[File(f"//f/x{number % 9}_0001.png", source=2) for number in range(500)]).write()
LIBRARY = zstandard.compress(Blend(ballast=900 << 20).write())
LIBRARIES = Blend(files=[File(f"//{number}.blend", "LI", "Library") for number in range(190)]).write()


@pytest.fixture(name="api")
async def _api(tmp_path: Path) -> AsyncIterator[Running]:
    async with renderapi(tmp_path / "data", reads_scenes=True) as running:
        assert (await running.call("POST", "/engines", {"definition": SCRIBE})).status == 201
        yield running


@pytest.fixture(name="eve")
async def _eve(api: Running) -> Uploader:
    """Somebody who means harm."""
    return Uploader(api, await api.new_user("eve@example.org"))


async def uploaded(mine: Uploader, scene: bytes, others: Mapping[str, bytes]) -> str:
    """An upload with a scene and other files, all there."""
    files = {"a.blend": scene, **others}
    upload = await mine.announce(*({"name": name, "size": len(content)} for name, content in files.items()))
    for index, content in enumerate(files.values()):
        if content:
            assert (await mine.append(upload["upload_id"], index, 0, content)).status == 204
    return str(upload["upload_id"])


@contextlib.asynccontextmanager
async def asking(mine: Uploader, upload_id: str, count: int) -> AsyncIterator[None]:
    """So many questions for the facts of a scene, asked at once; their connections close at the end."""
    assert mine.who is not None
    address = urlsplit(mine.api.url)
    headers = "".join(f"{name}: {value}\r\n" for name, value in mine.who.items())
    question = f"GET /renderapi/v2/uploads/{upload_id}/facts?name=a.blend HTTP/1.1\r\nHost: x\r\n{headers}\r\n"
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(question.encode())
        writers.append(writer)
    yield
    for writer in writers:
        writer.close()


async def submitted(api: Running) -> None:
    reply = await api.submit({"engine": "blender", "paused": True}, ("shot.blend", SCENE), version=2)
    assert reply.status == 201, reply.body


async def test_many_questions_about_a_large_scene_hold_up_nobody(api: Running, eve: Uploader) -> None:
    upload_id = await uploaded(eve, SEQUENCES, {f"f/x{number % 10}_{number}.png": b"" for number in range(45_000)})
    await waits(lambda: submitted(api), 3)
    before = await waits(lambda: submitted(api), 15)
    for count in (4, 100):
        async with asking(eve, upload_id, count):
            pass
        assert spared(before, await waits(lambda: submitted(api), 15)) == ""


async def test_a_slow_look_holds_up_its_own_user_only_and_ends_with_its_client(api: Running, eve: Uploader) -> None:
    slow = await uploaded(eve, LIBRARIES, {f"{number}.blend": LIBRARY for number in range(190)})
    quick = await uploaded(eve, SCENE, {})
    await waits(lambda: submitted(api), 3)
    before = await waits(lambda: submitted(api), 15)
    async with asking(eve, slow, 4):
        during = await waits(lambda: submitted(api), 15)
        waiting = asyncio.create_task(eve.call("GET", f"/uploads/{quick}/facts?name=a.blend"))
        assert not (await asyncio.wait({waiting}, timeout=0.2))[0]
    began = time.monotonic()
    assert (await waiting).status == 200
    assert time.monotonic() - began < 10  # of the 30 seconds that each of the four would have taken
    assert spared(before, during) == ""


async def test_what_was_not_looked_at_for_lack_of_time_stays_with_the_task(
    api: Running, eve: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = await uploaded(eve, LIBRARIES, {f"{number}.blend": LIBRARY for number in range(190)})
    monkeypatch.setattr("renderonline.renderapi.scene_surveys.TIME_S", 1.0)
    warning = "not looked at: frames of a.blend and files that it needs (it could not be read within 1 s)"
    asked = {"engine": "blender", "upload": slow, "scene": "a.blend"}
    refused = await eve.call("POST", "/tasks", asked)
    assert (refused.status, refused.json()["code"]) == (400, "frames_unknown")  # never the engine's one frame
    reply = await eve.call("POST", "/tasks", {**asked, "frames": "1"})
    assert reply.status == 201, reply.body
    assert reply.json()["facts"]["warnings"] == [warning]
    task = (await eve.call("GET", f"/tasks/{reply.json()['task_id']}")).json()
    assert task["facts"]["warnings"] == [warning]


async def test_an_archive_that_takes_long_holds_up_nobody_and_is_given_up_with_its_client(
    api: Running, eve: Uploader
) -> None:
    noise = random.Random(1).randbytes(20 << 20)
    large, small = archived(noise, zipfile.ZIP_BZIP2), archived(b"page", zipfile.ZIP_DEFLATED)
    mine = Uploader(api)
    slow = [await zip_of(eve, large) for _ in range(4)]

    async def unpacked() -> None:
        reply = await mine.submit(await zip_of(mine, small), unpack=True, paused=True)
        assert reply.status == 201, reply.body

    await waits(unpacked, 2)
    before = await waits(unpacked, 5)
    submissions = [asyncio.create_task(eve.submit(one, unpack=True)) for one in slow]

    async def begun() -> bool:
        return any(api.settings.files.glob(".incoming/*/unpacked"))

    await wait_until(begun)
    during = await waits(unpacked, 5)
    assert not submissions[-1].done()
    for one in submissions:
        one.cancel()
    await asyncio.gather(*submissions, return_exceptions=True)

    async def ended() -> bool:
        return not any(api.settings.files.glob(".incoming/*/unpacked"))

    await wait_until(ended)
    assert spared(before, during) == ""
    assert len((await eve.call("GET", "/tasks")).json()["items"]) < len(slow)


async def test_a_task_of_a_hundred_thousand_chunks_holds_up_nobody(api: Running) -> None:
    request = {"engine": "blender", "frames": "1-100000", "chunk_size": 1, "paused": True}
    for _ in range(TRIES):
        before = await waits(lambda: me(api), 100)
        submitting = asyncio.create_task(api.submit(request, ("shot.blend", SCENE), version=2))
        during = await waits_until(submitting, api)
        assert (await submitting).json()["chunks"]["waiting"] == 100_000
        if not (told := spared(before, during, p99)):
            break
    assert told == ""


async def test_ranges_of_many_frames_hold_up_nobody(api: Running) -> None:
    await submitted(api)
    for path in ("/tasks/1/download?frames=1-100000,1-100000", "/tasks/1/requeue"):
        for _ in range(TRIES):
            before = await waits(lambda: me(api), 50)
            method, body = ("POST", {"frames": "1-100000,1-100000"}) if path.endswith("requeue") else ("GET", None)
            asking = asyncio.gather(*(api.call(method, path, body) for _ in range(20)))
            during = await waits_until(asking, api)
            assert {reply.status for reply in await asking} <= {200, 400, 404, 409}
            if not (told := spared(before, during)):
                break
        assert told == ""


@pytest.mark.parametrize("asked", ["bytes=-1", "bytes=-4000000"])
async def test_ranges_of_a_large_file_hold_up_nobody_and_end_with_their_client(api: Running, asked: str) -> None:
    await submitted(api)
    (scene,) = api.settings.files.rglob("shot.blend")
    os.truncate(scene, 64 << 30)  # takes no room, and a minute to read
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    headers = "".join(f"{name}: {value}\r\n" for name, value in {**api.who, "Range": asked, "Host": "x"}.items())
    clients = [await asyncio.open_connection("127.0.0.1", urlsplit(api.url).port) for _ in range(8)]
    for reader, writer in clients:
        writer.write(f"GET /renderapi/v2/tasks/1/download HTTP/1.1\r\n{headers}\r\n".encode())
        assert b"206" in await reader.readline()

    async def read() -> bool:
        handles = (Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
        return any(handle.is_symlink() and os.readlink(handle) == str(scene) for handle in handles)

    await wait_until(read)
    async with asyncio.timeout(10):
        await submitted(api)
    for _, writer in clients:
        writer.close()

    async def ended() -> bool:
        return not await read()

    await wait_until(ended, 10)


async def me(api: Running) -> None:
    assert (await api.call("GET", "/me")).status == 200


async def waits_until(ended: asyncio.Future[Any], api: Running) -> list[float]:
    """How long a neighbour waits, again and again until something has ended."""
    during = await waits(lambda: me(api), 2)
    while not ended.done():
        during += await waits(lambda: me(api), 1)
    return during


def archived(content: bytes, compression: int) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        archive.writestr("a.txt", content)
    return target.getvalue()


async def zip_of(mine: Uploader, archive: bytes) -> str:
    upload = await mine.announce(announced("pack.zip", archive, chunked=False))
    assert (await mine.append(upload["upload_id"], 0, 0, archive)).status == 204
    return str(upload["upload_id"])
