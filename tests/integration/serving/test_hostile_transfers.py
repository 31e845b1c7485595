"""Large and broken transfers against a real RenderAPI process: plain answers, nothing left, work goes on.

Cases 3 to 7, 10 and 12 of the notes on transfers; bodies are over a megabyte, so that a worker thread reads them.
"""

import base64
import contextlib
import hashlib
import http.client
import io
import os
import random
import resource
import selectors
import socket
import statistics
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from tests.support.farm import RealFarm, wait_until
from tests.support.hostile import (
    BIG,
    ENGINE,
    REQUEST,
    TASKS,
    answer,
    connect,
    count,
    form,
    head,
    offset,
    part,
    patch,
    post,
    taken,
    tree,
    unchanged,
    upload,
)


@pytest.fixture(name="farm", scope="module")
def _farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFarm]:
    with RealFarm(tmp_path_factory.mktemp("farm")) as running:
        running.client.admin.add_engine(ENGINE)
        yield running


BROKEN = {
    "nine headers": b"--B\r\n" + b"X-Y: 1\r\n" * 9 + b"\r\n" + BIG + b"\r\n--B--\r\n",
    "a long header": b"--B\r\nX-Y: " + b"x" * 5000 + b"\r\n\r\n" + BIG + b"\r\n--B--\r\n",
    "a header of 1 MB": b"--B\r\nX-Y: " + b"x" * 1_000_000 + b"\r\n\r\nx\r\n--B--\r\n",
    "10,000 headers": b"--B\r\n" + b"X-Y: 1\r\n" * 10_000 + b"\r\nx\r\n--B--\r\n",
    "another boundary": form().replace(b"--B", b"--C"),
    "no end boundary": form(end=b""),
    "half an end boundary": form(end=b"--B-"),
    "no line before the boundary": form().replace(b"\r\n--B--", b"--B--"),
    "junk after the end": form() + b"junk" * 300_000,
    "no content at all": b"",
    "two files": form(BIG, part('name="file"; filename="b.bin"', BIG)),
    "many parts": form(BIG, *[part(f'name="x{number}"', b"") for number in range(100)]),
    "a field of 65 KiB": form(BIG, part('name="x"', b"x" * 66_000)),
    "two requests": form(BIG, part('name="request"', REQUEST)),
    "no request": part('name="file"; filename="big.bin"', BIG) + b"--B--\r\n",
    "a file of no engine": form(name="big.blend"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_form_is_refused_with_a_reason_and_costs_and_leaves_nothing(farm: RealFarm, what: str) -> None:
    before, tasks, spent = tree(farm), count(farm), []
    for _ in range(3):
        begun = processor_time(farm)
        status, told = post(farm, BROKEN[what])
        spent.append(processor_time(farm) - begun)
        assert status in (400, 413, 422), told
        assert told["detail"]
        assert told["code"]
    assert min(spent) < 0.05, spent  # of the processor, whoever else works there
    unchanged(farm, before, tasks)


def processor_time(farm: RealFarm) -> float:
    """What RenderAPI's threads, ended ones too, have used of the processors, in seconds to the nanosecond (Linux)."""
    return time.clock_gettime(~farm.renderapi.process.pid << 3 | 2)


@pytest.mark.parametrize("boundary", ["", "; boundary=", f"; boundary={'B' * 71}"])
def test_boundary_that_is_none_is_refused(farm: RealFarm, boundary: str) -> None:
    before, tasks = tree(farm), count(farm)
    assert post(farm, form(), f"Content-Type: multipart/form-data{boundary}")[0] == 400
    unchanged(farm, before, tasks)


@pytest.mark.parametrize("seed", range(4))
def test_form_in_any_pieces_is_stored_byte_by_byte(farm: RealFarm, seed: int) -> None:
    chance = random.Random(seed)
    tricky = b"".join(chance.choice([b"\r\n--", b"\r\n--B", b"--B--\r", b"\r\n-", BIG[:70_000]]) for _ in range(60))
    body = form(tricky.replace(b"\r\n--B", b"\r\n--b") + BIG, part('name="last"', b"x"))
    with connect(farm) as connection:
        connection.sendall(head(farm, len(body)))
        start = 0
        while start < len(body):
            end = start + chance.choice([1, 100, 65_536, 400_000])
            connection.sendall(body[start:end])
            start = end
        status, task = answer(connection)
    assert status == 201
    (path,) = (farm.data / "files").glob(f"*/*/{task['file_name']}")
    assert path.read_bytes() == tricky.replace(b"\r\n--B", b"\r\n--b") + BIG
    inputs = farm.client.connection.call("GET", f"/tasks/{task['task_id']}").json()
    assert inputs["file_size"] == path.stat().st_size
    farm.client.delete(task["task_id"])


def test_file_larger_than_the_disk_is_refused_before_a_byte_is_read(farm: RealFarm) -> None:
    before, tasks = tree(farm), count(farm)
    for more in (("Expect: 100-continue",), ()):
        with connect(farm) as connection:
            sent = head(farm, 10**15, *more)
            connection.sendall(sent)
            assert answer(connection)[0] == 507  # no 100 before it, and no body was needed
            assert taken(connection) == len(sent) + 1  # the kernel counts the connection's beginning
    unchanged(farm, before, tasks)


def test_full_disk_is_told_and_what_comes_next_works(farm: RealFarm) -> None:
    """The limit of a file's size stands for a full disk: the same error at the same place."""
    before, tasks, pid = tree(farm), count(farm), farm.renderapi.process.pid
    digest = blake3(BIG[:1_000_000]).digest()
    chunks = base64.b64encode((digest + struct.pack("<I", 1_000_000)) * 8).decode()
    packed = upload(farm, 8_000_000, chunks=chunks)
    appended = upload(farm, len(BIG))
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (2_500_000, limits[1]))
    try:
        status, told = post(farm, form())
        assert (status, told["code"]) == (507, "no_space")
        with connect(farm) as connection:
            connection.sendall(patch(farm, appended, 0, len(BIG)) + BIG)
            status, told = answer(connection)
        assert (status, told["code"]) == (507, "no_space")
        records = b"".join(struct.pack("<II", 0, number) + BIG[:1_000_000] for number in (3, 4))
        path = f"/renderapi/v2/uploads/{packed}/pack"
        with connect(farm) as connection:
            connection.sendall(head(farm, len(records), path=path, method="PUT") + records)
            status, told = answer(connection)
        assert (status, told["code"]) == (507, "no_space")
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    there = offset(farm, appended)
    assert 0 < there <= 2_500_000
    with connect(farm) as connection:
        connection.sendall(patch(farm, appended, there, len(BIG) - there) + BIG[there:])
        assert answer(connection)[0] == 204
    assert offset(farm, appended) == len(BIG)
    for number in (packed, appended):
        farm.client.connection.call("DELETE", f"/uploads/{number}")
    unchanged(farm, before, tasks)
    status, task = post(farm, form())
    assert status == 201
    farm.client.delete(task["task_id"])


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", [1, 200, 1_500_000, -1])
def test_client_that_goes_away_leaves_nothing_of_a_form(farm: RealFarm, sent: int, reset: bool) -> None:
    before, tasks, body = tree(farm), count(farm), form()
    with connect(farm) as connection:
        connection.sendall(head(farm, len(body)) + body[:sent])
        if sent != 1:
            wait_until(lambda: tree(farm) != before, "file that has begun")
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    unchanged(farm, before, tasks)


@pytest.mark.parametrize("reset", [False, True])
def test_client_that_goes_away_finds_what_it_had_sent(farm: RealFarm, reset: bool) -> None:
    before, tasks = tree(farm), count(farm)
    number, there = upload(farm, len(BIG)), 0
    for cut in (1, len(BIG) // 2, len(BIG) - 1):
        with contextlib.ExitStack() as stack:
            connection = wait_until(lambda: begun(farm, stack, number, there, cut), f"offset {cut}")  # noqa: B023
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        there = cut
    wait_until(lambda: accepted(farm, number, there), "the last byte taken")
    assert farm.client.connection.call("GET", f"/uploads/{number}").json()["complete"]
    farm.client.connection.call("DELETE", f"/uploads/{number}")
    unchanged(farm, before, tasks)


def begun(farm: RealFarm, stack: contextlib.ExitStack, number: str, there: int, cut: int) -> socket.socket | None:
    """A connection over which bytes came up to `cut`; None while RenderAPI has not noticed the end of another."""
    connection = stack.enter_context(connect(farm))
    connection.sendall(patch(farm, number, there, len(BIG) - there) + BIG[there:cut])
    refused = selectors.DefaultSelector()
    refused.register(connection, selectors.EVENT_READ)
    with refused:
        while offset(farm, number) != cut:
            if refused.select(0.02):
                assert answer(connection)[0] == 409
                return None
    return connection


def accepted(farm: RealFarm, number: str, there: int) -> bool:
    """The rest is taken as soon as RenderAPI has noticed that the other connection is gone."""
    with connect(farm) as connection:
        connection.sendall(patch(farm, number, there, len(BIG) - there) + BIG[there:])
        return answer(connection)[0] == 204


def test_killed_in_the_middle_of_uploads_it_keeps_what_can_go_on_and_sweeps_the_rest(tmp_path: Path) -> None:
    with RealFarm(tmp_path) as farm:
        farm.client.admin.add_engine(ENGINE)
        before, number = tree(farm), upload(farm, len(BIG))
        body = form()
        with connect(farm) as one, connect(farm) as other:
            one.sendall(head(farm, len(body)) + body[:-1])
            other.sendall(patch(farm, number, 0, len(BIG)) + BIG[:2_000_000])
            wait_until(lambda: offset(farm, number) == 2_000_000, "two thirds of the upload")
            wait_until(lambda: len(BIG) in tree(farm).values(), "file that is nearly there")
            farm.supervisor.forget(farm.renderapi)
            farm.renderapi.process.kill()
            farm.renderapi.process.wait()
        farm.start_renderapi()
        assert count(farm) == 0
        assert offset(farm, number) == 2_000_000
        assert len(BIG) not in tree(farm).values()
        with connect(farm) as connection:
            connection.sendall(patch(farm, number, 2_000_000, 1_000_000) + BIG[2_000_000:])
            assert answer(connection)[0] == 204
        submitted = {"engine": "nothing", "upload": number}
        task = farm.client.connection.call("POST", "/tasks", data=submitted).json()
        (path,) = (farm.data / "files").glob(f"*/*/{task['file_name']}")
        assert path.read_bytes() == BIG
        farm.client.delete(task["task_id"])
        unchanged(farm, before, 0)


@pytest.mark.timeout(180)
def test_five_hundred_stalled_clients_are_closed_and_hold_nobody_up(farm: RealFarm) -> None:
    before, tasks = tree(farm), count(farm)
    number, body = upload(farm, len(BIG)), form()
    idle = _latency(farm)
    starts = [
        b"POST /renderapi/v2/tasks HTTP/1.1\r\nHost: x\r\nX: ",
        b"",
        head(farm, len(body)) + body[:2000],
        head(farm, len(body)) + body[:1_200_000],
        patch(farm, number, 0, len(BIG)) + BIG[:10],
    ]
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(connect(farm)) for _ in range(500)]
        with selectors.DefaultSelector() as selector:
            for place, connection in enumerate(stalled):
                connection.sendall(starts[place % len(starts)])
                selector.register(connection, selectors.EVENT_READ)
            wait_until(lambda: len(tree(farm)) >= len(before) + 400, "folder and file of every form that has begun")
            busy = _latency(farm)
            assert busy < 3 * idle + 0.05
            deadline = time.monotonic() + 90  # 20 s for headers, windows of 30 s for bodies, a look every 5 s
            while selector.get_map() and time.monotonic() < deadline:
                for key, _ in selector.select(1):
                    with contextlib.suppress(ConnectionResetError):
                        if key.fileobj.recv(1000):  # type: ignore[union-attr]
                            continue
                    selector.unregister(key.fileobj)
                for connection in stalled[3::50]:  # some send a byte now and then
                    with contextlib.suppress(OSError):
                        connection.send(b"x")
            assert not selector.get_map()
    farm.client.connection.call("DELETE", f"/uploads/{number}")
    unchanged(farm, before, tasks)


def _latency(farm: RealFarm) -> float:
    """The slowest but one of 100 requests in seconds, in the best of five rounds: other programs work here too."""
    rounds = []
    for _ in range(5):
        taken = []
        for _ in range(100):
            begun = time.perf_counter()
            farm.client.me()
            taken.append(time.perf_counter() - begun)
        rounds.append(statistics.quantiles(taken, n=100)[-1])
    return min(rounds)


@pytest.fixture(name="task", scope="module")
def _task(farm: RealFarm) -> Iterator[tuple[int, Path]]:
    """A task with files of every sort beside its scene, and its directory."""
    status, task = post(farm, form(b"scene"))
    assert status == 201
    (scene,) = (farm.data / "files").glob(f"*/*/{task['file_name']}")
    for name, content in {"empty.exr": b"", "Bäume 🌳.png": BIG, "A.png": b"A", "a.png": b"a"}.items():
        (scene.parent / name).write_bytes(content)
    for number in range(50):
        (scene.parent / f"frame_{number:04}.png").write_bytes(BIG[number * 1000 :][:100_000])
    yield task["task_id"], scene.parent
    farm.client.delete(task["task_id"])


def get(farm: RealFarm, task: int, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", int(farm.url.rpartition(":")[2]), timeout=30)
    who = {"email": farm.login.email, "token": farm.login.token}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET", f"{TASKS}/{task}/download", headers={**who, **named})
    with contextlib.closing(connection), connection.getresponse() as response:
        return response.status, response.headers, response.read()


def test_archive_holds_every_file_under_its_name(farm: RealFarm, task: tuple[int, Path]) -> None:
    status, headers, content = get(farm, task[0])
    assert (status, int(headers["Content-Length"])) == (200, len(content))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        held = {name: archive.read(name) for name in archive.namelist()}
    assert held == {path.name: path.read_bytes() for path in task[1].iterdir()}


def test_ranges_of_an_archive_follow_the_standard(farm: RealFarm, task: tuple[int, Path]) -> None:
    _, headers, content = get(farm, task[0])
    size = len(content)
    for asked, status, got in (
        ("bytes=0-0", 206, content[:1]),
        ("bytes=-1", 206, content[-1:]),
        (f"bytes={size - 5}-", 206, content[-5:]),
        (f"bytes=5-{size * 2}", 206, content[5:]),
        (f"bytes=0-{10**30}", 416, None),
        (f"bytes={size}-", 416, None),
        ("bytes=0-1,5-6", 200, content),
        ("lines=0-1", 200, content),
        ("bytes=5-1", 200, content),
    ):
        found = get(farm, task[0], Range=asked)
        assert found[0] == status, asked
        assert got is None or found[2] == got, asked
    assert get(farm, task[0], Range="bytes=0-0", If_Range='"another"')[::2] == (200, content)
    assert get(farm, task[0], If_None_Match=headers["ETag"])[0] == 304


def test_archive_that_is_cut_at_random_places_arrives_the_same(farm: RealFarm, task: tuple[int, Path]) -> None:
    _, headers, content = get(farm, task[0])
    chance, got = random.Random(3), b""
    while len(got) < len(content):
        with connect(farm) as connection:
            asked = (f"Range: bytes={len(got)}-", f"If-Range: {headers['ETag']}")
            connection.sendall(head(farm, 0, *asked, path=f"{TASKS}/{task[0]}/download", method="GET"))
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 206
            got += response.read(chance.randrange(1, 1_500_000))  # and the connection is cut
    assert hashlib.sha256(got).digest() == hashlib.sha256(content).digest()


def test_frame_that_is_replaced_during_a_download_ends_it(farm: RealFarm, task: tuple[int, Path]) -> None:
    tag = get(farm, task[0])[1]["ETag"]
    # RenderAPI and the two sockets hold some megabytes ahead of the reader: an open file is sent as it was when opened.
    ahead, large = task[1] / "zy_ahead.png", task[1] / "zz_large.png"
    for path in (ahead, large):
        with path.open("wb") as file:
            file.truncate(100_000_000)
    with connect(farm) as connection:
        connection.sendall(head(farm, 0, path=f"{TASKS}/{task[0]}/download", method="GET"))
        response = http.client.HTTPResponse(connection)
        response.begin()
        response.read(10)
        frame = task[1] / "zzz_frame.png"
        large.with_name("zz_new").write_bytes(BIG)
        os.replace(large.with_name("zz_new"), large)
        with pytest.raises(http.client.IncompleteRead):
            response.read()
        assert not frame.exists()
    assert get(farm, task[0], If_Range=tag, Range="bytes=0-0")[0] == 200
    ahead.unlink()
    large.unlink()
