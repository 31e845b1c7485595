"""Many results in one answer: a ZIP whose files are written while it arrives (`unpack`).

One request for each of 10,000 frames takes a minute, the ZIP of all of them less than a second. Its files are stored,
not compressed, with their sizes in front (APPNOTE.TXT 4.3.7). After a break it goes on at the file where it broke.
"""

import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Final

from renderonline.farm.errors import NotAvailable, RenderOnlineError
from renderonline.rnoclient.sdk.connection import BLOCK, RESUME_S, Connection, disk_faults

_HEADER: Final = struct.Struct("<4sHHHHHLLLHH")
_MAGIC: Final = b"PK\3\4"
_SIZE_BEHIND: Final = 8
"""The flag of a file whose size stands behind its bytes."""
_WIDE: Final = 0xFFFFFFFF
"""The size of a file whose size stands in a ZIP64 field."""


@dataclass(frozen=True)
class Wanted:
    """A file of a ZIP: where it belongs, and its BLAKE2b-256 in hex."""

    target: Path
    size: int
    digest: str


def unpack(connection: Connection, path: str, wanted: Mapping[str, Wanted], landed: Callable[[str], None]) -> None:
    """Write the `wanted` files of the ZIP at `path`, by their names in it, and call `landed` for each that is complete.

    Files that do not arrive, or arrive with other bytes, are left out; so are all further ones when RenderAPI refuses
    to send more. Raises `NotAvailable` if RenderAPI cannot be reached, `NoSpace` if a file cannot be written.
    """
    reading = _Reading(connection, path, dict(wanted), landed)
    patience_s = None
    while not connection.patiently(reading.goes_on, patience_s=patience_s):
        patience_s = RESUME_S


@dataclass
class _Reading:
    connection: Connection
    path: str
    left: dict[str, Wanted]
    landed: Callable[[str], None]
    at: int = 0
    """Bytes of the ZIP up to the end of the last complete file."""
    etag: str = ""

    def goes_on(self) -> bool:
        """Read up to the end or a break; whether nothing more is to come."""
        before = self.at
        try:
            self._read()
        except NotAvailable:
            if self.at <= before:
                raise
            return False
        except RenderOnlineError as error:
            if error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                return True
            raise
        return True

    def _read(self) -> None:
        headers = {"range": f"bytes={self.at}-", "if-range": self.etag} if self.at else {}
        with self.connection.open("GET", self.path, headers=headers, keep=True, timeout_s=60) as response:
            if response.status != HTTPStatus.PARTIAL_CONTENT:
                self.at = 0
            self.etag = response.headers.get("etag", "")
            for name, size, length in _files(response):
                if (file := self.left.get(name)) is not None and file.size == size:
                    self._write(response, name, file)
                else:
                    for _ in _blocks(response, size):
                        pass
                self.at += length + size
            response.read()  # the list of files at the end

    def _write(self, response: HTTPResponse, name: str, file: Wanted) -> None:
        part, digest = file.target.with_name(file.target.name + ".part"), hashlib.blake2b(digest_size=32)
        with disk_faults(part):
            file.target.parent.mkdir(parents=True, exist_ok=True)
            output = part.open("wb")
        with output:
            for block in _blocks(response, file.size):
                digest.update(block)
                with disk_faults(part):
                    output.write(block)
        with disk_faults(part):
            if digest.hexdigest() != file.digest:
                part.unlink()
                return
            os.replace(part, file.target)
        del self.left[name]
        self.landed(name)


def _files(response: HTTPResponse) -> Iterator[tuple[str, int, int]]:
    """Name, size and length of the header of each file, up to one whose size does not stand in front."""
    while (head := _exactly(response, _HEADER.size)).startswith(_MAGIC):
        flags, compressed, size, name_length, extra_length = (_HEADER.unpack(head)[field] for field in (2, 3, 7, 9, 10))
        if compressed or flags & _SIZE_BEHIND:
            return
        name, extra = _exactly(response, name_length), _exactly(response, extra_length)
        if size == _WIDE:
            (size,) = struct.unpack_from("<Q", extra, 4)
        yield name.decode(errors="replace"), size, len(head) + name_length + extra_length


def _exactly(response: HTTPResponse, size: int) -> bytes:
    data = response.read(size)
    if len(data) < size:
        raise IncompleteRead(data, size - len(data))
    return data


def _blocks(response: HTTPResponse, size: int) -> Iterator[bytes]:
    while size:
        block = response.read(min(BLOCK, size))
        if not block:
            raise IncompleteRead(b"", size)
        size -= len(block)
        yield block
