"""Serving for real: start, TLS, signals, errors at the start, clients that are slow."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from renderonline.farm.errors import InvalidRequest, NotAvailable
from renderonline.serving import deadlines, web
from renderonline.serving.web import TlsFiles, serve
from tests.support.certificates import self_signed


async def hello(_request: Request) -> Response:
    return PlainTextResponse("hello")


async def endless(_request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536
            await asyncio.sleep(0)

    return StreamingResponse(pieces())


def application(events: list[str] | None = None) -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        noted = events if events is not None else []
        noted.append("start")
        try:
            yield
        finally:
            noted.append("end")

    return Starlette(routes=[Route("/", hello), Route("/endless", endless)], lifespan=lifespan)


@contextlib.asynccontextmanager
async def serving(app: Starlette, **more: Any) -> AsyncIterator[str]:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(app, host="127.0.0.1", port=0, on_ready=ready.set_result, **more))
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if task.done():
            await task
        yield await ready
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def get(url: str, **more: Any) -> str:
    async with aiohttp.ClientSession() as session, session.get(url, **more) as response:
        return await response.text()


async def test_lifespan_runs_around_everything() -> None:
    events: list[str] = []
    async with serving(application(events)) as url:
        assert url.startswith("http://127.0.0.1:")
        assert await get(url) == "hello"
        assert events == ["start"]
    assert events == ["start", "end"]


async def test_error_at_the_start_comes_out_as_it_is() -> None:
    @contextlib.asynccontextmanager
    async def broken(_app: Starlette) -> AsyncIterator[None]:
        raise NotAvailable("no database")
        yield

    with pytest.raises(NotAvailable, match="no database"):
        async with serving(Starlette(lifespan=broken)):
            raise AssertionError


async def test_taken_port_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NotAvailable, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            await serve(application(), host="127.0.0.1", port=port, on_ready=print)


async def test_unknown_host_is_told() -> None:
    with pytest.raises(InvalidRequest, match="not known here"):
        await serve(application(), host="nowhere.invalid", port=0, on_ready=print)


async def test_https_from_two_pem_files(tmp_path: Path) -> None:
    files, trusted = self_signed(tmp_path)
    async with serving(application(), certificate=files) as url:
        assert url.startswith("https://127.0.0.1:")
        assert await get(url, ssl=trusted) == "hello"
        with pytest.raises(aiohttp.ClientError):
            await get(url.replace("https", "http"))


async def test_certificate_that_can_t_be_used_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="certificate can't be used"):
        await serve(
            application(),
            host="127.0.0.1",
            port=0,
            certificate=TlsFiles(tmp_path / "none.pem", tmp_path / "none.key"),
            on_ready=print,
        )
    files, _ = self_signed(tmp_path, password=b"secret")
    with pytest.raises(InvalidRequest, match=r"encrypted|can't be used"):
        await serve(application(), host="127.0.0.1", port=0, certificate=files, on_ready=print)


PROGRAM = """
import contextlib, sys
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route
from renderonline.serving import web
import asyncio
stopping = asyncio.Event()
async def events(request):
    async def pieces():
        yield b"first"
        await stopping.wait()
        yield b"last"
    return StreamingResponse(pieces())
@contextlib.asynccontextmanager
async def lifespan(app):
    yield
    print("ended", flush=True)
app = Starlette(routes=[Route("/", events)], lifespan=lifespan)
web.run(web.serve(app, host="127.0.0.1", port=0, on_ready=lambda url: print(url, flush=True), on_stop=stopping.set))
print("cleanly", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly_with_open_streams(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        port = int(program.stdout.readline().strip().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as stream:
            stream.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            got = b""
            while b"first" not in got:
                got += stream.recv(1000)
            begun = time.monotonic()
            os.kill(program.pid, number)
            while piece := stream.recv(1000):
                got += piece
        assert b"last" in got
        assert program.wait(10) == 0
        assert time.monotonic() - begun < 5
        assert program.stdout.read().split() == ["ended", "cleanly"]


async def test_reader_that_takes_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "WATCH_S", 0.05)
    monkeypatch.setattr(deadlines, "READER_S", 0.3)
    closed = asyncio.Event()
    lost = deadlines.PatientProtocol.connection_lost

    def noticed(protocol: deadlines.PatientProtocol, error: Exception | None) -> None:
        closed.set()
        lost(protocol, error)

    monkeypatch.setattr(deadlines.PatientProtocol, "connection_lost", noticed)
    async with serving(application()) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            client.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(10):
                await closed.wait()
        assert await get(url) == "hello"


async def test_keep_alive_serves_many_requests_on_one_connection() -> None:
    async with serving(application()) as url:
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"hello")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)  # pipelined
        for _ in range(3):
            assert b"200 OK" in await reader.readuntil(b"hello")
        writer.close()


def test_loopback_is_told_from_the_rest() -> None:
    local: Callable[[str], bool] = web.is_loopback
    assert all(local(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(local(host) for host in ("0.0.0.0", "::", "192.168.1.1", "farm.example.org"))
