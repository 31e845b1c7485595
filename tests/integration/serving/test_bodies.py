"""Large bodies and answers: every byte arrives, keep-alive afterwards, clients that go away or trickle, full disks."""

import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from renderonline.farm.errors import InvalidRequest
from renderonline.renderapi.downloads import Content, whole
from renderonline.serving import bodies, deadlines
from renderonline.serving.web import serve
from tests.support.certificates import self_signed

BIG = os.urandom(3_000_001)


class Putting:
    """An application that stores every body in a new file, and what became of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.seen: list[str] = []
        self.begun = 0
        self.ended = asyncio.Event()
        self.app = Starlette(routes=[Route("/{length:int}", self.put, methods=["PUT"]), Route("/", self.get)])

    async def get(self, _request: Request) -> Response:
        return PlainTextResponse("hello")

    async def put(self, request: Request) -> Response:
        digest = hashlib.blake2b()
        path = self.directory / str(len(self.seen))
        handle = os.open(path, os.O_CREAT | os.O_WRONLY)
        try:
            length = request.path_params["length"]
            body = bodies.Body(request, length)
            self.begun += 1
            await body.read(lambda piece: [os.write(handle, piece), digest.update(piece)].clear())
        except InvalidRequest as error:
            self.seen.append(error.reason_code)
            return PlainTextResponse(error.message, 400)
        except BaseException as error:
            self.seen.append(type(error).__name__)
            raise
        finally:
            os.close(handle)
            self.ended.set()
        self.seen.append(digest.hexdigest())
        return PlainTextResponse(str(path.stat().st_size))


@contextlib.asynccontextmanager
async def serving(app: Any, **more: Any) -> AsyncIterator[int]:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(app, host="127.0.0.1", port=0, on_ready=ready.set_result, **more))
    try:
        yield int((await ready).rpartition(":")[2])
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def head(length: int, *more: str) -> bytes:
    lines = [f"PUT /{length} HTTP/1.1", "Host: x", *(more or (f"Content-Length: {length}",))]
    return "\r\n".join([*lines, "", ""]).encode()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  (files are no events)
            await asyncio.sleep(0.01)


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    text = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in text.lower().splitlines() if line.startswith(b"content-length"))
    return int(text.split()[1]), await reader.readexactly(length)


async def test_two_bodies_on_one_connection_arrive_whole_and_a_pipelined_request_after_them(tmp_path: Path) -> None:
    putting = Putting(tmp_path)
    async with serving(putting.app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(2):
            writer.write(head(len(BIG)))
            await asyncio.sleep(0)
            writer.write(BIG[:1])
            await writer.drain()
            await until(lambda: putting.begun == number + 1)  # noqa: B023
            writer.write(BIG[1:] + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await answer(reader) == (200, str(len(BIG)).encode())
            assert await answer(reader) == (200, b"hello")
            assert (tmp_path / str(number)).read_bytes() == BIG
        writer.close()
    assert putting.seen == [hashlib.blake2b(BIG).hexdigest()] * 2


async def test_client_that_expects_100_is_asked_for_the_body(tmp_path: Path) -> None:
    putting = Putting(tmp_path)
    async with serving(putting.app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(len(BIG), f"Content-Length: {len(BIG)}", "Expect: 100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BIG)
        assert (await answer(reader))[0] == 200
        writer.close()


@pytest.mark.parametrize("sent", [0, 1, 1_500_000, len(BIG) - 1])
@pytest.mark.parametrize("reset", [False, True])
async def test_client_that_goes_away_is_told_from_the_end_of_the_body(tmp_path: Path, sent: int, reset: bool) -> None:
    putting = Putting(tmp_path)
    async with serving(putting.app) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(client, head(len(BIG)) + BIG[:sent])
            await until(lambda: putting.begun and (tmp_path / "0").stat().st_size == sent)
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await asyncio.wait_for(putting.ended.wait(), 10)
        assert (tmp_path / "0").read_bytes() == BIG[:sent]
        assert putting.seen == ["incomplete_body"]


async def test_error_of_the_disk_comes_out_and_the_client_gets_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(request: Request) -> Response:
        with pytest.raises(OSError, match="No space left"):
            await bodies.receive_body(request, handle, length=len(BIG))
        return PlainTextResponse("full", 507)

    handle = os.open("/dev/full", os.O_WRONLY)
    try:
        async with serving(Starlette(routes=[Route("/{length:int}", full, methods=["PUT"])])) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head(len(BIG)) + BIG)
            assert await answer(reader) == (507, b"full")
            assert await reader.read() == b""
            writer.close()
    finally:
        os.close(handle)


async def test_same_bytes_arrive_through_tls(tmp_path: Path) -> None:
    putting = Putting(tmp_path)
    files, trusted = self_signed(tmp_path)
    async with serving(putting.app, certificate=files) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
        writer.write(head(len(BIG)) + BIG)
        assert (await answer(reader))[0] == 200
        writer.close()
    assert (tmp_path / "0").read_bytes() == BIG


async def test_body_without_a_length_is_taken_when_it_is_as_long_as_expected(tmp_path: Path) -> None:
    putting = Putting(tmp_path)
    async with serving(putting.app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(5, "Transfer-Encoding: chunked") + b"5\r\nabcde\r\n0\r\n\r\n")
        assert await answer(reader) == (200, b"5")
        writer.write(head(5, "Transfer-Encoding: chunked") + b"6\r\nabcdef\r\n0\r\n\r\n")
        assert (await answer(reader))[0] == 400
        writer.close()
    assert putting.seen[1:] == ["wrong_length"]
    assert (tmp_path / "0").read_bytes() == b"abcde"


async def test_body_that_trickles_ends_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "WATCH_S", 0.05)
    monkeypatch.setattr(deadlines, "BODY_WINDOW_S", 0.3)
    putting = Putting(tmp_path)
    async with serving(putting.app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(len(BIG)))
        with contextlib.suppress(OSError):
            while not putting.ended.is_set():
                writer.write(b"x")
                await asyncio.sleep(0.02)
            assert await reader.read() == b""
        writer.close()
    assert putting.seen == ["incomplete_body"]


async def test_canceled_reader_lets_go_of_its_file_first(tmp_path: Path) -> None:
    puts: list[asyncio.Task[None]] = []
    handle = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)

    async def canceled(request: Request) -> Response:
        puts.append(asyncio.create_task(bodies.receive_body(request, handle, length=len(BIG))))
        await asyncio.wait(puts)
        return PlainTextResponse("canceled")

    async with serving(Starlette(routes=[Route("/{length:int}", canceled, methods=["PUT"])])) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(len(BIG)) + BIG[:-1])
        await until(lambda: (tmp_path / "file").stat().st_size == len(BIG) - 1)
        puts[0].cancel()
        assert await answer(reader) == (200, b"canceled")
        assert puts[0].cancelled()
        os.close(handle)
        writer.close()


class Sending:
    """Has an application that sends `BIG` again and again, by pieces of odd sizes."""

    def __init__(self, times: int = 1) -> None:
        self.length = len(BIG) * times
        self.closed = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        try:
            for _ in range(start, end, len(BIG)):
                yield from (BIG[place : place + 777_777] for place in range(0, len(BIG), 777_777))
        finally:
            self.loop.call_soon_threadsafe(self.closed.set)

    def app(self) -> Starlette:
        async def send_big(_request: Request) -> Response:
            return whole(Content(self.length, '"tag"', "text/plain", "big", self.pieces))

        return Starlette(routes=[Route("/", send_big)])


async def test_answers_leave_whole_and_in_order_on_one_connection() -> None:
    async with serving(Sending().app()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
            for _ in range(2):
                assert await answer(reader) == (200, BIG)
        writer.close()


@pytest.mark.parametrize("stalls", [False, True])
async def test_answer_ends_with_its_reader(stalls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "WATCH_S", 0.05)
    monkeypatch.setattr(deadlines, "READER_S", 0.3)
    sending = Sending(times=100)
    async with serving(sending.app()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(100)
        if not stalls:
            writer.transport.abort()
        async with asyncio.timeout(20):
            await sending.closed.wait()
        writer.transport.abort()
