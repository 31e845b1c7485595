"""WebSockets as a hostile client uses them: nobody keeps the server busy, or its memory, by one."""

import asyncio
import base64
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from renderonline.serving import deadlines, message_sockets
from renderonline.serving.message_sockets import HELLO_BYTES, UNFINISHED_FRAMES, MessageSocket, take_messages
from tests.integration.serving.test_web import serving

HELLO = b"\x81\x85\0\0\0\0hello"
EMPTY_PING, EMPTY_TEXT = b"\x89\x80\0\0\0\0", b"\x81\x80\0\0\0\0"
FRAGMENTS = b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 1000
PART = b"\x01\xff" + (HELLO_BYTES + 1024).to_bytes(8) + bytes(4) + b"x" * (HELLO_BYTES + 512)


class Echo:
    """Says back what is sent; `much` is answered with more than anybody reads."""

    socket: MessageSocket

    def received(self, text: str) -> None:
        for _ in range(100 if text == "much" else 1):
            self.socket.send(text if text != "much" else "x" * 100_000)

    def writable(self) -> None:
        pass

    def lost(self) -> None:
        pass


async def link(socket: WebSocket) -> None:
    """Lets in who says hello, and ends."""
    await socket.accept()
    if await socket.receive_text() != "hello":
        await asyncio.Event().wait()
    echo = Echo()
    echo.socket = take_messages(socket, "machine 1", echo)


@pytest.fixture(name="url")
async def _url() -> AsyncIterator[str]:
    async with serving(Starlette(routes=[WebSocketRoute("/link", link)]), grace_s=0.1) as url:
        yield url


async def opened(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket that was accepted, as its bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), limit=2**20)
    key = base64.b64encode(bytes(16)).decode()
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    writer.write(f"GET /link HTTP/1.1\r\nHost: localhost\r\n{upgrade}Sec-WebSocket-Key: {key}\r\n\r\n".encode())
    assert b"101" in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def is_cut(reader: asyncio.StreamReader) -> bool:
    """Whether the server closes the connection, sooner or later."""
    try:
        async with asyncio.timeout(10):
            while await reader.read(2**16):
                pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("flood", [EMPTY_PING * 1000, EMPTY_TEXT * 1000, FRAGMENTS, PART])
async def test_who_talks_much_and_says_nothing_is_cut(url: str, flood: bytes) -> None:
    reader, writer = await opened(url)
    writer.write(flood)
    assert await is_cut(reader)
    writer.close()


@pytest.mark.parametrize(
    "flood",
    [
        EMPTY_PING * 1000,
        FRAGMENTS,
        b"\x82\x80\0\0\0\0",
        b"\x81\x81\0\0\0\0\xff",
        b"\x83\x80",
        b"\x81\x01x",
        b"\x81\x80\0\0\0\0" * 2 + b"\x81\x01x",
    ],
)
async def test_machine_that_sends_what_no_machine_sends_is_cut(
    url: str, flood: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_sockets, "CLOSE_S", 0.1)
    reader, writer = await opened(url)
    writer.write(HELLO)
    await answer_to(reader, writer, "begun")
    writer.write(flood)
    assert await is_cut(reader)
    writer.close()


async def answer_to(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: str) -> None:
    """Say something short, and wait until it is said back."""
    writer.write(bytes((0x81, 0x80 | len(text))) + bytes(4) + text.encode())
    async with asyncio.timeout(10):
        assert await reader.readexactly(2 + len(text)) == bytes((0x81, len(text))) + text.encode()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 200, 2**16 - 1, 2**16, 200_000])
async def test_message_of_any_size_arrives_whole_and_in_pieces(url: str, size: int) -> None:
    text = "ä" * (size // 2) + "x" * (size % 2)
    async with connect(url.replace("http", "ws") + "/link", compression=None) as machine, asyncio.timeout(10):
        await machine.send("hello")
        await machine.send(text)
        assert await machine.recv() == text
        await machine.send(["", text, "", "end"])
        assert await machine.recv() == text + "end"


async def test_message_of_several_reads_arrives(url: str) -> None:
    reader, writer = await opened(url)
    writer.write(HELLO)
    await answer_to(reader, writer, "begun")
    frame = b"\x81\x83\1\2\3\4" + bytes((ord("a") ^ 1, ord("b") ^ 2, ord("c") ^ 3))
    for piece in (frame[:1], frame[1:4], frame[4:8], frame[8:] + frame, frame):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.02)
    async with asyncio.timeout(10):
        assert await reader.readexactly(15) == b"\x81\3abc" * 3
    writer.close()


async def test_what_is_said_before_the_answer_to_the_hello_counts(url: str) -> None:
    reader, writer = await opened(url)
    writer.write(HELLO)
    writer.write(b"\x01\x82\0\0\0\0ea")  # a fragment
    await asyncio.sleep(0)
    writer.write(b"\x80\x83\0\0\0\0rly")
    async with asyncio.timeout(10):
        assert await reader.readexactly(7) == b"\x81\x05early"
    writer.close()


async def test_link_ends_with_a_reason_on_either_side(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = asyncio.Event()
    monkeypatch.setattr(Echo, "lost", lambda _: lost.set())
    monkeypatch.setattr(Echo, "received", lambda echo, text: echo.socket.close(1001, text))
    async with connect(url.replace("http", "ws") + "/link", compression=None) as machine:
        await machine.send("hello")
        await machine.send("going")
        async with asyncio.timeout(10):
            await machine.wait_closed()
            await lost.wait()
        assert (machine.close_code, machine.close_reason) == (1001, "going")
    async with connect(url.replace("http", "ws") + "/link", compression=None) as machine:
        await machine.send("hello")
        await machine.close(1000, "enough")
        assert machine.close_code == 1000


async def test_link_ends_when_the_server_stops() -> None:
    async with serving(Starlette(routes=[WebSocketRoute("/link", link)]), grace_s=0.1) as url:
        machine = await connect(url.replace("http", "ws") + "/link", compression=None)
        await machine.send("hello")
        await machine.send("begun")
        assert await machine.recv() == "begun"
    await machine.wait_closed()


async def test_a_stranger_is_cut_after_a_while(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_sockets, "STRANGER_S", 0.2)
    reader, writer = await opened(url)
    assert await is_cut(reader)
    writer.close()


async def test_who_does_not_read_is_cut(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_sockets, "WATCH_S", 0.05)
    monkeypatch.setattr(deadlines, "READER_S", 0.3)
    closed = asyncio.Event()
    monkeypatch.setattr(Echo, "lost", lambda _: closed.set())
    about = {"compression": None, "max_queue": 1, "close_timeout": 0.1}
    async with connect(url.replace("http", "ws") + "/link", **about) as machine:  # type: ignore[arg-type]
        await machine.send("hello")
        await machine.send("much")
        async with asyncio.timeout(10):
            await closed.wait()


async def test_a_machine_may_say_much_and_ping_beside_it(url: str) -> None:
    async with connect(url.replace("http", "ws") + "/link", compression=None, max_size=None) as machine:
        await machine.send("hello")
        await machine.send("x" * (2 * HELLO_BYTES))
        assert len(await machine.recv()) == 2 * HELLO_BYTES
        for number in range(2 * UNFINISHED_FRAMES):
            await machine.ping()
            await machine.send(str(number))
            assert await machine.recv() == str(number)
