"""What a machine without the farm's directory fetches and sends by its attempt's token, and what nobody else can."""

import asyncio
import errno
import hashlib
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from blake3 import blake3
from sqlalchemy import create_engine, text

from renderonline.farm.result_names import Bounds
from renderonline.farm.settling import Patience
from renderonline.protocol.link import Exited, Result, Started
from renderonline.renderapi import control, landings, services
from renderonline.serving import bodies
from tests.faults.engine import DEFINITION
from tests.support.held_attempts import Held, held_attempt
from tests.support.renderapi import COMMAND_ENGINE, Running, renderapi, wait_until

SCENE = b"what is in the scene " * 1000


@pytest.fixture
async def held(api: Running) -> AsyncIterator[Held]:
    """Of an engine that names its outputs: `frame_0001.png`."""
    async with held_attempt(api, DEFINITION, ("a.scene", SCENE)) as one:
        yield one


@pytest.fixture
async def free(api: Running) -> AsyncIterator[Held]:
    """Of an engine that names none: whatever it writes is a result."""
    async with held_attempt(api, COMMAND_ENGINE, ("a.txt", SCENE)) as one:
        yield one


@pytest.mark.both_databases
async def test_inputs_are_listed_with_their_digests_and_fetched_in_ranges(held: Held) -> None:
    listed = (await held.call("GET", "inputs")).json()
    (file,) = listed["files"]
    assert listed["scene"] == file["name"] == "a.scene"
    assert (file["size"], file["digest"]) == (len(SCENE), blake3(SCENE).hexdigest())
    whole = await held.call("GET", "inputs/a.scene")
    assert (whole.status, whole.body) == (200, SCENE)
    wanted = {"Range": "bytes=100-199", "If-Range": whole.headers["ETag"]}
    part = await held.call("GET", "inputs/a.scene", headers=wanted)
    assert (part.status, part.body) == (206, SCENE[100:200])

    async def counted() -> bool:
        machine = (await held.api.call("GET", "/machines")).json()["items"][0]
        return (machine["input_downloads"], machine["input_bytes"]) == (1, len(SCENE) + 100)

    await wait_until(counted)
    metrics = (await held.api.http.get(f"{held.api.url}/metrics")).text()
    assert f'renderonline_input_bytes{{machine="{held.machine_id}"}} {len(SCENE) + 100}.0' in await metrics


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_assignment_is_kept_while_its_files_move_and_taken_back_when_nothing_comes(
    tmp_path: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RenderAPI counts what it serves and receives (R14 Authority first)."""
    monkeypatch.setattr(services, "Patience", lambda: Patience(start_s=1.5))
    async with (
        renderapi(tmp_path / "data", connection_string=migrated_url, return_s=0.1) as api,
        held_attempt(api, DEFINITION, ("a.scene", SCENE)) as held,
    ):

        async def state() -> tuple[str, str]:
            (attempt,) = (await api.call("GET", "/attempts")).json()["items"]
            return attempt["state"], attempt["failure"]

        for method in ("GET", "PUT"):
            end = time.monotonic() + 3
            while time.monotonic() < end:
                if method == "GET":
                    assert (await held.call("GET", "inputs/a.scene")).status == 200
                else:
                    assert (await held.send("frame_0001.png", b"a picture")).status == 204
                assert await state() == ("assigned", "")

        async def taken_back() -> bool:
            return bool((await api.call("GET", "/attempts")).json()["items"][-1]["failure"] == "not_started")

        await wait_until(taken_back)


@pytest.mark.both_databases
async def test_scene_that_somebody_altered_is_sent_to_no_machine(held: Held) -> None:
    (path,) = held.api.settings.files.glob("*/*/a.scene")
    written = path.stat().st_mtime_ns
    await asyncio.to_thread(path.write_bytes, SCENE.swapcase())
    os.utime(path, ns=(written, written))
    with pytest.raises(aiohttp.ClientPayloadError):
        await held.call("GET", "inputs/a.scene")
    reply = await held.call("GET", "inputs/a.scene")
    assert (reply.status, reply.json()["code"]) == (422, "altered")
    assert "a.scene" in reply.json()["detail"]


async def test_nothing_is_told_without_the_attempts_token(held: Held) -> None:
    before = held.api.tree()
    for headers in (
        {"Authorization": "Attempt wrong"},
        {"Authorization": f"Bearer {held.assign.token}"},
        {"Authorization": "Attempt " + "\u00e9" * 9},
        {"Authorization": ""},
        {"Authorization": "", **held.api.who},  # an administrator's login is no attempt's token
    ):
        for method, path in (("GET", "inputs"), ("GET", "inputs/a.scene"), ("PUT", "outputs/frame_0001.png")):
            data = b"x" if method == "PUT" else None
            assert (await held.call(method, path, headers=headers, data=data)).status == 404, (headers, path)
    assert (await held.api.call("GET", "/attempts/1/inputs", who={}, headers=held.headers)).status == 404
    assert (await held.api.call("GET", f"/attempts/{held.assign.attempt}/log", who={})).status == 401
    assert held.api.tree() == before


async def test_result_that_was_sent_lands(held: Held) -> None:
    assign, data = held.assign, b"a picture"
    assert (await held.send("frame_0001.png", data)).status == 204
    assert (await held.send("frame_0001.png", data)).status == 204  # its answer was lost
    about = (len(data), hashlib.blake2b(data, digest_size=32).hexdigest(), 0)
    await held.report(
        Started(1, assign.attempt, assign.token, 1, 1),
        Result(2, assign.attempt, assign.token, 1, "frame_0001.png", *about),
        Exited(3, assign.attempt, assign.token, 2, "succeeded", 0),
    )
    task = (await held.api.call("GET", f"/tasks/{assign.task}")).json()
    assert task["status"] == "succeeded"
    fetched = await held.api.call("GET", f"/tasks/{assign.task}/results/frame_0001.png")
    assert fetched.body == data
    assert [one["name"] for one in (await listed_again(held))] == ["a.scene"]


async def listed_again(held: Held) -> list[dict[str, Any]]:
    """The inputs, after somebody has taken their rows away, as in a task of the existing system."""
    engine = create_engine(held.api.settings.connection_string.replace("mysql://", "mysql+pymysql://"))
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM inputs"))
        connection.execute(text("UPDATE attempts SET state = 'running', outcome = NULL"))
    listed = (await held.call("GET", "inputs")).json()["files"]
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT COUNT(*) FROM inputs")) == len(listed)
    engine.dispose()
    return list(listed)


@pytest.mark.parametrize(
    "name",
    [
        *("..%2F..%2Fx.png", "%2Fetc%2Fx.png", "a/../../x.png", "a%5Cb.png", "a/./b.png", "%00.png", "new%0Aline.png"),
        *("x" * 300, "a/" * 20 + "b.png", ".landing-1", "..", "link/x.png"),
    ],
)
async def test_hostile_names_of_results_are_refused(free: Held, name: str) -> None:
    """A machine's scene can be anybody's: no name leads out of the attempt's directory, and no link is followed."""
    outside = free.api.settings.files.parent / "outside"
    outside.mkdir()
    free.directory.mkdir(parents=True)
    (free.directory / "link").symlink_to(outside)
    before = free.api.tree()
    url = f"{free.api.url}/renderapi/v2/attempts/{free.assign.attempt}/outputs/{name}"
    headers = {**free.headers, "X-Digest": hashlib.blake2b(b"x", digest_size=32).hexdigest()}
    async with free.api.http.put(aiohttp.client.URL(url, encoded=True), data=b"x", headers=headers) as answer:
        assert answer.status in (400, 404, 405), await answer.text()
    assert free.api.tree() == before
    assert list(outside.iterdir()) == []


async def test_names_that_differ_in_case_are_two_results(free: Held) -> None:
    for name, data in (("A.png", b"one"), ("a.png", b"other"), ("deep/er/a.png", b"third")):
        assert (await free.send(name, data)).status == 204
    assert (free.directory / "A.png").read_bytes() == b"one"
    assert (free.directory / "a.png").read_bytes() == b"other"
    assert (free.directory / "deep" / "er" / "a.png").read_bytes() == b"third"


async def raw_put(held: Held, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection over which the head of a PUT went."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(held.api.url.rpartition(":")[2]))
    head = f"PUT /renderapi/v2/attempts/{held.assign.attempt}/outputs/frame_0001.png HTTP/1.1\r\nHost: x\r\n"
    head += f"Authorization: {held.headers['Authorization']}\r\nX-Digest: {'0' * 64}\r\n"
    writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode())
    return reader, writer


async def test_refused_result_leaves_nothing(held: Held) -> None:
    held.directory.mkdir(parents=True)
    before = held.api.tree()

    async def unknown_length() -> AsyncIterator[bytes]:
        yield b"x"

    replies = [
        await held.send("frame_0002.png", b"x"),  # not a frame of this attempt
        await held.send("frame_0001.png", b"x", **{"X-Digest": "0" * 64}),
        await held.send("frame_0001.png", b"x", **{"X-Digest": "short"}),
        await held.call("PUT", "outputs/frame_0001.png", data=unknown_length(), headers={"X-Digest": "0" * 64}),
    ]
    assert [reply.status for reply in replies] == [400, 400, 400, 400]
    assert [reply.json()["code"] for reply in replies[:2]] == ["not_wanted", "wrong_digest"]
    reader, writer = await raw_put(held, 1000)
    writer.write(b"half")
    await writer.drain()

    async def begun() -> bool:
        return held.api.tree() != before

    await wait_until(begun)
    writer.close()
    await reader.read()

    async def nothing_left() -> bool:
        return held.api.tree() == before

    await wait_until(nothing_left)


async def test_machine_that_goes_away_leaves_nothing_of_a_result(held: Held) -> None:
    held.directory.mkdir(parents=True)
    before, content = held.api.tree(), b"x" * 3_000_000

    async def begun() -> bool:
        return held.api.tree() != before

    async def nothing_left() -> bool:
        return held.api.tree() == before

    for sent in (1, 1_500_000, len(content) - 1):
        for reset in (False, True):
            _, writer = await raw_put(held, len(content))
            writer.write(content[:sent])
            await writer.drain()
            await wait_until(begun)
            if reset:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.close()
            await wait_until(nothing_left)


async def test_disk_that_fills_up_leaves_nothing_of_a_result(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    held.directory.mkdir(parents=True)
    before, write, room = held.api.tree(), os.write, 2_000_000

    def until_full(handle: int, data: memoryview) -> int:
        nonlocal room
        room -= len(data)
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(bodies.os, "write", until_full)
    reply = await held.send("frame_0001.png", b"x" * 3_000_000)
    monkeypatch.undo()
    assert (reply.status, reply.json()["code"]) == (507, "no_space")
    assert held.api.tree() == before
    assert (await held.send("frame_0001.png", b"x" * 3_000_000)).status == 204


async def test_full_disk_is_told_before_anything_is_sent(held: Held) -> None:
    """507: the machine hands the attempt back."""
    reader, writer = await raw_put(held, 10**17)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert b" 507 " in answer
    writer.close()


async def test_nothing_is_taken_when_the_attempt_is_over(held: Held) -> None:
    await held.exit()
    reply = await held.send("frame_0001.png", b"x")
    assert (reply.status, json.loads(reply.body)["code"]) == (409, "attempt_over")
    assert (await held.call("GET", "inputs")).status == 409

    async def gone() -> bool:
        return not held.directory.exists()

    await wait_until(gone)


async def test_nothing_is_told_of_a_deleted_task(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_STOPPING_S", 0.1)  # this machine never says that it has stopped
    assert (await held.api.call("DELETE", f"/tasks/{held.assign.task}")).status == 204
    assert (await held.call("GET", "inputs")).status == 404
    assert (await held.send("frame_0001.png", b"x")).status == 404


async def test_machine_sends_no_more_files_besides_than_an_attempt_may_have(
    api: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it reports them or not."""
    definition = DEFINITION.replace('frame_####.png"\n', 'frame_####.png"\n[outputs.more]\ntake = ["*"]\n')
    monkeypatch.setattr(landings, "Bounds", lambda rules: Bounds(replace(rules, files=2)))
    place, jpeg = "previews/{}?size=thumb", b"\xff\xd8\xff"
    async with held_attempt(api, definition, ("a.scene", SCENE)) as held:
        for _ in range(2):
            assert (await held.send("mask/a.txt", b"x")).status == 204
        for name, status in (("mask/a.txt", 204), ("b.png", 204), ("c.png", 400), ("frame_0001.png", 204)):
            assert (await held.call("PUT", place.format(name), data=jpeg)).status == status, name
        refused = await held.send("d.txt", b"x")
        assert (refused.status, "beyond the 2 files of an attempt" in refused.json()["detail"]) == (400, True)
        assert (await held.send("frame_0001.png", b"x")).status == 204


async def test_preview_of_a_frame_that_another_attempt_landed_stays(held: Held) -> None:
    """A lost attempt may still send what is missing (R5.5 Late results), and nothing else (R14 Authority first)."""
    data, assign = b"the frame", held.assign
    digest = hashlib.blake2b(data, digest_size=32).hexdigest()
    assert (await held.send("frame_0001.png", data)).status == 204
    about = (assign.attempt, assign.token, 1, "frame_0001.png", len(data), digest, zlib.crc32(data))
    await held.report(Started(1, assign.attempt, assign.token, 1, 1), Result(2, *about, 1))
    place, theirs = "previews/frame_0001.png?size=thumb", b"\xff\xd8\xffnot what landed"
    assert (await held.call("PUT", place, data=b"\xff\xd8\xffits own")).status == 204
    engine = create_engine(held.api.settings.connection_string.replace("mysql://", "mysql+pymysql://"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE results SET attempt_id = attempt_id + 1"))
    engine.dispose()
    assert (await held.call("PUT", place, data=theirs)).status == 409
    seen = await held.api.call("GET", f"/tasks/{assign.task}/{place}")
    assert seen.body == b"\xff\xd8\xffits own"


async def test_disk_is_never_asked_for_previews_on_the_event_loop(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, asked, exists = threading.get_ident(), list[bool](), Path.exists

    def noted(path: Path, **more: Any) -> bool:
        if "previews" in path.parts:
            asked.append(threading.get_ident() == loop)
        return exists(path, **more)

    monkeypatch.setattr(Path, "exists", noted)
    data, assign = b"the frame", held.assign
    digest = hashlib.blake2b(data, digest_size=32).hexdigest()
    assert (await held.call("PUT", "previews/frame_0001.png?size=thumb", data=b"\xff\xd8\xff")).status == 204
    assert (await held.send("frame_0001.png", data)).status == 204
    about = (assign.attempt, assign.token, 1, "frame_0001.png", len(data), digest, zlib.crc32(data))
    await held.report(Started(1, assign.attempt, assign.token, 1, 1), Result(2, *about, 1))
    landed = len(asked)
    assert landed
    results = (await held.api.call("GET", f"/tasks/{assign.task}/results")).json()["items"]
    task = (await held.api.call("GET", f"/tasks/{assign.task}")).json()
    assert [one["preview"] for one in (*results, task["latest"])] == [True, True]
    assert len(asked) == landed + 2
    assert not any(asked)
