"""Bodies of megabytes: who sends them takes neither the memory nor the time of others (R14 Authority first)."""

import base64
import contextlib
import http.client
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.neighbours import p99, spared, waits
from tests.support.renderapi import Running, renderapi
from tests.support.uploading import SCRIBE, Uploader

MIB = 1024 * 1024
MOST_GROWN: int = 200 * MIB
TRIES = 3
"""The slowest of a hundred answers may be slow for a reason of its own, on a machine with two processors."""


@pytest.fixture(name="api")
async def _api(tmp_path: Path) -> AsyncIterator[Running]:
    async with renderapi(tmp_path / "data") as running:
        assert (await running.call("POST", "/engines", {"definition": SCRIBE})).status == 201
        yield running


def resident() -> int:
    """Bytes of memory of this process, in which RenderAPI runs."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def growing() -> Iterator[list[int]]:
    """The most memory that was used meanwhile, beyond what was used before."""
    before, ended, most = resident(), threading.Event(), [0]

    def watch() -> None:
        while not ended.wait(0.02):
            most[0] = max(most[0], resident() - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield most
    finally:
        ended.set()
        watching.join()


def listed(count: int) -> bytes:
    files = [{"name": f"shot/textures/{'x' * 60}_{number}.png", "size": 0, "digest": ""} for number in range(count)]
    return json.dumps({"files": files}).encode()


def in_chunks(size: int) -> bytes:
    """A file whose chunks are announced with so many bytes."""
    count = size * 3 // 4 // 36
    chunks = base64.b64encode((bytes(32) + (1024).to_bytes(4, "little")) * count).decode()
    return json.dumps({"files": [{"name": "a.txt", "size": 1024 * count, "chunks": chunks}]}).encode()


BODIES = {
    "objects": (b'{"files":[' + b'{"a":1},' * (28 * MIB // 8) + b"{}]}", {0, 400, 422}),
    "chunks": (in_chunks(28 * MIB), {201}),
}


@pytest.mark.parametrize("kind", BODIES)
async def test_four_large_bodies_leave_others_their_time_and_memory(api: Running, kind: str) -> None:
    body, statuses = BODIES[kind]
    senders = [await api.new_user(f"{number}@example.org") for number in range(4)]

    async def me() -> None:
        assert (await api.call("GET", "/me")).status == 200

    await waits(me, 50)
    with growing() as most, ThreadPoolExecutor(len(senders)) as threads:
        for _ in range(TRIES):
            before, during = await waits(me, 100), list[float]()
            sending = [threads.submit(send, api.url, who, body) for who in senders]
            while not all(one.done() for one in sending):
                during += await waits(me, 1)
            during += await waits(me, 20)
            assert {one.result() for one in sending} <= statuses
            if not (told := spared(before, during, p99)):
                break
    assert told == ""
    assert most[0] <= MOST_GROWN


def send(url: str, who: Mapping[str, str], body: bytes) -> int:
    """The status of an announcement, not sent in the loop that RenderAPI has here; 0: it was refused before all of it
    was sent."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port)
    headers = {"Content-Type": "application/json", **who}
    with contextlib.closing(connection), contextlib.suppress(ConnectionError):
        connection.request("POST", "/renderapi/v2/uploads", body, headers)
        return connection.getresponse().status
    return 0


async def test_a_list_of_a_hundred_thousand_files_is_taken(api: Running) -> None:
    mine, body = Uploader(api), listed(100_000)
    headers = {"Content-Type": "application/json"}
    reply = await mine.call("POST", "/uploads", data=body, headers=headers)
    assert reply.status == 201, reply.body[:500]
    upload = reply.json()
    assert (len(upload["files"]), upload["complete"]) == (100_000, True)
    assert upload["files"][99_999] == {"name": f"shot/textures/{'x' * 60}_99999.png", "size": 0, "offset": 0}
    assert await mine.look(upload["upload_id"]) == upload
    more = await mine.call("POST", "/uploads", data=listed(100_001), headers=headers)
    assert (more.status, more.json()["code"]) == (422, "unfit")


async def test_what_is_no_list_of_files_is_refused_and_leaves_nothing(api: Running) -> None:
    mine, filler = Uploader(api), b" " * 300_000
    bodies: list[tuple[bytes, int]] = [
        (b"[" * 300_000, 400),
        (filler + b"{", 400),
        (filler + b'{"files": 5}', 400),
        (filler + b'{"files": []}', 422),
        (filler + b'{"files": [{"name": "../a", "size": 1}]}', 422),
        (filler + b'{"files": [{"name": "a", "size": 5, "chunks": "AAAA"}]}', 422),
        (b" " * (33 * MIB), 413),
    ]
    for body, status in bodies:
        for length in (len(body), None):
            data: Any = body if length else _chunked(body)
            reply = await mine.call("POST", "/uploads", data=data, headers={"Content-Type": "application/json"})
            assert reply.status == status, (body[:10], body[-60:], reply.body)
            assert reply.json()["detail"]
    assert api.tree() == []
    assert list((api.settings.files / ".incoming").iterdir()) == []


async def _chunked(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 65536):
        yield body[at : at + 65536]
