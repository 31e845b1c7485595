"""Reading `multipart/form-data` as it arrives, with every bound that a hostile client needs."""

import base64
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from renderonline.farm.errors import InvalidRequest, TooLarge

MAX_FIELD_BYTES: Final = 64 * 1024
"""All parts that are not files together."""
MAX_PARTS: Final = 64


@dataclass(frozen=True, slots=True)
class FileBegins:
    """A file part begins; `name` is what the client calls the file, in any form."""

    name: str


@dataclass(frozen=True, slots=True)
class FileData:
    """Bytes of the file that began last."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class FileEnds:
    """The file is whole: the boundary after it was seen."""


@dataclass(frozen=True, slots=True)
class Field:
    """A whole part that is not a file."""

    name: str
    value: bytes


Event = FileBegins | FileData | FileEnds | Field


class MultipartReader:
    """A push parser: `feed` pieces of the body in, events come out; `finish` says whether the end was seen."""

    def __init__(self, content_type: str) -> None:
        self._events: list[Event] = []
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._field_name: str | None = None
        self._field = bytearray()
        self._field_bytes = 0
        self._parts = 0
        self._ended = False
        callbacks = {
            "on_part_begin": self._part_begins,
            "on_part_data": self._part_data,
            "on_part_end": self._part_ends,
            "on_header_begin": self._header_begins,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value_data,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_finished,
            "on_end": self._end,
        }
        self._parser = MultipartParser(_boundary(content_type), callbacks)  # type: ignore[arg-type]

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that `data` completes. `InvalidRequest` when it is not multipart, `TooLarge` over a bound."""
        if self._ended:
            return iter(())  # an epilogue is allowed and means nothing
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest("The upload is not valid multipart/form-data.", code="broken_multipart") from error
        events, self._events = self._events, []
        return iter(events)

    def finish(self) -> None:
        """Raise `InvalidRequest` unless the closing boundary was seen."""
        if not self._ended:
            raise InvalidRequest(
                "The upload is not complete: its closing boundary is missing.", code="broken_multipart"
            )

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise TooLarge(f"An upload has at most {MAX_PARTS} parts.", code="broken_multipart")
        self._disposition = b""

    def _header_begins(self) -> None:
        self._header_name = self._header_value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_value_data(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_ends(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value

    def _headers_finished(self) -> None:
        parameters = _parameters(self._disposition)
        file_name = parameters.get("filename", "")
        if file_name:
            self._field_name = None
            self._events.append(FileBegins(file_name))
        else:
            self._field_name = parameters.get("name", "")
            self._field.clear()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field_name is None:
            self._events.append(FileData(memoryview(data)[start:end]))
            return
        self._field_bytes += end - start
        if self._field_bytes > MAX_FIELD_BYTES:
            raise TooLarge(
                f"The parts of an upload that are not files hold at most {MAX_FIELD_BYTES} bytes together.",
                code="field_too_large",
            )
        self._field += data[start:end]

    def _part_ends(self) -> None:
        if self._field_name is None:
            self._events.append(FileEnds())
        else:
            self._events.append(Field(self._field_name, bytes(self._field)))

    def _end(self) -> None:
        self._ended = True


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 70:
        raise InvalidRequest(
            "The request content type must be multipart/form-data with a boundary.", code="not_multipart"
        )
    return boundary


_PARAMETER: Final = re.compile(r';\s*([A-Za-z]+\*?)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))')


def _parameters(disposition: bytes) -> dict[str, str]:
    """The parameters of a Content-Disposition; `filename*` (RFC 5987) wins over `filename`, as in ASP.NET."""
    try:
        text = disposition.decode()
    except UnicodeDecodeError:
        text = disposition.decode("latin-1")
    found: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(text):
        found.setdefault(name.lower(), quoted.replace('\\"', '"') or plain)
    found["filename"] = _extended(found.pop("filename*", "")) or _decoded(found.get("filename", ""))
    return found


_ENCODED_WORD: Final = re.compile(r"=\?utf-8\?B\?([A-Za-z0-9+/=]+)\?=", re.IGNORECASE)


def _decoded(name: str) -> str:
    """A name as .NET writes it when it is not ASCII: one MIME word."""
    match = _ENCODED_WORD.fullmatch(name)
    if match is None:
        return name
    try:
        return base64.b64decode(match[1], validate=True).decode()
    except ValueError:
        return name


def _extended(value: str) -> str:
    charset, _, rest = value.partition("'")
    _, _, encoded = rest.partition("'")
    if charset.lower() not in ("utf-8", "iso-8859-1"):
        return ""
    return urllib.parse.unquote(encoded, encoding=charset, errors="replace")
