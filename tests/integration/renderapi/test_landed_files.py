"""What landed is what is served (R15 Served as landed): a frame that somebody forged is handed out in no way, and
named."""

import asyncio
import contextlib
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from renderonline.database import schema as tables
from renderonline.database.door import Database
from tests.support.renderapi import SCENE, Reply, Running, renderapi

FRAME = "frame_0001.png"
LANDED = b"the victim's picture" * 100
FORGED = b"an attacker's work.." * 100
RESULT = f"/tasks/1/results/{FRAME}"


@pytest.fixture(name="api")
async def _api(tmp_path: Path) -> AsyncIterator[Running]:
    async with renderapi(tmp_path / "data") as running:
        await running.new_task(frames="1-2")
        for name in (FRAME, "frame_0002.png"):
            (directory_of(running) / name).write_bytes(LANDED)
            add_result(running, name, LANDED)
        yield running


def add_result(api: Running, name: str, content: bytes) -> None:
    """A result's row as the dispatcher leaves it."""
    about = {"task_id": 1, "chunk_id": 1, "attempt_id": 1, "state": "landed", "landed_us": 1, "frame": int(name[6:10])}
    sums = {"crc32": zlib.crc32(content), "digest": hashlib.blake2b(content, digest_size=32).hexdigest()}
    row = {**about, **sums, "name": name, "size": len(content)}
    with Database.open(api.settings.database) as database:
        key = hashlib.sha256(name.encode()).hexdigest()
        database.write_now(lambda connection: connection.execute(tables.results.insert().values(name_hash=key, **row)))


def directory_of(api: Running) -> Path:
    (scene,) = api.settings.files.glob(f"*/*/{SCENE[0]}")
    return scene.parent


def forge(api: Running, name: str = FRAME) -> None:
    """Other bytes, as many, and the time set back: all that an attacker can do about it."""
    path = directory_of(api) / name
    before = path.stat()
    path.write_bytes(FORGED)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def cut_off(api: Running, path: str, method: str = "GET", **more: object) -> bytes:
    """What came of an answer before it was cut."""
    address = api.url + (path if path.startswith("/renderapi") else f"/renderapi/v2{path}")
    headers = {**api.who, **more.pop("headers", {})}  # type: ignore[dict-item]
    got = bytearray()
    async with api.http.request(method, address, headers=headers, **more) as response:  # type: ignore[arg-type]
        assert response.status in (200, 206)
        with contextlib.suppress(aiohttp.ClientPayloadError):
            async for piece in response.content.iter_any():
                got += piece
            pytest.fail("the answer came to its end")
    return bytes(got)


def refused(reply: Reply, *names: str) -> None:
    assert reply.status == 409, reply.body
    problem = reply.json()
    assert (problem["code"], problem["names"]) == ("altered", list(names))
    for told in (*names, "renderonline requeue 1", "renderonline accept 1"):
        assert told in problem["detail"]


async def test_forged_frame_is_not_handed_out_alone(api: Running) -> None:
    assert (await api.call("GET", RESULT)).body == LANDED
    forge(api)
    assert FORGED[:10] not in await cut_off(api, RESULT)
    refused(await api.call("GET", RESULT), FRAME)
    refused(await api.call("GET", RESULT, headers={"Range": "bytes=5-9"}), FRAME)
    assert (await api.call("GET", "/tasks/1/results/frame_0002.png")).body == LANDED


@pytest.mark.parametrize("asked", ["bytes=0-9", "bytes=5-", "bytes=-7"])
async def test_no_byte_of_a_forged_frame_leaves_in_a_range(api: Running, asked: str) -> None:
    forge(api)
    assert await cut_off(api, RESULT, headers={"Range": asked}) == b""
    refused(await api.call("GET", RESULT, headers={"Range": asked}), FRAME)


async def test_forged_frame_is_in_no_archive_neither_the_first_nor_the_second(api: Running) -> None:
    forge(api)
    assert FORGED[:10] not in await cut_off(api, "/tasks/1/download")
    for _ in range(2):
        refused(await api.call("GET", "/tasks/1/download"), FRAME)
    other = await api.call("GET", "/tasks/1/download?frames=2")
    with zipfile.ZipFile(io.BytesIO(other.body)) as opened:
        assert opened.read("frame_0002.png") == LANDED


async def test_archive_of_the_results_is_without_the_scene(api: Running) -> None:
    async def names(query: str) -> list[str]:
        with zipfile.ZipFile(io.BytesIO((await api.call("GET", f"/tasks/1/download{query}")).body)) as opened:
            return opened.namelist()

    everything, results = await names(""), await names("?results=1")
    assert sorted(results) == ["frame_0001.png", "frame_0002.png"]
    assert set(results) < set(everything)
    assert await names("?results=1&frames=2") == ["frame_0002.png"]


async def test_v1_download_answers_in_its_own_form(api: Running) -> None:
    forge(api)
    asked = {"json": {"TaskId": 1}}
    assert FORGED[:10] not in await cut_off(api, "/renderapi/v1/download", "POST", **asked)
    reply = await api.call("POST", "/renderapi/v1/download", **asked)
    assert reply.status == 400
    assert FRAME in json.dumps(reply.json())


async def test_task_and_result_show_what_was_altered_until_it_is_right_again(api: Running) -> None:
    async def shown() -> tuple[str, ...]:
        results = (await api.call("GET", "/tasks/1/results")).json()["items"]
        return (await api.call("GET", "/tasks/1")).json()["integrity"], *(one["integrity"] for one in results)

    assert await shown() == ("compared", "compared", "compared")
    forge(api)
    await cut_off(api, RESULT)
    assert await shown() == ("altered", "altered", "compared")
    await asyncio.to_thread((directory_of(api) / FRAME).write_bytes, LANDED)
    assert (await api.call("GET", RESULT)).body == LANDED
    assert await shown() == ("compared", "compared", "compared")


async def test_operator_accepts_files_as_they_are_and_nobody_else(api: Running) -> None:
    forge(api)
    await cut_off(api, RESULT)
    artist = await api.new_user("artist@example.org")
    assert (await api.call("POST", "/tasks/1/accept", {}, who=artist)).status == 403
    for name in ("frame_0009.png", SCENE[0], "../x"):
        assert (await api.call("POST", "/tasks/1/accept", {"names": [name]})).status == 404
    refused(await api.call("GET", RESULT), FRAME)
    operator = await api.new_user("operator@example.org", "operator")
    accepted = await api.call("POST", "/tasks/1/accept", {}, who=operator)
    assert (accepted.status, accepted.json()["integrity"]) == (200, "compared")
    assert (await api.call("GET", RESULT)).body == FORGED
    with zipfile.ZipFile(io.BytesIO((await api.call("GET", "/tasks/1/download")).body)) as opened:
        assert opened.testzip() is None
        assert opened.read(FRAME) == FORGED
    assert (await api.call("POST", "/tasks/1/accept", {})).status == 409


async def test_files_without_a_digest_are_marked_until_somebody_accepts_them(api: Running) -> None:
    with contextlib.suppress(FileNotFoundError):
        (directory_of(api) / FRAME).unlink()
    with Database.open(api.settings.database) as database:
        database.write_now(lambda connection: connection.execute(tables.results.delete()))
        done = tables.tasks.update().values(chunks_waiting=0, chunks_succeeded=1, frames_done=2)
        database.write_now(lambda connection: connection.execute(done))
    assert (await api.call("GET", "/tasks/1")).json()["integrity"] == "not_compared"
    taken = await api.call("POST", "/tasks/1/accept", {"names": ["frame_0002.png"]})
    assert taken.json()["integrity"] == "compared"
    forge(api, "frame_0002.png")
    await cut_off(api, "/tasks/1/download")
    refused(await api.call("GET", "/tasks/1/download"), "frame_0002.png")
