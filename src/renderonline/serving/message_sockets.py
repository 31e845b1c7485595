"""The WebSockets of machines, with bounds: until its sender has authenticated one is a `LinkProtocol`, with a request
of the application; then a `MessageSocket`, which passes messages on as they arrive and needs no task.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from starlette.requests import HTTPConnection
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.utils import apply_mask

from renderonline.serving.admission import GUEST, Admission, Guest, let_in
from renderonline.serving.deadlines import WATCH_S, Reader

if TYPE_CHECKING:
    from websockets.http11 import Request

FRAMES_BYTES: Final = 2048
"""The bytes of a WebSocket that are parsed at once, because they may be hundreds of frames."""
UNFINISHED_FRAMES: Final = 100
"""The most frames of a WebSocket in a row that complete no message; before authentication, the most frames in all."""
HELLO_BYTES: Final = 256 * 1024
"""The most bytes of a WebSocket that are read before its sender has authenticated."""
STRANGER_S: Final = 30.0
"""How long a WebSocket may be open before its sender has authenticated; the application answers earlier."""
CLOSE_S: Final = 10.0
"""How long the other side of a WebSocket has for its own part of a close."""
_WHOLE_TEXT: Final = b"\x81"
"""The first byte of a frame that is a whole message of text."""
_MEDIUM: Final = 128 + 126
"""The second byte of a masked frame whose length stands in the two bytes behind it."""
_LINK: Final = "renderonline.link"
"""The key in a WebSocket's state of its `LinkProtocol`."""


class LinkProtocol(WebSocketsSansIOProtocol):
    """The WebSocket of a sender that has not authenticated. It is closed when that takes too many frames or bytes, or
    too long; afterwards a `MessageSocket` has the connection."""

    _watch: asyncio.TimerHandle
    _bytes = 0
    _frames = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch = self.loop.call_later(STRANGER_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        admission, guest = self.app_state[GUEST]
        admission.leave(guest)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for begin in range(0, len(data), FRAMES_BYTES):
            piece = data[begin : begin + FRAMES_BYTES]
            self._bytes += len(piece)
            super().data_received(piece)
            if self.transport.is_closing():
                return
            if self._frames > UNFINISHED_FRAMES or self._bytes > HELLO_BYTES:
                self.transport.abort()
                return

    def handle_connect(self, event: "Request") -> None:
        super().handle_connect(event)
        if not self.handshake_complete:  # it was not refused
            self.scope["state"][_LINK] = self

    def handle_events(self) -> None:
        self._frames += len(self.conn.events)
        super().handle_events()

    def hand_over(self, receiver: "MessageReceiver") -> "MessageSocket":
        """Leave the connection to a `MessageSocket`."""
        self._watch.cancel()
        self.close_timer = self._watch  # without a timer uvicorn closes the connection when the application ends
        taken = MessageSocket(self, receiver)
        while not self.queue.empty():
            event: Any = self.queue.get_nowait()
            if event.get("text") is not None:
                self.loop.call_soon(receiver.received, event["text"])
        if self.transport.is_closing():
            self.loop.call_soon(receiver.lost)
        else:
            self.connections.remove(self)
            self.connections.add(taken)  # type: ignore[arg-type]  # it can `shutdown`, which is all that is asked of it
            self.transport.set_protocol(taken)
            self.transport.resume_reading()
        self.scope["state"].pop(_LINK)  # a circle of references would stay until the next search for them
        return taken


class MessageReceiver(Protocol):
    """What gets the messages of a `MessageSocket`."""

    def received(self, text: str) -> None:
        """A message has arrived."""

    def writable(self) -> None:
        """What was written has left: more may be."""

    def lost(self) -> None:
        """The connection has ended."""


def take_messages(connection: HTTPConnection, who: str, receiver: MessageReceiver) -> "MessageSocket":
    """Note that the WebSocket `connection` is the link of the machine `who`, which has authenticated. From now on its
    messages go to `receiver`, and its request may end: a link that says nothing needs no task and no request."""
    let_in(connection, who, is_link=True)
    protocol: LinkProtocol = getattr(connection.state, _LINK)
    return protocol.hand_over(receiver)


class MessageSocket(asyncio.Protocol):
    """The WebSocket of a machine that has authenticated. It is closed when its frames complete no message, or when the
    machine does not read. `is_writable`: whether what is written now leaves soon."""

    __slots__ = (
        "_conn",
        "_connections",
        "_frames",
        "_guest",
        "_is_text",
        "_parts",
        "_receiver",
        "_transport",
        "_watch",
        "is_writable",
    )

    def __init__(self, link: LinkProtocol, receiver: MessageReceiver) -> None:
        self._transport, self._conn, self._connections = link.transport, link.conn, link.connections
        self._guest: tuple[Admission, Guest] = link.app_state[GUEST]
        self._receiver = receiver
        self._is_text, self._parts = link.curr_msg_data_type == "text", link.frames
        self._frames = 0
        self._watch: asyncio.TimerHandle | None = None
        self.is_writable = link.writable.is_set()

    def send(self, text: str) -> None:
        """Send a message; dropped when the connection ends anyway."""
        if self._conn.state is State.OPEN and not self._transport.is_closing():
            self._conn.send_text(text.encode())
            self._write()

    def close(self, code: int, reason: str) -> None:
        """Say why, and end the connection."""
        if self._conn.state is State.OPEN and not self._transport.is_closing():
            self._conn.send_close(code, reason)
            self._write()
            self._transport.resume_reading()  # until the other side's part has come
            self._look_after(CLOSE_S, self._transport.abort)

    def shutdown(self) -> None:
        """End the connection, because the server stops."""
        self.close(CloseCode.SERVICE_RESTART, "")
        self._transport.close()

    def pause(self) -> None:
        """Read nothing until `resume`."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self._receiver.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._connections.discard(self)
        admission, guest = self._guest
        admission.leave(guest)
        self._receiver.lost()

    def data_received(self, data: bytes) -> None:
        text = self._whole(data)
        if text is not None:
            self._frames = 0
            self._receiver.received(text)
            return
        for begin in range(0, len(data), FRAMES_BYTES):
            self._conn.receive_data(data[begin : begin + FRAMES_BYTES])
            for frame in self._conn.events_received():
                self._take(cast("Frame", frame))
            if self._conn.writes:  # the answer to a ping, or to the end
                self._write()
            if self._conn.eof_sent:
                self._transport.close()
            if self._frames > UNFINISHED_FRAMES:
                self._transport.abort()
            if self._transport.is_closing():
                return

    def _whole(self, data: bytes) -> str | None:
        """The message of which `data` is the one frame and nothing else, as nearly always: thousands of heartbeats that
        take a parser's way, where any order of bytes is possible, cost twice as much."""
        conn, begin = self._conn, 6 if data[1:2] < b"\xfe" else 8
        if data[:1] != _WHOLE_TEXT or len(data) < begin or conn.state is not State.OPEN:
            return None
        length = data[1] - 128 if begin == 6 else int.from_bytes(data[2:4])
        between = conn.current_size is not None or conn.reader.buffer
        if len(data) != begin + length or data[1] > _MEDIUM or between:
            return None
        try:
            return apply_mask(data[begin:], data[begin - 4 : begin]).decode()
        except UnicodeDecodeError:
            return None  # the parser's way closes the connection

    def _take(self, frame: Frame) -> None:
        self._frames += 1
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._is_text, self._parts = frame.opcode is Opcode.TEXT, [bytes(frame.data)]
        elif frame.opcode is Opcode.CONT:
            self._parts.append(bytes(frame.data))
        else:
            return
        if frame.fin:
            content, self._parts, self._frames = b"".join(self._parts), [], 0
            try:
                text = content.decode() if self._is_text else None
            except UnicodeDecodeError:
                text = None
            if text is None:
                self.close(CloseCode.UNSUPPORTED_DATA, "a message is text")
            else:
                self._receiver.received(text)

    def _write(self) -> None:
        self._transport.write(b"".join(self._conn.data_to_send()))
        if self._watch is None:
            self._look_after(WATCH_S, self._look, Reader(self._transport, asyncio.get_running_loop().time()))

    def _look(self, reader: Reader) -> None:
        self._watch = None
        if reader.is_late(asyncio.get_running_loop().time()):
            self._transport.abort()
        elif self._transport.get_write_buffer_size():
            self._look_after(WATCH_S, self._look, reader)

    def _look_after(self, wait_s: float, look: Callable[..., None], *about: object) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = asyncio.get_running_loop().call_later(wait_s, look, *about)
