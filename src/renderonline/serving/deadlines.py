"""uvicorn's protocol with deadlines and bounds: slow or endless clients are disconnected, and early answers arrive.

uvicorn itself waits without limit for headers, bodies and readers, accepts headers of any length, reads bodies that the
application has not asked for, and resets the connection when a request is answered before its body was read, so that
the client never sees the answer.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from renderonline.serving.admission import GUEST, IS_KNOWN, Admission, Guest, is_host

if TYPE_CHECKING:
    from uvicorn._types import (
        ASGI3Application,
        ASGIReceiveCallable,
        ASGIReceiveEvent,
        ASGISendCallable,
        ASGISendEvent,
        Scope,
    )
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

WATCH_S: Final = 5.0
HEADER_S: Final = 20.0
"""The longest time from the start of a connection, or the first byte of a later request, to the end of its headers."""
BODY_WINDOW_S: Final = 30.0
BODY_WINDOW_BYTES: Final = 8 * 1024
"""The least that must arrive of a body in each window while we are ready to read it."""
READER_S: Final = 60.0
"""The longest time in which a client may read nothing of its answer."""
MAX_HEADERS: Final = 100
MAX_UNDELIVERED: Final = 64 * 1024
"""The most bytes that may arrive without completing headers or a piece of a body (chunk extensions, trailers)."""
UNASKED_BYTES: Final = 64 * 1024
"""The most that is read of a request whose body the application has not asked for, because anybody may send it."""
READ_BYTES: Final = 256 * 1024
"""The most that is read from a connection at once."""
AHEAD_BYTES: Final = 1024 * 1024
"""The most of a body that is read while the application stores earlier pieces."""
LINGER_S: Final = 2.0
"""How long the connection stays open after an early answer. Closing it with unread bytes would reset it, and a client
that reads only after it has sent everything would lose the answer."""
LINGER_BYTES: Final = 16 * 1024 * 1024
"""The most that is meanwhile read and discarded of a body that was asked for, or whose sender has authenticated."""


def patient(admission: Admission) -> Callable[..., asyncio.BaseProtocol]:
    """Return a factory for the protocols of one server's connections."""
    buffer = memoryview(bytearray(READ_BYTES))
    return lambda **about: _BoundedReads(PatientProtocol(admission, **about), buffer)


class PatientProtocol(HttpToolsProtocol):
    """One HTTP/1.1 connection with deadlines."""

    _watch: asyncio.TimerHandle
    _in_headers_since: float | None = None
    _window_started = 0.0
    _window_bytes = 0
    _wrong = b""
    _undelivered = 0
    _request_bytes = 0
    _asked: "RequestResponseCycle | None" = None
    _delivered = False
    _lingering: int | None = None
    _reader: "Reader"

    def __init__(self, admission: Admission, guest: Guest, **more: Any) -> None:
        super().__init__(**more)
        self._admission, self._guest = admission, guest
        self.app_state = {**self.app_state, GUEST: (admission, guest)}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._guest.is_busy, self._guest.end = self._is_busy, transport.abort
        now = self.loop.time()
        self._in_headers_since = self._window_started = now
        self._reader = Reader(transport, now)
        self._watch = self.loop.call_later(WATCH_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        self._admission.leave(self._guest)
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._watch.cancel()
        self._guest.is_busy = lambda: False
        super().handle_websocket_upgrade()
        self.parser = None  # type: ignore[assignment]  # it refers to us: we would stay until the next search for circles

    @property
    def room(self) -> int:
        """How many bytes to read next, at least 1."""
        if self._lingering is not None:
            return max(1, self._lingering)
        if self._is_between or self._is_asked:
            return UNASKED_BYTES if self._is_between else READ_BYTES
        return max(1, UNASKED_BYTES - self._request_bytes)

    @property
    def _is_between(self) -> bool:
        """Whether the next byte is the first of a request after another one."""
        return self._in_headers_since is None and self.cycle is not None and not self.cycle.more_body

    @property
    def _is_asked(self) -> bool:
        """Whether the application wants the body that arrives."""
        return self.cycle is not None and self.cycle.more_body and self.cycle is self._asked

    @property
    def _is_known(self) -> bool:
        """Whether the sender of the body that arrives has authenticated."""
        return self.cycle is not None and self.cycle.more_body and IS_KNOWN in self.cycle.scope["state"]

    def _is_busy(self) -> bool:
        """Whether we work on a request of this connection, instead of waiting for its sender."""
        begun = self.cycle is not None and not self.cycle.response_complete
        return begun and (not self.cycle.more_body or bool(self._guest.who))

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._lingering -= len(data)
            if self._lingering <= 0:
                self.flow.pause_reading()
            return
        if self._is_between:
            self._in_headers_since = self.loop.time()
            self._request_bytes = 0
        self._window_bytes += len(data)
        self._request_bytes += len(data)
        self._delivered = False
        super().data_received(data)
        self._undelivered = 0 if self._delivered else self._undelivered + len(data)
        if self._lingering is not None or self.transport.is_closing():
            return
        if self._undelivered >= MAX_UNDELIVERED:
            self._refuse(431, b"Headers too large")
        elif self._request_bytes >= UNASKED_BYTES and not self._is_between and not self._is_asked:
            self.flow.pause_reading()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")  # the parser stops, uvicorn answers 400

    def on_headers_complete(self) -> None:
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or not all(is_host(host.decode("latin-1")) for host in hosts):
            self._wrong = b"The header Host is not a name or an address."
        elif not hosts and self.parser.get_http_version() == "1.1":
            self._wrong = b"The header Host is missing."
        if self._wrong:
            raise ValueError(self._wrong)  # the parser stops, uvicorn answers 400
        self._delivered = True
        self._in_headers_since = None
        self._window_started, self._window_bytes = self.loop.time(), 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._delivered = True
        was_paused = self.flow.read_paused
        super().on_body(body)  # pauses at 64 KiB
        if not was_paused and self._is_asked and len(self.cycle.body) < AHEAD_BYTES:
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        self._delivered = True
        super().on_message_complete()

    def _start_asgi_task(self, cycle: "RequestResponseCycle", app: "ASGI3Application") -> None:
        cycle.transport = _ClosesGently(self, cycle)  # type: ignore[assignment]

        async def answering(scope: "Scope", receive: "ASGIReceiveCallable", send: "ASGISendCallable") -> None:
            async def receive_asked() -> "ASGIReceiveEvent":
                self._asked = cycle
                return await receive()

            async def send_early(message: "ASGISendEvent") -> None:
                if message["type"] == "http.response.start" and cycle.more_body:
                    cycle.keep_alive = False  # what is left of the body is not read as a request
                await send(message)

            await app(scope, receive_asked, send_early)

        super()._start_asgi_task(cycle, answering)

    def on_response_complete(self) -> None:
        if self._lingering is None:  # else it would read the next request
            super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, self._wrong or msg.encode())

    def linger(self) -> None:
        """Send the end of the stream, give the client time to read the answer, then close."""
        if self._lingering is not None:
            return
        patient = self._is_asked or self._is_known
        self._lingering = LINGER_BYTES if patient else UNASKED_BYTES - self._request_bytes
        if self._lingering > 0:
            self.flow.resume_reading()
        else:
            self.flow.pause_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)

    def _refuse(self, status: int, why: bytes) -> None:
        """Answer an invalid request with an error, unless another answer has begun."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or not cycle.more_body or self.pipeline:
                self.transport.close()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head % len(why) + why)
        self.linger()

    def _look(self) -> None:
        now = self.loop.time()
        headers_late = self._in_headers_since is not None and now - self._in_headers_since > HEADER_S
        if headers_late or self._body_is_late(now) or self._reader.is_late(now):
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(WATCH_S, self._look)

    def _body_is_late(self, now: float) -> bool:
        reading = self.cycle is not None and self.cycle.more_body and not self.flow.read_paused
        if reading and now - self._window_started < BODY_WINDOW_S:
            return False
        late = reading and self._window_bytes < BODY_WINDOW_BYTES
        self._window_started, self._window_bytes = now, 0
        return late


class Reader:
    """Observes whether the client reads what we have written."""

    def __init__(self, transport: asyncio.Transport, now: float) -> None:
        self._transport = transport
        self._buffered, self._since = 0, now

    def is_late(self, now: float) -> bool:
        """Return whether it has read nothing for too long."""
        buffered = self._transport.get_write_buffer_size()
        if buffered == 0 or buffered != self._buffered:
            self._buffered, self._since = buffered, now
        return now - self._since > READER_S


class _BoundedReads(asyncio.BufferedProtocol):
    """Limits each read to the `room` of its `PatientProtocol`; without it the event loop reads all that has arrived."""

    def __init__(self, protocol: PatientProtocol, buffer: memoryview) -> None:
        self._protocol, self._buffer = protocol, buffer
        for passed_on in ("connection_made", "connection_lost", "eof_received", "pause_writing", "resume_writing"):
            setattr(self, passed_on, getattr(protocol, passed_on))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[: self._protocol.room]

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(bytes(self._buffer[:nbytes]))


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
