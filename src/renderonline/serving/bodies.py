"""Bodies of requests: small ones within a bound, large ones written by worker threads, so that the disk never blocks
the event loop, and forms (`multipart/form-data`) read piece by piece. Memory is bounded, and a client that sends
nothing occupies no thread. Long answers of JSON are compressed (`packed`).
"""

import asyncio
import base64
import gzip
import os
import re
import urllib.parse
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive

from renderonline.farm.errors import InvalidRequest, RenderOnlineError, TooLarge

Take = Callable[[memoryview], object]
"""Called in a worker thread with each piece of a body in turn. A true result stops the reading there; the rest of the
body is for another reader."""

THREADS: Final = "renderonline.threads"
"""The key in a request's state of the executor for the bytes of bodies; elsewhere the event loop's own is used."""
MAX_BODY: Final = 256 * 1024
"""The largest JSON body, in bytes."""
BATCH_BYTES: Final = 8 * 1024 * 1024
SHORT_BYTES: Final = 64 * 1024
GATHER_S: Final = 0.005
"""How long more is gathered after a piece of less than `SHORT_BYTES`, because a thread for each packet would cost more
than the packet itself."""
MAX_FIELD_BYTES: Final = 64 * 1024
"""The most bytes of all parts of a form that are not files."""
MAX_PARTS: Final = 64
_LONG: Final = 4096
"""Bytes of an answer that are worth compressing."""
DISCARD_BYTES: Final = 16 * 1024 * 1024
"""How much of a form is still read after it was refused, to find out what else is wrong with the request."""


def too_large(limit: int) -> TooLarge:
    """Return the error for an upload larger than this server takes."""
    return TooLarge(f"The upload is larger than the {limit} bytes that this server takes.")


def content_length(headers: Mapping[str, str]) -> int:
    """Return the length that the client announced, or 0."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def bounded(request: Request, receive: Receive, most: int = MAX_BODY) -> Receive:
    """Return a `receive` that raises `TooLarge` once the body exceeds `most` bytes, or at once if so announced."""
    refusal = TooLarge(f"The body of this request has at most {most} bytes.")
    if content_length(request.headers) > most:
        raise refusal
    read = 0

    async def received() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise refusal
        return message

    return received


async def disconnected(receive: Receive) -> None:
    """Return when the client has disconnected; for a request whose body was read, or that has none."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def receive_body(
    request: Request, handle: int, *, length: int, update: Callable[[memoryview], object] | None = None
) -> None:
    """Write the request's body, exactly `length` bytes, to the open file `handle` at its current position.

    `update` is called with every piece after it was written, in order, in the thread that wrote it. Raises
    `InvalidRequest` when the client sends less (what arrived before is written) or more, and the `OSError` of the disk.
    Nothing uses `handle` any more when this returns or raises, also when it is canceled.
    """
    await Body(request, length).read(writing(handle, update))


def writing(handle: int, update: Callable[[memoryview], object] | None = None) -> Callable[[memoryview], None]:
    """Return a function that writes a piece to the open file `handle` at its current position, then calls `update` with
    it."""
    waiting = 0

    def write(piece: memoryview) -> None:
        nonlocal waiting
        rest = piece
        while rest:
            rest = rest[os.write(handle, rest) :]
        if update is not None:
            update(piece)
        waiting += len(piece)
        if waiting >= BATCH_BYTES and hasattr(os, "posix_fadvise"):
            # Starts writing it to the disk now: a large backlog would delay everyone who syncs a small file.
            begins = os.lseek(handle, 0, os.SEEK_CUR) - waiting
            os.posix_fadvise(handle, begins, waiting, os.POSIX_FADV_DONTNEED)
            waiting = 0

    return write


class Body:
    """The body of one request: `length` bytes, or any number for None. It is read once, by one or several `read`."""

    def __init__(self, request: Request, length: int | None) -> None:
        self._request = request
        self._left = length
        self._stream = self._counted()

    async def read(self, take: Take, *, here: bool = False) -> bool:
        """Call `take` with every piece until it returns something true or the body ends; return whether it stopped.
        `here`: on the event loop, because the body is short and nothing waits for a disk.

        Raises what `take` raises, and `InvalidRequest` when the body is not as long as announced.
        """
        try:
            async for piece in self._stream:
                if here:
                    take(memoryview(piece))
                    continue
                if piece and await in_thread(self._request, partial(take, memoryview(piece))):
                    return True
                if self._left and len(piece) < SHORT_BYTES:
                    await asyncio.sleep(GATHER_S)
        except ClientDisconnect as gone:
            raise _too_short() from gone
        if self._left:
            raise _too_short()
        return False

    async def _counted(self) -> AsyncIterator[bytes]:
        async for piece in self._request.stream():
            if self._left is not None:
                self._left -= len(piece)
                if self._left < 0:
                    raise InvalidRequest("The body is longer than announced.", code="wrong_length")
            yield piece


async def in_thread(request: Request, work: Callable[[], object]) -> object:
    """Run `work` in one of the server's threads for bodies. Also a canceled caller waits for its end, because it uses
    open files."""
    threads: ThreadPoolExecutor | None = request.scope.get("state", {}).get(THREADS)
    pending = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(pending)
    except asyncio.CancelledError:
        await asyncio.wait({pending})
        if not pending.cancelled():
            pending.exception()
        raise


def _too_short() -> InvalidRequest:
    return InvalidRequest("The connection ended before the whole body was sent. Send it again.", code="incomplete_body")


class Form:
    """The form of a submission: a part `request` and one file, parsed as its bytes arrive.

    Parsing stops once, where the first file begins: then the caller decides where its bytes go (`store`) or why they
    are not kept (`refuse`), and goes on. Used by one thread at a time; `take` and `go_on` block while the file is
    stored.
    """

    def __init__(self, content_type: str, *, limit: int) -> None:
        """`limit`: bytes of the largest body. `InvalidRequest` (`not_multipart`) for another content type."""
        self.requests: list[bytes] = []
        """The values of the parts named `request`."""
        self.file_names: list[str] = []
        """The names of the files in order, as the client wrote them."""
        self.refusal: RenderOnlineError | None = None
        self._limit = limit
        self._store: Callable[[memoryview], object] | None = None
        self._read = self._discarded = 0
        self._events: deque[bytes | str | memoryview | None] = deque()
        """What was parsed: a part `request`, the name of a file that begins, a piece of it, or None for its end."""
        self._header = [b"", b""]
        self._disposition = b""
        self._field_name: str | None = None
        self._field = bytearray()
        self._field_bytes = self._part_count = 0
        self._ended = False
        self._piece = self._before = b""
        self._parsed = 0
        called = {name: getattr(self, f"_{name}") for name in _PARSER_CALLS}
        boundary = _boundary(content_type)
        self._closing = b"--" + boundary + b"--"
        self._parser = MultipartParser(boundary, called)  # type: ignore[arg-type]

    @property
    def request(self) -> bytes | None:
        """The part `request`; two of them are as invalid as a broken one."""
        return b", ".join(self.requests) if self.requests else None

    @property
    def parts(self) -> tuple[int, int]:
        """How many requests and how many files were seen so far."""
        return len(self.requests), len(self.file_names)

    @property
    def is_refused(self) -> bool:
        return self.refusal is not None or len(self.file_names) > 1

    def store(self, write: Callable[[memoryview], object]) -> None:
        """Pass the bytes of the first file to `write`."""
        self._store = write

    def refuse(self, error: RenderOnlineError) -> None:
        """Store nothing; the rest of the form is only looked through."""
        self.refusal = error

    def take(self, piece: memoryview) -> bool:
        """Parse the next bytes of the body; return whether to stop reading: the first file begins, or enough was read
        of a form that is refused. Raises `InvalidRequest` (`broken_multipart`), `TooLarge`, and what `write` raises."""
        self._read += len(piece)
        if self._read > self._limit:
            raise too_large(self._limit)
        if self.is_refused:
            self._discarded += len(piece)
        self._parse(bytes(piece))
        return self.go_on()

    def go_on(self) -> bool:
        """Handle what was parsed already, as `take` does."""
        while self._events:
            match self._events.popleft():
                case bytes() as request:
                    self.requests.append(request)
                case str() as name:
                    self.file_names.append(name)
                    if len(self.file_names) == 1:
                        return True
                case memoryview() as piece:
                    if self._store is not None:
                        self._store(piece)
                case None:
                    self._store = None
        return self._discarded > DISCARD_BYTES

    async def read_short(self, request: Request, length: int) -> bytes:
        """Read the whole body, which has at most `SHORT_BYTES`; return the content of its first file. Raises what
        `take` raises, and `InvalidRequest` for a body that is not complete."""
        content = bytearray()
        self.store(content.extend)

        def take(piece: memoryview) -> None:
            if self.take(piece):  # it stops where the file begins
                self.go_on()

        await Body(request, length).read(take, here=True)
        self.finish()
        return bytes(content)

    def finish(self) -> None:
        """Raise `InvalidRequest` unless the closing boundary was seen."""
        if not self._ended:
            message = "The upload is not complete: its closing boundary is missing."
            raise InvalidRequest(message, code="broken_multipart")

    def _parse(self, data: bytes) -> None:
        self._piece, self._parsed = data, 0
        had_ended = self._ended
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest("The upload is not valid multipart/form-data.", code="broken_multipart") from error
        if self._ended and (data if had_ended else self._rest()).strip(b"\r\n \t"):
            raise InvalidRequest("Something follows the upload's closing boundary.", code="broken_multipart")
        self._before = data[1 - len(self._closing) :]

    def _rest(self) -> bytes:
        """What follows the closing boundary in the piece in which it ends; the parser ignores it."""
        begins = len(self._before) + self._parsed if self._parsed else 0
        return (self._before + self._piece)[begins:].partition(self._closing)[2]

    def _saw(self, data: bytes, end: int) -> None:
        if data is self._piece:  # else it is a part of the boundary that turned out to be content
            self._parsed = end

    def _on_part_begin(self) -> None:
        self._part_count += 1
        if self._part_count > MAX_PARTS:
            raise TooLarge(f"An upload has at most {MAX_PARTS} parts.", code="broken_multipart")
        self._disposition = b""

    def _on_header_begin(self) -> None:
        self._header = [b"", b""]

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]
        self._saw(data, end)

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]
        self._saw(data, end)

    def _on_header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]

    def _on_headers_finished(self) -> None:
        parameters = _parameters(self._disposition)
        self._field_name = None if parameters["filename"] else parameters.get("name", "")
        self._field.clear()
        if self._field_name is None:
            self._events.append(parameters["filename"])

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._saw(data, end)
        if self._field_name is None:
            self._events.append(memoryview(data)[start:end])
            return
        self._field_bytes += end - start
        if self._field_bytes > MAX_FIELD_BYTES:
            message = f"The parts of an upload that are not files hold at most {MAX_FIELD_BYTES} bytes together."
            raise TooLarge(message, code="field_too_large")
        self._field += data[start:end]

    def _on_part_end(self) -> None:
        if self._field_name is None:
            self._events.append(None)
        elif self._field_name == "request":
            self._events.append(bytes(self._field))

    def _on_end(self) -> None:
        self._ended = True


_PARSER_CALLS: Final = (
    *("on_part_begin", "on_header_begin", "on_header_field", "on_header_value", "on_header_end"),
    *("on_headers_finished", "on_part_data", "on_part_end", "on_end"),
)


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 70:
        message = "The request content type must be multipart/form-data with a boundary."
        raise InvalidRequest(message, code="not_multipart")
    return boundary


_PARAMETER: Final = re.compile(r';\s*([A-Za-z]+\*?)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))')
_ENCODED_WORD: Final = re.compile(r"=\?utf-8\?B\?([A-Za-z0-9+/=]+)\?=", re.IGNORECASE)


def _parameters(disposition: bytes) -> dict[str, str]:
    """The parameters of a Content-Disposition; `filename*` (RFC 5987) wins over `filename`, as in ASP.NET."""
    try:
        text = disposition.decode()
    except UnicodeDecodeError:
        text = disposition.decode("latin-1")
    found = {"filename": "", "filename*": ""}
    for name, quoted, plain in reversed(_PARAMETER.findall(text)):  # the first of a name counts
        found[name.lower()] = quoted.replace('\\"', '"') or plain
    return found | {"filename": _extended(found["filename*"]) or _decoded(found["filename"])}


def _decoded(name: str) -> str:
    """A name as .NET writes it when it is not ASCII: one MIME word."""
    match = _ENCODED_WORD.fullmatch(name)
    try:
        return base64.b64decode(match[1], validate=True).decode() if match else name
    except ValueError:
        return name


def _extended(value: str) -> str:
    charset, _, rest = value.partition("'")
    encoded = rest.partition("'")[2]
    known = charset.lower() in ("utf-8", "iso-8859-1")
    return urllib.parse.unquote(encoded, encoding=charset, errors="replace") if known else ""


async def packed(response: Response, request: Request) -> Response:
    """The same answer compressed, if it is a long one of JSON and the client takes it: a page of a task's parts is a
    tenth then."""
    takes = "gzip" in request.headers.get("accept-encoding", "")
    if takes and response.media_type == "application/json" and len(response.body) >= _LONG:
        response.body = await asyncio.to_thread(gzip.compress, response.body, 1, mtime=0)
        response.headers.update({"Content-Encoding": "gzip", "Content-Length": str(len(response.body))})
        response.headers.add_vary_header("Accept-Encoding")
    return response
