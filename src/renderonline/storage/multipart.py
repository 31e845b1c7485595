"""Reading `multipart/form-data` as it arrives, with every bound that a hostile client needs."""

import base64
import re
import urllib.parse
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from renderonline.farm.errors import InvalidRequest, RenderOnlineError, TooLarge
from renderonline.storage.staging import too_large

MAX_FIELD_BYTES: Final = 64 * 1024
"""All parts that are not files together."""
MAX_PARTS: Final = 64
DISCARD_BYTES: Final = 16 * 1024 * 1024
"""How much of a body is still read after a refusal, to find out what else is wrong with the request."""


class FileBegins(NamedTuple):
    """A file part begins; `name` is what the client calls the file, in any form."""

    name: str


class FileData(NamedTuple):
    """Bytes of the file that began last."""

    data: memoryview


class FileEnds(NamedTuple):
    """The file is whole: the boundary after it was seen."""


class Field(NamedTuple):
    """A whole part that is not a file."""

    name: str
    value: bytes


Event = FileBegins | FileData | FileEnds | Field


class Form:
    """The form of a submission: a part `request` and one file, read piece by piece.

    Reading stops once, where the first file begins: then the caller decides where its bytes go (`store`) or why there
    will be none (`refuse`), and goes on. Nothing is decided here about who may upload what. Used by one thread at a
    time; `take` and `go_on` block while the file is stored.
    """

    def __init__(self, content_type: str, *, limit: int) -> None:
        """`limit`: bytes of the largest body. `InvalidRequest` (`not_multipart`) for another content type."""
        self.requests: list[bytes] = []
        """The values of the parts named `request`."""
        self.file_names: list[str] = []
        """The names of the files in order, as the client wrote them."""
        self.refusal: RenderOnlineError | None = None
        self._reader = MultipartReader(content_type)
        self._limit = limit
        self._events: deque[Event] = deque()
        self._store: Callable[[memoryview], object] | None = None
        self._read = 0
        self._discarded = 0

    @property
    def request(self) -> bytes | None:
        """The part `request`; two of them are as good as a broken one."""
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
        """Read the next bytes of the body; returns whether to stop reading: the first file begins, or enough was read
        of a form that is refused. `InvalidRequest`, `TooLarge`, and what `write` raises."""
        self._read += len(piece)
        if self._read > self._limit:
            raise too_large(self._limit)
        if self.is_refused:
            self._discarded += len(piece)
        self._events += self._reader.feed(bytes(piece))
        return self.go_on()

    def go_on(self) -> bool:
        """Handle what was read already, as `take` does."""
        while self._events:
            match self._events.popleft():
                case Field("request", value):
                    self.requests.append(value)
                case FileBegins(name):
                    self.file_names.append(name)
                    if len(self.file_names) == 1:
                        return True
                case FileData(data) if self._store is not None:
                    self._store(data)
                case FileEnds():
                    self._store = None
                case FileData() | Field():
                    pass
        return self._discarded > DISCARD_BYTES

    def finish(self) -> None:
        """Raise `InvalidRequest` unless the closing boundary was seen."""
        self._reader.finish()


class MultipartReader:
    """A push parser: `feed` pieces of the body in, events come out; `finish` says whether the end was seen."""

    def __init__(self, content_type: str) -> None:
        self._events: list[Event] = []
        self._header: list[bytes] = [b"", b""]
        self._disposition = b""
        self._field_name: str | None = None
        self._field = bytearray()
        self._field_bytes = 0
        self._parts = 0
        self._ended = False
        self._piece = self._before = b""
        self._read = 0
        ours = (name for name in dir(self) if name.startswith("on_"))
        boundary = _boundary(content_type)
        self._closing = b"--" + boundary + b"--"
        self._parser = MultipartParser(boundary, {name: getattr(self, name) for name in ours})  # type: ignore[arg-type]

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes. `InvalidRequest` when it is not multipart, `TooLarge` over a bound."""
        self._piece, self._read = data, 0
        had_ended = self._ended
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest("The upload is not valid multipart/form-data.", code="broken_multipart") from error
        if self._ended and (data if had_ended else self._rest()).strip(b"\r\n \t"):
            raise InvalidRequest("Something follows the upload's closing boundary.", code="broken_multipart")
        self._before = data[1 - len(self._closing) :]
        events, self._events = self._events, []
        return events

    def _rest(self) -> bytes:
        """What follows the closing boundary in the piece in which it ends; the parser passes over it in silence."""
        begins = len(self._before) + self._read if self._read else 0
        return (self._before + self._piece)[begins:].partition(self._closing)[2]

    def finish(self) -> None:
        """Raise `InvalidRequest` unless the closing boundary was seen."""
        if not self._ended:
            message = "The upload is not complete: its closing boundary is missing."
            raise InvalidRequest(message, code="broken_multipart")

    def _saw(self, data: bytes, end: int) -> None:
        if data is self._piece:  # else it is a part of the boundary that turned out to be content
            self._read = end

    # What the parser calls, by its names.

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise TooLarge(f"An upload has at most {MAX_PARTS} parts.", code="broken_multipart")
        self._disposition = b""

    def on_header_begin(self) -> None:
        self._header = [b"", b""]

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]
        self._saw(data, end)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]
        self._saw(data, end)

    def on_header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]

    def on_headers_finished(self) -> None:
        parameters = _parameters(self._disposition)
        self._field_name = None if parameters["filename"] else parameters.get("name", "")
        self._field.clear()
        if self._field_name is None:
            self._events.append(FileBegins(parameters["filename"]))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._saw(data, end)
        if self._field_name is None:
            self._events.append(FileData(memoryview(data)[start:end]))
            return
        self._field_bytes += end - start
        if self._field_bytes > MAX_FIELD_BYTES:
            message = f"The parts of an upload that are not files hold at most {MAX_FIELD_BYTES} bytes together."
            raise TooLarge(message, code="field_too_large")
        self._field += data[start:end]

    def on_part_end(self) -> None:
        self._events.append(FileEnds() if self._field_name is None else Field(self._field_name, bytes(self._field)))

    def on_end(self) -> None:
        self._ended = True


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
