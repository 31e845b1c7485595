"""Fetching and sending over bad networks, with a real RenderAPI."""

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from renderonline.farm.errors import InvalidRequest, NotFound
from renderonline.hpcserver.file_exchange import PART, Stopped, Transfers, TransferSession
from renderonline.hpcserver.joining import Identity
from tests.faults.engine import DEFINITION
from tests.faults.proxy import Proxy
from tests.support.held_attempts import Held, held_attempt
from tests.support.pinned_certificates import Certificate
from tests.support.renderapi import renderapi

SCENE = random.Random(1).randbytes(3 * PART + 12345)


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[Held]:
    async with renderapi(tmp_path / "data") as api, held_attempt(api, DEFINITION, ("a.scene", SCENE)) as one:
        yield one


@contextlib.contextmanager
def cutting(proxy: Proxy, times: int, pause_s: float) -> Iterator[Callable[[], int]]:
    """Cut all connections again and again at random moments; gives how often it did."""
    chance, done, cuts = random.Random(7), threading.Event(), 0

    def cut() -> None:
        nonlocal cuts
        while cuts < times and not done.wait(chance.uniform(pause_s / 4, pause_s)):
            proxy.cut()
            cuts += 1

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield lambda: cuts
    finally:
        done.set()
        thread.join()


def session_of(held: Held, patience_s: float | None = 100.0) -> TransferSession:
    return TransferSession(held.assign.attempt, held.assign.token, patience_s)


async def fetched(transfers: Transfers, held: Held, target: Path, done: set[int] | None = None) -> None:
    handle = os.open(target, os.O_RDWR | os.O_CREAT)
    try:
        given = set() if done is None else done
        await asyncio.to_thread(transfers.fetch, session_of(held), "a.scene", len(SCENE), handle, given)
    finally:
        os.close(handle)


async def test_large_file_is_fetched_in_parts_and_every_cut_is_survived(held: Held, tmp_path: Path) -> None:
    proxy = Proxy(int(held.api.url.rpartition(":")[2]))
    transfers = Transfers(Identity(proxy.url, held.machine_id, ""))
    target, done = tmp_path / "a.scene", set[int]()
    with contextlib.closing(proxy), contextlib.closing(transfers), cutting(proxy, 20, 0.05) as cuts:
        await fetched(transfers, held, target, done)
        assert done == {0, 1, 2, 3}
        assert cuts() > 0
    assert target.read_bytes() == SCENE


async def test_parts_that_are_there_are_not_fetched_again(held: Held, tmp_path: Path) -> None:
    transfers, target = Transfers(Identity(held.api.url, held.machine_id, "")), tmp_path / "a.scene"
    target.write_bytes(SCENE[: 3 * PART])
    await fetched(transfers, held, target, {0, 1, 2})
    transfers.close()
    assert target.read_bytes() == SCENE
    machine = (await held.api.call("GET", "/machines")).json()["items"][0]
    assert machine["input_bytes"] == len(SCENE) - 3 * PART


async def test_result_is_sent_whole_however_often_it_is_cut(held: Held, tmp_path: Path) -> None:
    data = SCENE[:PART]
    frame = tmp_path / "frame.png"
    frame.write_bytes(data)
    proxy = Proxy(int(held.api.url.rpartition(":")[2]))
    transfers = Transfers(Identity(proxy.url, held.machine_id, ""))
    headers = {"X-Digest": hashlib.blake2b(data, digest_size=32).hexdigest()}
    with contextlib.closing(proxy), contextlib.closing(transfers), cutting(proxy, 5, 0.05):
        await asyncio.to_thread(transfers.send, session_of(held), "outputs/frame_0001.png", frame, headers)
    assert (held.directory / "frame_0001.png").read_bytes() == data
    assert [path.name for path in held.directory.iterdir()] == ["frame_0001.png"]


async def test_canceled_attempt_stops_at_once_also_in_a_dead_network(held: Held, tmp_path: Path) -> None:
    proxy = Proxy(int(held.api.url.rpartition(":")[2]))
    transfers, session = Transfers(Identity(proxy.url, held.machine_id, "")), session_of(held, None)
    with contextlib.closing(proxy), contextlib.closing(transfers):
        await asyncio.to_thread(transfers.inputs, session)
        proxy.stalled = True
        asking = asyncio.ensure_future(asyncio.to_thread(transfers.inputs, session))
        assert not (await asyncio.wait({asking}, timeout=0.3))[0]
        begin = time.monotonic()
        session.stop()
        with pytest.raises(Stopped):
            await asking
        assert time.monotonic() - begin < 2.0
        proxy.heal()


async def test_answer_that_is_cut_in_the_middle_is_asked_for_again(held: Held) -> None:
    """http.client takes half a body for a whole one when it is read with a limit."""
    target = int(held.api.url.rpartition(":")[2])
    listener, asked = socket.create_server(("127.0.0.1", 0)), 0

    def serve() -> None:
        nonlocal asked
        for _ in range(2):
            client, _ = listener.accept()
            with client, socket.create_connection(("127.0.0.1", target)) as server:
                asked += 1
                server.sendall(client.recv(1 << 16))
                answer = b""
                while b"]}" not in answer:
                    answer += server.recv(1 << 16)
                client.sendall(answer if asked == 2 else answer[:-20])

    thread = threading.Thread(target=serve)
    thread.start()
    transfers = Transfers(Identity(f"http://127.0.0.1:{listener.getsockname()[1]}", held.machine_id, ""))
    with contextlib.closing(listener), contextlib.closing(transfers):
        listed = await asyncio.to_thread(transfers.inputs, session_of(held))
        await asyncio.to_thread(thread.join)
    assert (listed["scene"], asked) == ("a.scene", 2)


async def test_patience_ends_while_renderapi_is_away(tmp_path: Path) -> None:
    transfers = Transfers(Identity("http://127.0.0.1:9", 1, ""))
    with pytest.raises(Stopped):
        await asyncio.to_thread(transfers.inputs, TransferSession(1, "token", 0.3))


async def test_refusals_and_odd_files_are_told_and_not_repeated(held: Held, tmp_path: Path) -> None:
    transfers, session = Transfers(Identity(held.api.url, held.machine_id, "")), session_of(held)
    frame, pipe = tmp_path / "frame.png", tmp_path / "pipe"
    frame.write_bytes(b"x")
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(frame)
    with contextlib.closing(transfers):
        with pytest.raises(InvalidRequest, match="not a file that this attempt"):
            await asyncio.to_thread(transfers.send, session, "outputs/other.png", frame, {"X-Digest": "0" * 64})
        with pytest.raises(InvalidRequest, match="no regular file"):
            await asyncio.to_thread(transfers.send, session, "outputs/frame_0001.png", pipe, {})
        with pytest.raises(OSError, match="symbolic"):
            await asyncio.to_thread(transfers.send, session, "outputs/frame_0001.png", tmp_path / "link", {})
        with pytest.raises(NotFound):
            await asyncio.to_thread(transfers.inputs, TransferSession(held.assign.attempt, "wrong"))


async def test_the_address_that_answers_is_found_among_several(held: Held) -> None:
    """R10 Standby: one of several RenderAPIs dispatches."""
    transfers = Transfers(Identity(f"http://127.0.0.1:9,{held.api.url}", held.machine_id, ""))
    with contextlib.closing(transfers):
        listed = await asyncio.to_thread(transfers.inputs, session_of(held))
    assert listed["scene"] == "a.scene"


async def test_pinned_certificate_is_the_only_one_that_is_told_the_token(tmp_path: Path) -> None:
    certificate, other = Certificate(tmp_path), Certificate(tmp_path, "other")
    files = {"FullchainPemPath": str(certificate.chain), "PrivPemPath": str(certificate.key)}
    async with (
        renderapi(tmp_path / "data", certificate=files) as api,
        held_attempt(api, DEFINITION, ("a.scene", SCENE[:1000])) as held,
    ):
        for pinned, works in ((certificate, True), (other, False)):
            identity = Identity(api.url, held.machine_id, "", ssl.DER_cert_to_PEM_cert(pinned.der))
            with contextlib.closing(Transfers(identity)) as transfers:
                asking = asyncio.to_thread(transfers.inputs, session_of(held, 1.0))
                if works:
                    assert (await asking)["scene"] == "a.scene"
                    frame = tmp_path / "frame.png"
                    frame.write_bytes(SCENE[: 1 << 22])
                    digest = {"X-Digest": hashlib.blake2b(SCENE[: 1 << 22], digest_size=32).hexdigest()}
                    where = "outputs/frame_0001.png"
                    await asyncio.to_thread(transfers.send, session_of(held), where, frame, digest)
                    assert (held.directory / "frame_0001.png").read_bytes() == SCENE[: 1 << 22]
                else:
                    with pytest.raises(Stopped):
                        await asking


async def test_full_disk_of_this_machine_is_not_taken_for_the_network(held: Held) -> None:
    handle = os.open("/dev/full", os.O_RDWR)
    with contextlib.closing(Transfers(Identity(held.api.url, held.machine_id, ""))) as transfers:
        fetching = asyncio.to_thread(transfers.fetch, session_of(held, 2.0), "a.scene", len(SCENE), handle, set())
        with pytest.raises(OSError, match="No space left"):
            await fetching
    os.close(handle)
