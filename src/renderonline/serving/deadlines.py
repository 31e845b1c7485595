"""uvicorn's HTTP protocol with patience that ends: slow or endless clients are closed, early answers arrive.

uvicorn itself waits for ever for headers, bodies and readers, takes headers of any length, and resets the connection
when a request is answered before its body was read, so that the client never sees the answer.
"""

import asyncio
import contextlib
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

WATCH_S: Final = 5.0
HEADER_S: Final = 20.0
"""From the first moment of a connection, or the first byte of a later request, to the end of its headers."""
BODY_WINDOW_S: Final = 30.0
BODY_WINDOW_BYTES: Final = 8 * 1024
"""So much of a body must arrive in each window while we are willing to read."""
READER_S: Final = 60.0
"""A client that takes nothing of its answer for so long is closed."""
MAX_HEADERS: Final = 100
MAX_UNDELIVERED: Final = 64 * 1024
"""Bytes that may arrive without completing headers or giving a piece of a body (chunk extensions, trailers)."""
LINGER_S: Final = 2.0
LINGER_BYTES: Final = 16 * 1024 * 1024
"""After an early answer so much of the body is read and thrown away, so that the answer is not lost in a reset."""
DIRECT: Final = "renderonline.direct"
"""The ASGI extension of our own; its `lend()` gives the `Loan` of the request's body, or None."""


class PatientProtocol(HttpToolsProtocol):
    """One HTTP/1.1 connection with deadlines. `threads` are for bodies that are read past the event loop."""

    _watch: asyncio.TimerHandle
    _in_headers_since: float | None = None
    _window_started = 0.0
    window_bytes = 0
    _undelivered = 0
    _body_bytes = 0
    _delivered = False
    _lingering: int | None = None
    _buffered = 0
    _buffered_since = 0.0
    loan: "Loan | None" = None

    def __init__(self, threads: ThreadPoolExecutor, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.threads = threads

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        now = self.loop.time()
        self._in_headers_since = self._window_started = self._buffered_since = now
        self._watch = self.loop.call_later(WATCH_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        if self.loan is not None:
            self.loan.end()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._watch.cancel()
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._lingering -= len(data)
            if self._lingering <= 0:
                self.transport.close()
            return
        if self._in_headers_since is None and self.cycle is not None and not self.cycle.more_body:
            self._in_headers_since = self.loop.time()
        self.window_bytes += len(data)
        self._delivered = False
        super().data_received(data)
        self._undelivered = 0 if self._delivered else self._undelivered + len(data)
        if self._undelivered > MAX_UNDELIVERED and not self.transport.is_closing():
            self._refuse_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")  # the parser stops, uvicorn answers 400

    def on_headers_complete(self) -> None:
        self._delivered = True
        self._in_headers_since = None
        self._window_started, self.window_bytes = self.loop.time(), 0
        super().on_headers_complete()
        cycle = self.cycle
        if cycle is not None and cycle.scope is self.scope and self.scheme == "http" and sys.platform != "win32":
            self._body_bytes = 0
            self.scope["extensions"] = {
                DIRECT: {"lend": lambda: self._lend(cycle), "lend_out": lambda: self._lend_out(cycle)}
            }

    def on_body(self, body: bytes) -> None:
        self._delivered = True
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._delivered = True
        super().on_message_complete()

    def _start_asgi_task(self, cycle: "RequestResponseCycle", app: "ASGI3Application") -> None:
        cycle.transport = _ClosesGently(self, cycle)  # type: ignore[assignment]

        async def answering(scope: "Scope", receive: "ASGIReceiveCallable", send: "ASGISendCallable") -> None:
            async def send_early(message: "ASGISendEvent") -> None:
                if message["type"] == "http.response.start" and cycle.more_body:
                    cycle.keep_alive = False  # what is left of the body is not read as a request
                await send(message)

            await app(scope, receive, send_early)

        super()._start_asgi_task(cycle, answering)

    def linger(self) -> None:
        """Throw away what still arrives for a moment, then close."""
        if self._lingering is None:
            self._lingering = LINGER_BYTES
            self.flow.resume_reading()
            self.loop.call_later(LINGER_S, self.transport.close)

    def _lend(self, cycle: "RequestResponseCycle") -> "Loan | None":
        """The socket of a request whose body is still arriving and has a known length."""
        lengths = [int(value) for name, value in cycle.scope["headers"] if name == b"content-length"]
        if not lengths or cycle is not self.cycle or not cycle.more_body or self.loan is not None:
            return None
        if cycle.disconnected or self.transport.is_closing():
            return None
        self.flow.pause_reading()
        if cycle.waiting_for_100_continue:
            cycle.waiting_for_100_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.loan = Loan(self, cycle, lengths[0] - self._body_bytes)
        self.loan.early, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        return self.loan

    def _lend_out(self, cycle: "RequestResponseCycle") -> "Loan | None":
        """The socket for an answer of a known length whose head was sent; its request has arrived as a whole."""
        begun = cycle.response_started and not cycle.response_complete and not cycle.chunked_encoding
        if not begun or cycle.more_body or cycle.disconnected or self.loan or self.transport.is_closing():
            return None
        self.loan = Loan(self, cycle, 0)
        return self.loan

    def _refuse_headers(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: 17\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[431] + head + b"Headers too large")
            self.linger()
        else:
            self.transport.close()

    def _look(self) -> None:
        now = self.loop.time()
        headers_late = self._in_headers_since is not None and now - self._in_headers_since > HEADER_S
        if headers_late or self._body_is_late(now) or self._reader_is_late(now):
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(WATCH_S, self._look)

    def _body_is_late(self, now: float) -> bool:
        paused = self.flow.read_paused and self.loan is None
        reading = self.cycle is not None and self.cycle.more_body and not paused
        if reading and now - self._window_started < BODY_WINDOW_S:
            return False
        late = reading and self.window_bytes < BODY_WINDOW_BYTES
        self._window_started, self.window_bytes = now, 0
        return late

    def _reader_is_late(self, now: float) -> bool:
        buffered = self.transport.get_write_buffer_size()
        if buffered == 0 or buffered != self._buffered:
            self._buffered, self._buffered_since = buffered, now
        return now - self._buffered_since > READER_S


class _ClosesGently:
    """A transport whose `close` lingers while the request's body is still arriving."""

    def __init__(self, protocol: PatientProtocol, cycle: "RequestResponseCycle") -> None:
        self._protocol = protocol
        self._cycle = cycle

    def close(self) -> None:
        if self._cycle.more_body and not self._protocol.transport.is_closing():
            self._protocol.linger()
        else:
            self._protocol.transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol.transport, name)


class Loan:
    """A connection's socket in the hands of somebody who reads a request's body from it, and not a byte more, or sends
    the bytes of an answer. `left`: bytes of the body that the socket still has; 0 for an answer."""

    def __init__(self, protocol: PatientProtocol, cycle: "RequestResponseCycle", left: int) -> None:
        self.threads = protocol.threads
        self.early = b""
        """What of the body has arrived and nobody has read."""
        self.left = left
        self._protocol = protocol
        self._cycle = cycle
        self._reads = left > 0
        # A descriptor of its own: whoever closes the connection meanwhile can't make it mean another file.
        self.socket = socket.socket(fileno=os.dup(protocol.transport.get_extra_info("socket").fileno()))
        self.socket.setblocking(False)

    @property
    def waiting(self) -> int:
        """Bytes that have to leave before those of the answer."""
        return self._protocol.transport.get_write_buffer_size()

    def passed(self, count: int) -> None:
        """So many bytes were read, or sent."""
        if self._reads:
            self._protocol.window_bytes += count
        else:
            self._cycle.expected_content_length -= count

    def end(self) -> None:
        """The connection is closed; whoever uses it finds its end."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def give_back(self) -> None:
        """After the whole body the next request may come; else the connection ends after the answer."""
        self.socket.close()
        protocol = self._protocol
        protocol.loan = None
        if self._reads and not self.left and not protocol.transport.is_closing():
            self._cycle.more_body = False
            protocol.parser = httptools.HttpRequestParser(protocol)
            protocol.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            protocol.flow.resume_reading()
