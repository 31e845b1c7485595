"""Clients that mean harm, or die: refused with a plain answer, and nothing of theirs stays."""

import asyncio
import errno
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest

from renderonline.renderapi.memory import Memory
from renderonline.serving import deadlines
from renderonline.storage import names
from tests.support.renderapi import Running, renderapi, wait_until

REQUEST = json.dumps({"EngineId": 1, "Arguments": []}).encode()
V1 = "/renderapi/v1/enqueue"


@pytest.fixture(name="api")
async def _api(tmp_path: Path) -> AsyncIterator[Running]:
    async with renderapi(tmp_path / "data") as running:
        yield running


def part(head: str, content: bytes) -> bytes:
    return f"--B\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"


def multipart(file_name: str = "a.blend", content: bytes = b"scene", request: bytes = REQUEST) -> bytes:
    return part('name="request"', request) + part(f'name="file"; filename="{file_name}"', content) + b"--B--\r\n"


def head(api: Running, length: int | None, path: str = V1, *more: str, token: str | None = None) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"email: {api.who['email']}",
        f"token: {api.who['token'] if token is None else token}",
        "Content-Type: multipart/form-data; boundary=B",
        "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}",
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def connect(api: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(api.url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer."""
    async with asyncio.timeout(20):
        top = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next((int(line[15:]) for line in top.split("\r\n") if line.startswith("content-length:")), 0)
        return int(top.split()[1]), await reader.readexactly(length)


async def post(api: Running, body: bytes, path: str = V1) -> tuple[int, str]:
    """A whole request; the answer's status and message."""
    reader, writer = await connect(api)
    writer.write(head(api, len(body), path) + body)
    status, content = await answer(reader)
    writer.close()
    told = json.loads(content)
    return status, told.get("ErrorMessage") or told.get("detail") or ""


async def unchanged(api: Running, before: list[str]) -> None:
    """Nothing is stored but what was there; removing happens right after the answer or the end of the connection."""
    async with asyncio.timeout(10):
        while api.tree() != before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert list((api.settings.files / names.INCOMING).glob("*")) == []
    assert (await api.call("GET", "/tasks")).json()["items"] == []


async def test_file_names_never_leave_the_tasks_directory(api: Running, tmp_path: Path) -> None:
    hostile = [
        "../../../evil.blend",
        "/tmp/evil.blend",
        "..\\\\evil.blend",
        "C:\\\\evil.blend",
        "..//evil.blend",
        "-o.blend",
    ]
    for number, name in enumerate(hostile, 1):
        status, _ = await post(api, multipart(name))
        assert status == 200
        files = [path for path in api.tree() if path.endswith(".blend")]
        assert len(files) == number
        assert all(len(Path(path).parts) == 3 for path in files)
    outside = {path for path in tmp_path.parent.rglob("*evil*") if not path.is_relative_to(api.settings.files)}
    assert outside == set()


BROKEN = [
    multipart()[:-8],
    multipart()[:-30],
    multipart().replace(b"--B", b"--Z"),
    b"",
    b"--B--\r\n",
    b"\0" * 1000,
    part('name="request"', REQUEST)
    + b'--B\r\nContent-Disposition: form-data; name="f"; filename="a.blend"\r\n'
    + b"X: y\r\n" * 5000
    + b"\r\nx\r\n--B--\r\n",
    part('name="request"', b"x" * 70_000) + part('name="f"; filename="a.blend"', b"x") + b"--B--\r\n",
    part('name="request"', REQUEST) * 2 + part('name="f"; filename="a.blend"', b"x") + b"--B--\r\n",
    multipart(request=b'{"EngineId": 1, "Arguments": [' + b"[" * 30_000),
    multipart(request=b'{"EngineId": 1, "Arguments": [{"ArgTypeId": "start_frame", "Value": "\\ud800"}]}'),
    multipart("a.exe"),
    multipart("a"),
]


async def test_broken_bodies_are_refused_and_leave_nothing(api: Running) -> None:
    for body in BROKEN:
        for path in (V1, "/renderapi/v2/tasks"):
            status, message = await post(api, body, path)
            assert status in (400, 413), (body[:200], status, message)
            assert message
    await unchanged(api, [])


async def test_wrong_token_is_answered_before_the_body_is_read(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "LINGER_S", 0.2)
    for path in (V1, "/renderapi/v2/tasks", "/renderapi/v2/users"):
        reader, writer = await connect(api)
        writer.write(head(api, 2 * 1024**3, path, token="wrong") + b"--B\r\n")
        status, _ = await answer(reader)
        assert status == 401
        async with asyncio.timeout(deadlines.LINGER_S + 5):
            assert await reader.read() == b""  # closed, although almost nothing of the body was sent
        writer.close()


async def test_client_that_asks_first_sends_nothing_in_vain(api: Running) -> None:
    reader, writer = await connect(api)
    writer.write(head(api, 2 * 1024**3, V1, "Expect: 100-continue", token="wrong"))
    status, _ = await answer(reader)
    assert status == 401  # and not 100
    writer.close()


async def test_answer_arrives_although_the_client_is_still_sending(api: Running) -> None:
    """A reset would throw the answer away before the client has read it."""
    body = multipart(content=b"x" * 8_000_000, request=b'{"EngineId": 99, "Arguments": []}')
    assert await post(api, body) == (400, "Engine with identifier 99 not found.")
    await unchanged(api, [])


async def test_big_json_body_is_refused(api: Running) -> None:
    reply = await api.call("POST", "/users", {"email": "a" * 300_000})
    assert (reply.status, reply.json()["code"]) == (413, "too_large")
    reader, writer = await connect(api)
    writer.write(
        head(api, None, "/renderapi/v2/users").replace(b"multipart/form-data; boundary=B", b"application/json")
    )
    for _ in range(8):
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    status, _ = await answer(reader)
    assert status in (400, 413)
    writer.close()


async def test_endless_headers_are_refused(api: Running) -> None:
    big = b"X-Big: " + b"a" * 1_000_000
    for headers in (b"X-A: b\r\n" * 5_000, big + b"\r\n", big):
        reader, writer = await connect(api)
        writer.write(b"GET /renderapi/v1/info HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
        status, _ = await answer(reader)
        assert status in (400, 431)
        writer.close()


@pytest.mark.parametrize("reset", [False, True])
async def test_client_that_goes_away_leaves_nothing(api: Running, reset: bool) -> None:
    for sent in (1, 400, 3_000_000):
        await go_away(api, sent, reset=reset)


async def go_away(api: Running, sent: int, *, reset: bool) -> None:
    body = multipart(content=b"x" * 6_000_000)
    _, writer = await connect(api)
    writer.write(head(api, len(body)) + body[:sent])
    await writer.drain()
    if sent > 1_000:
        async with asyncio.timeout(10):
            while not any(path.endswith("/data/0") for path in api.tree()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    if reset:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()
    else:
        writer.close()
    await unchanged(api, [])


async def test_body_that_stalls_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "WATCH_S", 0.05)
    monkeypatch.setattr(deadlines, "BODY_WINDOW_S", 0.3)
    monkeypatch.setattr(deadlines, "HEADER_S", 0.3)
    async with renderapi(tmp_path / "data") as api:
        body = multipart(content=b"x" * 6_000_000)
        starts = {"nothing": b"", "half a header": head(api, 5)[:50], "half a body": head(api, len(body)) + body[:9000]}
        connections = {name: await connect(api) for name in starts}
        for name, (_, writer) in connections.items():
            writer.write(starts[name])
        for reader, writer in connections.values():
            async with asyncio.timeout(10):
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1)
            writer.close()
        await unchanged(api, [])


async def test_full_disk_is_told_and_leaves_nothing(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    write = os.write

    def until_full(handle: int, data: memoryview) -> int:
        nonlocal written
        written += len(data)
        if written > 2_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(os, "write", until_full)
    status, message = await post(api, multipart(content=b"x" * 6_000_000))
    assert (status, message.split(";")[0]) == (507, "The server's disk is full")
    monkeypatch.undo()
    await unchanged(api, [])
    assert (await post(api, multipart()))[0] == 200


async def test_upload_larger_than_the_disk_is_refused_before_it_is_read(api: Running) -> None:
    for path in (V1, "/renderapi/v2/tasks"):
        reader, writer = await connect(api)
        writer.write(head(api, 2**55, path))
        status, _ = await answer(reader)
        assert status == 507
        writer.close()
    await unchanged(api, [])


@pytest.mark.parametrize("length", [True, False])
async def test_upload_over_the_limit_is_refused(tmp_path: Path, length: bool) -> None:
    async with renderapi(tmp_path / "data", max_upload_mib=1) as api:
        body = multipart(content=b"x" * 3_000_000)
        reader, writer = await connect(api)
        writer.write(head(api, len(body) if length else None))
        writer.write(body if length else b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        status, _ = await answer(reader)
        assert status == 413
        writer.close()
        await unchanged(api, [])


async def test_killed_uploads_are_swept_up_at_the_next_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with renderapi(data) as api:
        assert (await post(api, multipart()))[0] == 200
        kept = api.tree()
        files = api.settings.files
    # What a SIGKILL in the middle of two uploads leaves; and one whose commit came just before it.
    orphan = names.make_task_directory(files, 1, 5)
    (orphan / "half.blend").write_bytes(b"x")
    (names.incoming_directory(files) / "ab.part").write_bytes(b"x")
    committed = files / kept[1]
    (files / names.INCOMING / f"1-{committed.name}.mark").touch()
    async with renderapi(data) as api:
        assert api.tree() == kept
        assert list((files / names.INCOMING).iterdir()) == []
        assert (await api.call("GET", "/tasks/1/download")).status == 200


async def test_refused_commit_leaves_nothing(api: Running) -> None:
    """The last task to wait for is unknown: only the transaction finds out."""
    reply = await api.submit({"engine": "blender", "waits_for": [99]}, ("a.blend", b"x"), version=2)
    assert (reply.status, reply.json()["detail"]) == (400, "There is no task 99 of yours to wait for.")
    await unchanged(api, [])


@pytest.mark.parametrize("version", [1, 2])
async def test_fault_after_the_commit_keeps_the_committed_scene(
    api: Running, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Memory, "add_task", Mock(side_effect=RuntimeError("memory")))
        request = {"EngineId": 1, "Arguments": []} if version == 1 else {"engine": "blender"}
        assert (await api.submit(request, ("a.blend", b"scene"), version=version)).status == 500
    assert [path for path in api.tree() if path.endswith("a.blend")]
    await wait_until(lambda: no_marks(api))
    assert (await api.call("GET", "/tasks/1/download")).status == 200


async def no_marks(api: Running) -> bool:
    """Whether every directory of a task is known to be committed."""
    return not list((api.settings.files / names.INCOMING).glob("*"))


async def test_paths_lead_nowhere(api: Running) -> None:
    for path in ("/renderapi/v1/../v1/info", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/renderapi/v2/..%2fx"):
        reader, writer = await connect(api)
        writer.write(head(api, 0).replace(f"POST {V1}".encode(), f"GET {path}".encode()))
        status, _ = await answer(reader)
        assert status == 404
        writer.close()


async def test_result_names_can_t_escape(api: Running) -> None:
    await api.submit({"engine": "blender"}, ("a.blend", b"x"), version=2)
    for name in ("../a.blend", "..%2fa.blend", "%2fetc%2fpasswd", "a.blend"):
        reply = await api.call("GET", f"/tasks/1/results/{name}")
        assert reply.status == 404
